package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Throughput describes a flood.
type Throughput struct {
	Streams  int           // default 1
	Duration time.Duration // default one second
	Proto    string        // "tcp" (default) or "udp"
	Size     int           // udp: bytes a datagram, default 64
	V6       bool
}

// ThroughputResult is what was delivered.
type ThroughputResult struct {
	Bits, Packets float64 // a second; payload bits, datagrams (0 for tcp)
	Sent, Lost    uint64  // datagrams
}

// Measure floods for a while and counts at the receiver.
func Measure(ctx context.Context, from, to *Host, c Throughput) (ThroughputResult, error) {
	if c.Streams == 0 {
		c.Streams = 1
	}
	if c.Duration == 0 {
		c.Duration = time.Second
	}
	if c.Proto == "udp" {
		return measureUDP(ctx, from, to, c)
	}
	return measureTCP(ctx, from, to, c)
}

func measureTCP(ctx context.Context, from, to *Host, c Throughput) (r ThroughputResult, err error) {
	s, err := to.ServeTCP(0)
	if err != nil {
		return r, err
	}
	defer s.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	defer running.Wait() // after cancel
	for range c.Streams {
		conn, err := from.DialTCP(ctx, netip.AddrPortFrom(to.Addr(c.V6), s.Port()))
		if err != nil {
			cancel()
			return r, fmt.Errorf("throughput from %s to %s: %w", from.Name, to.Name, err)
		}
		running.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			var head [32]byte
			binary.BigEndian.PutUint64(head[:], floodMagic)
			if _, err := conn.Write(head[:]); err != nil {
				return
			}
			for b := noise()[:512<<10]; ; {
				if _, err := conn.Write(b); err != nil {
					return
				}
			}
		})
	}
	sleep(ctx, c.Duration/5) // slow start is not counted
	begin, before := time.Now(), s.flooded.Load()
	sleep(ctx, c.Duration)
	delivered, took := s.flooded.Load()-before, time.Since(begin)
	cancel()
	if delivered == 0 {
		return r, fmt.Errorf("throughput from %s to %s: nothing was delivered in %v", from.Name, to.Name, took)
	}
	r.Bits = float64(delivered) * 8 / took.Seconds()
	return r, nil
}

func measureUDP(ctx context.Context, from, to *Host, c Throughput) (r ThroughputResult, err error) {
	if c.Size == 0 {
		c.Size = 64
	}
	sink, err := to.ReceiveStream(0)
	if err != nil {
		return r, err
	}
	defer sink.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	var mu sync.Mutex
	var sendErr error
	for range c.Streams {
		running.Go(func() {
			n, err := from.SendStream(ctx, netip.AddrPortFrom(to.Addr(c.V6), sink.Port()), Stream{Sizes: []int{c.Size}, Count: 1 << 40})
			mu.Lock()
			defer mu.Unlock()
			r.Sent += uint64(n)
			if ctx.Err() == nil {
				sendErr = err
			}
		})
	}
	sleep(ctx, c.Duration/5)
	begin, before := time.Now(), sink.Counts()
	sleep(ctx, c.Duration)
	after, took := sink.Counts(), time.Since(begin)
	cancel()
	running.Wait()
	if sendErr != nil {
		return r, sendErr
	}
	r.Bits = float64(after.Bytes-before.Bytes) * 8 / took.Seconds()
	r.Packets = float64(after.Received-before.Received) / took.Seconds()
	r.Lost = r.Sent - min(r.Sent, uint64(sink.WaitFor(1<<62, 100*time.Millisecond).Received))
	return r, nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
