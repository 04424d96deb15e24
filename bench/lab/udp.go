package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// who is the one datagram that an echo server does not return: it answers with whoAnswer as JSON.
var who = []byte("penstock lab: who are you, and who am I?")

type whoAnswer struct {
	Server string
	SeenAs netip.AddrPort
}

// UDPServer returns every datagram, from the very address that it was sent to.
type UDPServer struct {
	host    *Host
	v4      *net.UDPConn
	v6      *net.UDPConn
	count   atomic.Uint64
	running sync.WaitGroup
}

// ServeUDP serves echoes over IPv4 and IPv6; port 0 picks one.
func (h *Host) ServeUDP(port uint16) (*UDPServer, error) {
	s := &UDPServer{host: h}
	var err error
	if s.v4, err = h.listenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), port)); err != nil {
		return nil, err
	}
	if s.v6, err = h.listenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), s.Port())); err != nil {
		s.v4.Close()
		return nil, err
	}
	p4, p6 := ipv4.NewPacketConn(s.v4), ipv6.NewPacketConn(s.v6)
	if err := errors.Join(p4.SetControlMessage(ipv4.FlagDst, true), p6.SetControlMessage(ipv6.FlagDst, true)); err != nil {
		s.Close()
		return nil, fmt.Errorf("lab: echo server in %s: %w", h.Name, err)
	}
	s.running.Go(func() {
		b := make([]byte, 65536)
		for {
			n, cm, from, err := p4.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				p4.WriteTo(s.answer(b[:n], from), &ipv4.ControlMessage{Src: cm.Dst}, from)
			}
		}
	})
	s.running.Go(func() {
		b := make([]byte, 65536)
		for {
			n, cm, from, err := p6.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				p6.WriteTo(s.answer(b[:n], from), &ipv6.ControlMessage{Src: cm.Dst}, from)
			}
		}
	})
	return s, nil
}

func (s *UDPServer) answer(b []byte, from net.Addr) []byte {
	s.count.Add(1)
	if !bytes.Equal(b, who) {
		return b
	}
	line, err := json.Marshal(whoAnswer{Server: s.host.Name, SeenAs: addrPort(from)})
	if err != nil {
		return nil
	}
	return line
}

// Port is the server's port.
func (s *UDPServer) Port() uint16 { return addrPort(s.v4.LocalAddr()).Port() }

// Count is the number of datagrams received so far.
func (s *UDPServer) Count() uint64 { return s.count.Load() }

// Close ends the server.
func (s *UDPServer) Close() {
	s.v4.Close()
	s.v6.Close()
	s.running.Wait()
}

func (h *Host) listenUDP(at netip.AddrPort) (c *net.UDPConn, err error) {
	err = h.Do(func() error {
		c, err = net.ListenUDP(udpNetwork(at.Addr()), net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: UDP socket on %v in %s: %w", at, h.Name, err)
	}
	forceBuffers(c, 16<<20)
	return c, nil
}

// UDPClient talks to one echo server.
type UDPClient struct {
	host *Host
	conn *net.UDPConn
	salt uint64 // makes this client's contents its own
	buf  []byte
}

// DialUDP makes a connected socket: answers from any other address do not reach it.
func (h *Host) DialUDP(to netip.AddrPort) (*UDPClient, error) {
	c := &UDPClient{host: h, salt: rand.Uint64(), buf: make([]byte, 65536)}
	err := h.Do(func() (err error) {
		c.conn, err = net.DialUDP(udpNetwork(to.Addr()), nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: UDP from %s to %v: %w", h.Name, to, err)
	}
	forceBuffers(c.conn, 16<<20)
	return c, nil
}

// Conn is the client's socket, for what the client has no method for.
func (c *UDPClient) Conn() *net.UDPConn { return c.conn }

// Close closes the socket.
func (c *UDPClient) Close() { c.conn.Close() }

// pattern is the content of this client's datagram of one size.
func (c *UDPClient) pattern(size int) []byte {
	b := make([]byte, size)
	start := (c.salt + uint64(size)*7919) % uint64(len(noise())-size)
	copy(b, noise()[start:])
	if size >= 8 {
		binary.BigEndian.PutUint64(b, c.salt^uint64(size))
	}
	return b
}

// ErrNoAnswer is an echo that did not come back in time.
var ErrNoAnswer = errors.New("no answer")

// Echo sends one datagram and waits a second for the same one. It is not repeated.
func (c *UDPClient) Echo(ctx context.Context, size int) error {
	if _, err := c.exchange(ctx, c.pattern(size), func(b []byte) bool { return bytes.Equal(b, c.pattern(size)) }); err != nil {
		return fmt.Errorf("udp echo of %d bytes from %s to %v: %w", size, c.host.Name, c.conn.RemoteAddr(), err)
	}
	return nil
}

// Who asks which host answers, and how it sees this client. It asks up to three times.
func (c *UDPClient) Who(ctx context.Context) (server string, seenAs netip.AddrPort, err error) {
	var a whoAnswer
	for range 3 {
		_, err = c.exchange(ctx, who, func(b []byte) bool { return json.Unmarshal(b, &a) == nil && a.Server != "" })
		if err == nil {
			return a.Server, a.SeenAs, nil
		}
	}
	return "", netip.AddrPort{}, fmt.Errorf("udp from %s to %v: %w", c.host.Name, c.conn.RemoteAddr(), err)
}

// exchange sends a datagram and reads until one pleases. Others (late answers to earlier questions) are passed over,
// unless nothing better comes.
func (c *UDPClient) exchange(ctx context.Context, out []byte, pleases func([]byte) bool) ([]byte, error) {
	if _, err := c.conn.Write(out); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(time.Second)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c.conn.SetReadDeadline(deadline)
	strange := 0
	for {
		n, err := c.conn.Read(c.buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if strange > 0 {
				return nil, fmt.Errorf("%w, but %d datagrams with other contents", ErrNoAnswer, strange)
			}
			return nil, ErrNoAnswer
		case err != nil:
			return nil, err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		if pleases(c.buf[:n]) {
			return c.buf[:n], nil
		}
		strange++
	}
}

// EchoCount is what became of a series of echoes.
type EchoCount struct {
	Sent, Echoed, Lost, Corrupt int
	FirstLost                   []int // sizes, at most ten
	FirstCorrupt                []int
}

// OK reports whether every datagram came back as it was sent.
func (e EchoCount) OK() bool { return e.Sent > 0 && e.Echoed == e.Sent && e.Corrupt == 0 }

// EchoSizes sends one datagram of every size and counts what comes back intact, with up to window of them on
// the way at once (fewer if they are large: 64 KiB together). Sizes must differ from each other: a datagram is known by its size.
func (c *UDPClient) EchoSizes(ctx context.Context, sizes []int, window int) (EchoCount, error) {
	var e EchoCount
	flying := map[int]time.Time{}
	bytesFlying, next := 0, 0
	const patience = 10 * time.Second // it is only waited for where something is lost
	for next < len(sizes) || len(flying) > 0 {
		if err := ctx.Err(); err != nil {
			return e, err
		}
		for next < len(sizes) && len(flying) < max(1, window) && (len(flying) == 0 || bytesFlying+sizes[next] <= 64<<10) {
			size := sizes[next]
			if _, again := flying[size]; again {
				return e, fmt.Errorf("lab: size %d occurs twice", size)
			}
			if _, err := c.conn.Write(c.pattern(size)); err != nil {
				return e, fmt.Errorf("udp of %d bytes from %s to %v: %w", size, c.host.Name, c.conn.RemoteAddr(), err)
			}
			flying[size] = time.Now()
			bytesFlying += size
			next++
			e.Sent++
		}
		c.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, err := c.conn.Read(c.buf)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return e, fmt.Errorf("udp echoes from %s to %v: %w", c.host.Name, c.conn.RemoteAddr(), err)
		}
		if err == nil {
			_, expected := flying[n]
			if expected && bytes.Equal(c.buf[:n], c.pattern(n)) {
				delete(flying, n)
				bytesFlying -= n
				e.Echoed++
			} else {
				e.Corrupt++ // wrong contents, a size never sent, or a second copy
				if len(e.FirstCorrupt) < 10 {
					e.FirstCorrupt = append(e.FirstCorrupt, n)
				}
			}
			continue
		}
		for size, at := range flying {
			if time.Since(at) > patience {
				delete(flying, size)
				bytesFlying -= size
				e.Lost++
				if len(e.FirstLost) < 10 {
					e.FirstLost = append(e.FirstLost, size)
				}
			}
		}
	}
	return e, nil
}

// SizesTo is every size from 0 to limit.
func SizesTo(limit int) []int {
	sizes := make([]int, limit+1)
	for i := range sizes {
		sizes[i] = i
	}
	return sizes
}

// FragmentBorders are the UDP payload sizes up to limit at which one more IP fragment becomes necessary: the
// last that still fits and its neighbours, for packets of mtu bytes.
func FragmentBorders(mtu int, v6 bool, limit int) []int {
	header := 20
	if v6 {
		header = 40 + 8 // with the fragment header
	}
	var sizes []int
	// All fragments but the last carry a multiple of eight bytes, UDP's header among them.
	for n, each := 1, (mtu-header)&^7; n*each-8 <= limit+2; n++ {
		for d := -2; d <= 2; d++ {
			sizes = append(sizes, n*each-8+d)
		}
		last := (n-1)*each + mtu - header - 8 // the last one need not be a multiple of eight
		if v6 && n == 1 {
			last += 8 // a whole packet has no fragment header
		}
		for d := -2; d <= 2; d++ {
			sizes = append(sizes, last+d)
		}
	}
	sizes = append(sizes, limit)
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	return slices.DeleteFunc(sizes, func(s int) bool { return s < 0 || s > limit })
}
