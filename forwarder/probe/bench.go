package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// A Bench is what was measured between two nodes' hosts, one way but for the latency. The packets take the whole way that a
// pod's would, but for the ends: both are sockets of the daemons, behind the nodes' TUNs.
type Bench struct {
	Latency   Latency
	Datagrams Flow // small ones, each sent by itself
	Bulk      Flow // as large as fit, handed to the kernel by 64 KiB where it takes them
}

// Latency is that of small packets there and back, one at a time.
type Latency struct {
	Size          int // bytes of an IP packet
	Sent, Lost    int
	P50, P99, Max time.Duration
}

// A Flow is datagrams in one direction, as fast as they are taken, with at most a window on the way.
type Flow struct {
	Size            int // bytes of an IP packet
	Sent, Delivered uint64
	Took            time.Duration
}

const (
	benchSize   = 92 // 64 bytes of payload over IPv4
	batch       = 45 // datagrams until the next echo; as many of 1,450 bytes fit one send of 64 KiB
	window      = 8  // batches on the way
	overdue     = 50 * time.Millisecond
	echoTimeout = 200 * time.Millisecond
)

// ErrBusy says that another bench is running.
var ErrBusy = errors.New("another bench is running on this node: wait for its end, two would measure each other")

// Bench measures the way to a peer that has a responder, for a third of took each: latency, small datagrams, bulk.
func (p *Prober) Bench(ctx context.Context, t Target, took time.Duration) (Bench, error) {
	if !p.benching.TryLock() {
		return Bench{}, ErrBusy
	}
	defer p.benching.Unlock()
	var b Bench
	a, err := p.ask(ctx, t.HostFrom, t.Host)
	if err != nil {
		return b, err
	}
	defer a.conn.Close()
	defer closeWith(ctx, a.conn)()
	err = repeat(ctx, func() error { _, _, err := a.echo(smallProbe, smallProbe, patience); return err })
	if err != nil {
		return b, err
	}
	size := max(benchSize, overhead(t.Host)+headerLen)
	if b.Latency, err = a.latency(ctx, size, took/3); err != nil {
		return b, err
	}
	if b.Datagrams, err = a.flow(ctx, size, false, took/3); err != nil {
		return b, err
	}
	b.Bulk, err = a.flow(ctx, t.MTU, true, took/3)
	return b, err
}

func (a *asker) latency(ctx context.Context, size int, took time.Duration) (Latency, error) {
	l := Latency{Size: size}
	var all []time.Duration
	for end := time.Now().Add(took); time.Now().Before(end) && ctx.Err() == nil; {
		rtt, _, err := a.echo(size, size, echoTimeout)
		if errors.Is(err, errRefused) {
			return l, err
		}
		l.Sent++
		if err != nil {
			l.Lost++
			continue
		}
		all = append(all, rtt)
	}
	if len(all) > 0 {
		slices.Sort(all)
		l.P50, l.P99, l.Max = all[len(all)/2], all[len(all)*99/100], all[len(all)-1]
	}
	return l, ctx.Err()
}

// flow sends batches of data, an echo behind each, and no more than a window of batches before the echoes come back: so what is
// lost is lost by the network, not for want of a brake. An echo that does not come back holds it up for overdue.
func (a *asker) flow(ctx context.Context, size int, bulk bool, took time.Duration) (Flow, error) {
	f := Flow{Size: size}
	a.token++ // the responder begins to count anew
	s := newSender(a, size-overhead(a.peer), bulk)
	var answered atomic.Uint64 // the highest batch whose echo came back
	came := make(chan struct{}, 1)
	a.conn.SetReadDeadline(time.Time{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.hear(&answered, came)
	}()
	start := time.Now()
	var sent, forgiven uint64 // batches
	var err error
	for end := start.Add(took); err == nil && time.Now().Before(end) && ctx.Err() == nil; {
		if sent-max(answered.Load(), forgiven) >= window {
			select {
			case <-came:
			case <-time.After(overdue):
				forgiven = sent
			}
			continue
		}
		sent++
		err = s.send(sent)
		f.Sent += s.per
	}
	for wait := time.Now().Add(echoTimeout); answered.Load() < sent && time.Now().Before(wait); { // what is on its way
		select {
		case <-came:
		case <-time.After(time.Millisecond):
		}
	}
	f.Took = time.Since(start)
	a.conn.SetReadDeadline(time.Now()) // hear ends
	<-done
	if err != nil {
		return f, err
	}
	if f.Delivered, err = a.delivered(); err != nil {
		return f, err
	}
	return f, ctx.Err()
}

// hear takes the echoes' answers until the socket's deadline.
func (a *asker) hear(answered *atomic.Uint64, came chan<- struct{}) {
	buf := make([]byte, 1<<16)
	for {
		n, err := a.conn.Read(buf)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, net.ErrClosed) {
			return
		}
		m, ok := parse(buf[:n])
		if err != nil || !ok || m.kind != echoAnswer || m.token != a.token {
			continue
		}
		if m.seq > answered.Load() {
			answered.Store(m.seq)
		}
		select {
		case came <- struct{}{}:
		default:
		}
	}
}

// delivered asks the responder what it has counted.
func (a *asker) delivered() (n uint64, err error) {
	err = repeat(context.Background(), func() error {
		a.seq++
		p := a.buf[:headerLen]
		message{kind: count, token: a.token, seq: a.seq}.put(p)
		if _, err := a.conn.Write(p); err != nil {
			return err
		}
		a.conn.SetReadDeadline(time.Now().Add(patience))
		for {
			k, err := a.conn.Read(a.buf)
			if err != nil {
				return fmt.Errorf("the peer does not say what it has counted: %w", err)
			}
			if m, ok := parse(a.buf[:k]); ok && m.kind == counted && m.token == a.token && m.seq == a.seq {
				n = m.a
				return nil
			}
		}
	})
	return n, err
}

// sender sends batches of one flow.
type sender struct {
	a     *asker
	size  int // of a payload
	per   uint64
	whole []byte // a batch in one piece, for UDP_SEGMENT; nil: by sendmmsg
	msgs  []ipv4.Message
	conn  *ipv4.PacketConn // sendmmsg knows no family
}

func newSender(a *asker, size int, bulk bool) *sender {
	s := &sender{a: a, size: size, per: batch, conn: ipv4.NewPacketConn(a.conn)}
	if bulk {
		s.per = uint64(min(batch, 65_000/size))
		s.whole = make([]byte, int(s.per)*size)
	}
	for i := range int(s.per) {
		p := make([]byte, size)
		if s.whole != nil {
			p = s.whole[i*size : (i+1)*size]
		}
		message{kind: data, token: a.token}.put(p)
		s.msgs = append(s.msgs, ipv4.Message{Buffers: [][]byte{p}})
	}
	e := make([]byte, max(headerLen, min(size, 128)))
	s.msgs = append(s.msgs, ipv4.Message{Buffers: [][]byte{e}})
	return s
}

// send sends a batch and the echo behind it.
func (s *sender) send(n uint64) error {
	list := s.msgs
	e := list[len(list)-1].Buffers[0]
	message{kind: echo, want: headerLen, token: s.a.token, seq: n}.put(e)
	if s.whole != nil {
		_, _, err := s.a.conn.WriteMsgUDP(s.whole, segmentBy(s.size), nil)
		switch {
		case err == nil:
			list = list[len(list)-1:]
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EIO), errors.Is(err, unix.EMSGSIZE):
			s.whole = nil // this kernel, or this route, does not take them whole
		case !passing(err):
			return fmt.Errorf("datagrams cannot be sent: %w", err)
		}
	}
	for len(list) > 0 {
		k, err := s.conn.WriteBatch(list, 0)
		if err != nil && !passing(err) {
			return fmt.Errorf("datagrams cannot be sent: %w", err)
		}
		list = list[max(k, 1):] // one that failed is lost
	}
	return nil
}

// passing errors are about one packet, or an earlier one.
func passing(err error) bool {
	return errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EAGAIN)
}
