package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Echo is a series of ICMP echoes; zero values mean one of 56 bytes, a second each.
type Echo struct {
	Size, Count int // bytes of payload; packets
	TTL, TOS    int
	DF          bool
	Source      netip.Addr
	Interval    time.Duration // between packets; each waits for its answer anyway
	Timeout     time.Duration // for each answer
}

// EchoResult is what came back.
type EchoResult struct {
	Sent, Received int
	RTT            []time.Duration
	TTL, TOS       int         // of the last answer
	Errors         []ICMPError // about these echoes
}

// ICMPError is an ICMP error message.
type ICMPError struct {
	Version, Type, Code int
	MTU                 int // of fragmentation needed and packet too big
	From                netip.Addr
	Quoted              []byte // the packet it is about, as far as it goes
}

func (e ICMPError) String() string {
	return fmt.Sprintf("ICMPv%d type %d code %d MTU %d from %v", e.Version, e.Type, e.Code, e.MTU, e.From)
}

var pingID atomic.Uint32

// Ping sends up to six echoes, each waited for twice as long as the one before, and returns nil with the first answer: what is
// lost costs half a second, and a busy machine gets half a minute.
func (h *Host) Ping(to netip.Addr) error {
	var last EchoResult
	for wait := 500 * time.Millisecond; wait <= 16*time.Second; wait *= 2 {
		r, err := h.PingWith(to, Echo{Timeout: wait})
		if err == nil && r.Received > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			return err
		}
		last = r
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("ping from %s to %v: %w to six echoes %v", h.Name, to, ErrNoAnswer, last.Errors)
}

// PingContext is Ping that does not begin when ctx is done.
func (h *Host) PingContext(ctx context.Context, to netip.Addr) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return h.Ping(to)
}

// Silent tells whether nobody answers three echoes.
func (h *Host) Silent(to netip.Addr) bool {
	r, err := h.PingWith(to, Echo{Count: 3, Timeout: 200 * time.Millisecond})
	return err != nil || r.Received == 0
}

// PingWith sends the echoes one after the other. The error is for what could not be sent; silence and ICMP
// errors are results.
func (h *Host) PingWith(to netip.Addr, e Echo) (r EchoResult, err error) {
	if e.Count == 0 {
		e.Count = 1
	}
	if e.Size == 0 {
		e.Size = 56
	}
	if e.Timeout == 0 {
		e.Timeout = time.Second
	}
	fail := func(err error) (EchoResult, error) {
		return r, fmt.Errorf("ping from %s to %v: %w", h.Name, to, err)
	}
	c, err := h.icmpSocket(to, e)
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	id := uint16(pingID.Add(1))
	for seq := range e.Count {
		if seq > 0 {
			time.Sleep(e.Interval)
		}
		payload := make([]byte, e.Size)
		copy(payload, noise()[int(id)+seq:])
		message := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(id), Seq: seq, Data: payload}}
		if to.Is6() {
			message.Type = ipv6.ICMPTypeEchoRequest // the kernel fills in the checksum
		}
		b, err := message.Marshal(nil)
		if err != nil {
			return fail(err)
		}
		sent := time.Now()
		r.Sent++
		if _, err := c.WriteToIP(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			return fail(err)
		}
		if err := awaitEcho(c, to, id, uint16(seq), payload, sent, e.Timeout, &r); err != nil {
			return fail(err)
		}
	}
	return r, nil
}

// icmpSocket is a raw socket with the echo's options.
func (h *Host) icmpSocket(to netip.Addr, e Echo) (c *net.IPConn, err error) {
	network := "ip4:1"
	if to.Is6() {
		network = "ip6:58"
	}
	var local *net.IPAddr
	if e.Source.IsValid() {
		local = &net.IPAddr{IP: e.Source.AsSlice()}
	}
	err = h.Do(func() error {
		c, err = net.ListenIP(network, local)
		return err
	})
	if err != nil {
		return nil, err
	}
	forceBuffers(c, 4<<20)
	options := [][3]int{}
	pmtu := unix.IP_PMTUDISC_DONT
	if e.DF {
		pmtu = unix.IP_PMTUDISC_PROBE // DF, and the size is not held back by what this host believes
	}
	if to.Is4() {
		options = append(options, [3]int{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, pmtu},
			[3]int{unix.IPPROTO_IP, unix.IP_RECVTTL, 1}, [3]int{unix.IPPROTO_IP, unix.IP_RECVTOS, 1},
			[3]int{unix.IPPROTO_IP, unix.IP_TOS, e.TOS})
		if e.TTL != 0 {
			options = append(options, [3]int{unix.IPPROTO_IP, unix.IP_TTL, e.TTL})
		}
	} else {
		options = append(options, [3]int{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, pmtu},
			[3]int{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1}, [3]int{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1},
			[3]int{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, e.TOS})
		if e.TTL != 0 {
			options = append(options, [3]int{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, e.TTL})
		}
	}
	for _, o := range options {
		if err := setsockopt(c, o[0], o[1], o[2]); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// awaitEcho reads until the answer to one echo, an ICMP error about it, or the timeout.
func awaitEcho(c *net.IPConn, to netip.Addr, id, seq uint16, payload []byte, sent time.Time, timeout time.Duration, r *EchoResult) error {
	b, oob := make([]byte, 65536), make([]byte, 256)
	c.SetReadDeadline(sent.Add(timeout))
	for {
		n, oobn, _, from, err := c.ReadMsgIP(b, oob)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		now := time.Now()
		m, ttl, tos := b[:n], 0, 0
		reply := byte(0)
		if to.Is4() { // a raw IPv4 socket hands over the IP header too
			if n < 20 || n < int(b[0]&15)*4 {
				continue
			}
			ttl, tos = int(b[8]), int(b[1])
			m = b[int(b[0]&15)*4 : n]
		} else {
			reply = byte(ipv6.ICMPTypeEchoReply)
			ttl, tos = hopLimitAndClass(oob[:oobn])
		}
		if len(m) < 8 {
			continue
		}
		source, _ := netip.AddrFromSlice(from.IP)
		source = source.Unmap()
		if m[0] == reply {
			if binary.BigEndian.Uint16(m[4:]) != id || binary.BigEndian.Uint16(m[6:]) != seq {
				continue
			}
			if !bytes.Equal(m[8:], payload) {
				return fmt.Errorf("the answer of %v has other contents than the question", source)
			}
			if source != to {
				return fmt.Errorf("the answer came from %v", source)
			}
			r.Received++
			r.RTT = append(r.RTT, now.Sub(sent))
			r.TTL, r.TOS = ttl, tos
			return nil
		}
		if e, ok := aboutEcho(m, to, id, seq); ok {
			e.From = source
			r.Errors = append(r.Errors, e)
			return nil
		}
	}
}

// aboutEcho reports whether an ICMP message is an error that quotes this echo.
func aboutEcho(m []byte, to netip.Addr, id, seq uint16) (e ICMPError, ok bool) {
	e = ICMPError{Version: 4, Type: int(m[0]), Code: int(m[1]), Quoted: bytes.Clone(m[8:])}
	quoted := m[8:]
	switch {
	case to.Is4():
		if t := m[0]; t != 3 && t != 4 && t != 11 && t != 12 || len(quoted) < 28 {
			return e, false
		}
		if m[0] == 3 && m[1] == 4 {
			e.MTU = int(binary.BigEndian.Uint16(m[6:]))
		}
		header := int(quoted[0]&15) * 4
		if len(quoted) < header+8 {
			return e, false
		}
		quoted = quoted[header:]
	default:
		if m[0] >= 128 || len(quoted) < 48 {
			return e, false
		}
		e.Version = 6
		if m[0] == 2 {
			e.MTU = int(binary.BigEndian.Uint32(m[4:]))
		}
		if quoted[6] == 44 { // a fragment header
			if len(quoted) < 56 {
				return e, false
			}
			quoted = quoted[8:]
		}
		quoted = quoted[40:]
	}
	return e, binary.BigEndian.Uint16(quoted[4:]) == id && binary.BigEndian.Uint16(quoted[6:]) == seq
}

// hopLimitAndClass reads IPV6_HOPLIMIT and IPV6_TCLASS.
func hopLimitAndClass(oob []byte) (ttl, tos int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, 0
	}
	for _, m := range messages {
		if m.Header.Level != unix.IPPROTO_IPV6 || len(m.Data) < 4 {
			continue
		}
		v := int(binary.NativeEndian.Uint32(m.Data))
		switch m.Header.Type {
		case unix.IPV6_HOPLIMIT:
			ttl = v
		case unix.IPV6_TCLASS:
			tos = v
		}
	}
	return ttl, tos
}
