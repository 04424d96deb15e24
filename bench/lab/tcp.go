package lab

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A transfer, client (c) and server (s):
//
//	c → s  magic, up, down, seed (8 bytes each)
//	c → s  up bytes    ┐ at the same time
//	s → c  down bytes  ┘
//	s → c  one line of JSON: who answered, and SHA-256 of both directions as the server saw them
//
// The server sends its line after it has read everything, so the client knows that its own bytes arrived.

const (
	transferMagic = 0x70656e73746f636b // "penstock"
	floodMagic    = 0x70656e73666c6f64 // one way, no sums, until the client closes
)

// tcpVerdict is the server's last line.
type tcpVerdict struct {
	Server   string
	SeenAs   netip.AddrPort
	Received []byte // SHA-256
	Sent     []byte
}

// TCPServer answers transfers on all addresses of its host.
type TCPServer struct {
	host      *Host
	listeners []*net.TCPListener
	conns     sync.Map       // net.Conn → nil, to be closed
	running   sync.WaitGroup // goroutines
	flooded   atomic.Uint64  // bytes that floods have delivered
}

// ServeTCP serves transfers over IPv4 and IPv6; port 0 picks one.
func (h *Host) ServeTCP(port uint16) (*TCPServer, error) {
	s := &TCPServer{host: h}
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		l, err := h.ListenTCP(netip.AddrPortFrom(any, port))
		if err != nil {
			s.Close()
			return nil, err
		}
		port = uint16(l.Addr().(*net.TCPAddr).Port)
		s.listeners = append(s.listeners, l)
		s.running.Go(func() { s.accept(l) })
	}
	return s, nil
}

// Port is the server's port.
func (s *TCPServer) Port() uint16 { return uint16(s.listeners[0].Addr().(*net.TCPAddr).Port) }

// Close ends the server and its connections.
func (s *TCPServer) Close() {
	for _, l := range s.listeners {
		l.Close()
	}
	s.conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
	s.running.Wait()
}

func (s *TCPServer) accept(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		s.conns.Store(c, nil)
		s.running.Go(func() {
			defer s.conns.Delete(c)
			defer c.Close()
			s.serve(c)
		})
	}
}

func (s *TCPServer) serve(c *net.TCPConn) error {
	var head [32]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	switch binary.BigEndian.Uint64(head[0:]) {
	case floodMagic:
		return s.swallow(c)
	case transferMagic:
	default:
		return errors.New("not ours")
	}
	up := int64(binary.BigEndian.Uint64(head[8:]))
	down := int64(binary.BigEndian.Uint64(head[16:]))
	seed := binary.BigEndian.Uint64(head[24:])
	v := tcpVerdict{Server: s.host.Name, SeenAs: addrPort(c.RemoteAddr())}
	sent := make(chan error, 1)
	go func() {
		sum := sha256.New()
		sent <- send(c, down, ^seed, sum)
		v.Sent = sum.Sum(nil)
		close(sent)
	}()
	sum := sha256.New()
	err := receive(c, up, sum)
	v.Received = sum.Sum(nil)
	if err != nil {
		c.Close() // the sending half must not wait for a client that is gone
	}
	err = errors.Join(err, <-sent)
	<-sent // v.Sent is written
	if err != nil {
		return err
	}
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.Write(append(line, '\n'))
	return err
}

// swallow counts what a flood delivers.
func (s *TCPServer) swallow(c *net.TCPConn) error {
	b := make([]byte, 1<<20)
	for {
		n, err := c.Read(b)
		s.flooded.Add(uint64(n))
		if err != nil {
			return err
		}
	}
}

// TCPResult is a transfer that ended well.
type TCPResult struct {
	Up, Down    int64
	Elapsed     time.Duration
	Server      string         // name of the host that answered
	SeenAs      netip.AddrPort // the client, as the server saw it
	Retransmits uint32
	RTT         time.Duration // smoothed, at the end
}

// Rate is in bits a second, both ways together.
func (r TCPResult) Rate() float64 { return float64(r.Up+r.Down) * 8 / r.Elapsed.Seconds() }

// TCP sends up bytes to a server of [Host.ServeTCP] and receives down bytes from it, both at the same time,
// and compares SHA-256 of both directions.
func (h *Host) TCP(ctx context.Context, to netip.AddrPort, up, down int64) (TCPResult, error) {
	r := TCPResult{Up: up, Down: down}
	fail := func(what string, err error) (TCPResult, error) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return r, fmt.Errorf("tcp from %s to %v: %s: %w", h.Name, to, what, err)
	}
	c, err := h.DialTCP(ctx, to)
	if err != nil {
		return fail("connect", err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	begin := time.Now()
	seed := rand.Uint64()
	var head [32]byte
	for i, v := range []uint64{transferMagic, uint64(up), uint64(down), seed} {
		binary.BigEndian.PutUint64(head[8*i:], v)
	}
	if _, err := c.Write(head[:]); err != nil {
		return fail("send", err)
	}
	upSum, downSum := sha256.New(), sha256.New()
	sent := make(chan error, 1)
	go func() {
		err := send(c, up, seed, upSum)
		if err != nil {
			c.Close()
		}
		sent <- err
	}()
	rest := bufio.NewReaderSize(c, 1<<18)
	if err := receive(rest, down, downSum); err != nil {
		c.Close()
		return fail("receive", errors.Join(err, <-sent))
	}
	if err := <-sent; err != nil {
		return fail("send", err)
	}
	line, err := rest.ReadBytes('\n')
	if err != nil {
		return fail("the server's verdict", err)
	}
	r.Elapsed = time.Since(begin)
	var v tcpVerdict
	if err := json.Unmarshal(line, &v); err != nil {
		return fail("the server's verdict", err)
	}
	r.Server, r.SeenAs = v.Server, v.SeenAs
	if info := tcpInfo(c); info != nil {
		r.Retransmits, r.RTT = info.Total_retrans, time.Duration(info.Rtt)*time.Microsecond
	}
	switch {
	case !bytes.Equal(v.Received, upSum.Sum(nil)):
		return fail("verify", fmt.Errorf("the %d bytes that arrived at %s are not those that were sent (SHA-256 differs)", up, v.Server))
	case !bytes.Equal(v.Sent, downSum.Sum(nil)):
		return fail("verify", fmt.Errorf("the %d bytes that arrived from %s are not those that were sent (SHA-256 differs)", down, v.Server))
	}
	return r, nil
}

// TransferTCP is ServeTCP at one host and TCP from the other.
func TransferTCP(ctx context.Context, from, to *Host, v6 bool, up, down int64) (TCPResult, error) {
	s, err := to.ServeTCP(0)
	if err != nil {
		return TCPResult{}, err
	}
	defer s.Close()
	return from.TCP(ctx, netip.AddrPortFrom(to.Addr(v6), s.Port()), up, down)
}

// DialTCP connects from inside the namespace; the connection works from anywhere.
func (h *Host) DialTCP(ctx context.Context, to netip.AddrPort) (c *net.TCPConn, err error) {
	err = h.Do(func() error {
		// One literal address: package net connects on this thread.
		d := net.Dialer{Timeout: 10 * time.Second}
		conn, err := d.DialContext(ctx, tcpNetwork(to.Addr()), to.String())
		if err == nil {
			c = conn.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

// ListenTCP listens inside the namespace.
func (h *Host) ListenTCP(at netip.AddrPort) (l *net.TCPListener, err error) {
	err = h.Do(func() error {
		l, err = net.ListenTCP(tcpNetwork(at.Addr()), net.TCPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: listen on %v in %s: %w", at, h.Name, err)
	}
	return l, nil
}

func tcpNetwork(a netip.Addr) string {
	if a.Is4() {
		return "tcp4"
	}
	return "tcp6"
}

func addrPort(a net.Addr) netip.AddrPort {
	var p netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		p = a.AddrPort()
	case *net.UDPAddr:
		p = a.AddrPort()
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// noise is what transfers are made of: random, so that no two places look alike.
var noise = sync.OnceValue(func() []byte {
	b := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
})

// send writes n bytes that depend on seed. Each block of 128 KiB starts with its own number.
func send(w io.Writer, n int64, seed uint64, sum hash.Hash) error {
	source := noise()
	b := make([]byte, 128<<10)
	for block := uint64(0); n > 0; block++ {
		start := int((seed + block*4099) % uint64(len(source)-len(b)))
		copy(b, source[start:])
		binary.BigEndian.PutUint64(b, seed+block)
		part := b[:min(n, int64(len(b)))]
		sum.Write(part)
		if _, err := w.Write(part); err != nil {
			return err
		}
		n -= int64(len(part))
	}
	return nil
}

// receive reads n bytes.
func receive(r io.Reader, n int64, sum hash.Hash) error {
	b := make([]byte, 256<<10)
	for n > 0 {
		size, err := r.Read(b[:min(n, int64(len(b)))])
		sum.Write(b[:size])
		n -= int64(size)
		if err != nil && n > 0 {
			return fmt.Errorf("with %d bytes still to come: %w", n, err)
		}
	}
	return nil
}

// tcpInfo is TCP_INFO, nil if it cannot be had.
func tcpInfo(c *net.TCPConn) (info *unix.TCPInfo) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err != nil {
		return nil
	}
	return info
}
