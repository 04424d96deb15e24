package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// overhead is what stands in front of an echo's payload: IP and UDP header, or IP and ICMP header, which are as long.
func overhead(a netip.Addr) int {
	if a.Is6() {
		return 48
	}
	return 28
}

// asker sends an echo to a peer's responder and waits for its answer.
type asker struct {
	conn  *net.UDPConn
	peer  netip.Addr
	token uint64
	seq   uint64
	buf   []byte
	cut   *cutter // for questions that do not pass whole; nil: all are sent whole
}

// Close ends the asker's sockets.
func (a *asker) Close() error {
	if a.cut != nil {
		a.cut.close()
	}
	return a.conn.Close()
}

func (p *Prober) ask(ctx context.Context, from, to netip.Addr) (*asker, error) {
	conn, err := dialUDP(ctx, from, netip.AddrPortFrom(to, Port), options{device: p.device})
	if err != nil {
		return nil, err
	}
	return &asker{conn: conn, peer: to, token: rand.Uint64(), buf: make([]byte, 1<<16)}, nil
}

// errRefused says that the peer's host is there, and no responder on it.
var errRefused = errors.New("the peer's host answers, but nobody listens on its probe port")

// errSilent says that no answer came in time.
var errSilent = errors.New("no answer")

// echo sends a packet of size bytes, IP header included, and wants one of back bytes; it returns the round trip and the
// responder's clock less ours.
func (a *asker) echo(size, back int, timeout time.Duration) (rtt, clock time.Duration, err error) {
	a.seq++
	n := max(size-overhead(a.peer), headerLen)
	p := a.buf[:n]
	clear(p)
	message{kind: echo, want: uint16(max(back-overhead(a.peer), headerLen)), token: a.token, seq: a.seq}.put(p)
	start := time.Now()
	if err := a.send(p); err != nil && !errors.Is(err, unix.ECONNREFUSED) { // that is about an earlier one
		return 0, 0, fmt.Errorf("an echo of %d bytes cannot be sent: %w", size, err)
	}
	a.conn.SetReadDeadline(start.Add(timeout))
	for {
		n, err := a.conn.Read(a.buf)
		now := time.Now()
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			return 0, 0, errRefused
		case errors.Is(err, net.ErrClosed):
			return 0, 0, err
		case err != nil && !now.Before(start.Add(timeout)):
			return 0, 0, errSilent
		case err != nil:
			continue // an ICMP error about a packet that was too big
		}
		if m, ok := parse(a.buf[:n]); ok && m.kind == echoAnswer && m.token == a.token && m.seq == a.seq {
			rtt = now.Sub(start)
			return rtt, time.Unix(0, int64(m.a)).Sub(now) + rtt/2, nil
		}
	}
}

func (a *asker) send(p []byte) error {
	if a.cut != nil && len(p)+overhead(a.peer) > a.cut.size {
		return a.cut.send(p)
	}
	_, err := a.conn.Write(p)
	return err
}

// pinger sends ICMP echoes; every host answers them by itself.
type pinger struct {
	conn net.PacketConn
	to   netip.Addr
	id   int
	seq  int
	buf  []byte
}

// ping opens a pinger. With device its packets go there only.
func ping(ctx context.Context, from, to netip.Addr, device string) (*pinger, error) {
	proto := "ip4:icmp"
	if to.Is6() {
		proto = "ip6:ipv6-icmp"
	}
	lc := net.ListenConfig{Control: options{device: device}.control(to.Is6())}
	conn, err := lc.ListenPacket(ctx, proto, from.String())
	if err != nil {
		return nil, fmt.Errorf("a raw socket for ICMP on %s cannot be opened: %w", from, err)
	}
	return &pinger{conn: conn, to: to, id: rand.IntN(1 << 16), buf: make([]byte, 1<<16)}, nil
}

// echo sends a packet of size bytes, IP header included, and waits for its answer, which is as long.
func (p *pinger) echo(size int, timeout time.Duration) (time.Duration, error) {
	p.seq = (p.seq + 1) & 0xffff
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: p.seq, Data: make([]byte, max(size-overhead(p.to), 0))}}
	if p.to.Is6() {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel fills in the checksum
	}
	b, err := m.Marshal(nil)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: p.to.AsSlice()}); err != nil {
		return 0, fmt.Errorf("an ICMP echo of %d bytes cannot be sent: %w", size, err)
	}
	p.conn.SetReadDeadline(start.Add(timeout))
	for {
		n, from, err := p.conn.ReadFrom(p.buf)
		if errors.Is(err, net.ErrClosed) {
			return 0, err
		}
		if !time.Now().Before(start.Add(timeout)) {
			return 0, errSilent
		}
		if err != nil {
			continue // an error that came back for another packet
		}
		if a, ok := from.(*net.IPAddr); ok && p.answers(a, p.buf[:n]) {
			return time.Since(start), nil
		}
	}
}

// answers says whether a message is the answer to the last echo.
func (p *pinger) answers(from *net.IPAddr, b []byte) bool {
	if a, ok := netip.AddrFromSlice(from.IP); !ok || a.Unmap() != p.to {
		return false
	}
	return isEchoReply(b, p.to.Is6(), p.id, p.seq)
}

// isEchoReply looks into an ICMP message from the wire.
func isEchoReply(b []byte, v6 bool, id, seq int) bool {
	proto, want := 1, icmp.Type(ipv4.ICMPTypeEchoReply)
	if v6 {
		proto, want = 58, ipv6.ICMPTypeEchoReply
	}
	m, err := icmp.ParseMessage(proto, b)
	if err != nil || m.Type != want {
		return false
	}
	e, ok := m.Body.(*icmp.Echo)
	return ok && e.ID == id && e.Seq == seq
}
