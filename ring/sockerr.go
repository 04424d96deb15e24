//go:build linux

package ring

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrorOrigin is who reported a SocketError: SO_EE_ORIGIN_* of
// linux/errqueue.h.
type ErrorOrigin uint8

// The origins.
const (
	OriginNone  ErrorOrigin = unix.SO_EE_ORIGIN_NONE
	OriginLocal ErrorOrigin = unix.SO_EE_ORIGIN_LOCAL // our own stack: longer than the device's MTU
	OriginICMP  ErrorOrigin = unix.SO_EE_ORIGIN_ICMP
	OriginICMP6 ErrorOrigin = unix.SO_EE_ORIGIN_ICMP6
)

func (o ErrorOrigin) String() string {
	switch o {
	case OriginNone:
		return "none"
	case OriginLocal:
		return "local"
	case OriginICMP:
		return "icmp"
	case OriginICMP6:
		return "icmpv6"
	}
	return "other"
}

// SocketError is one error about a datagram of ours. The kernel has matched the
// quoted packet with our socket, but anyone who knows our addresses can forge one.
type SocketError struct {
	Peer       netip.AddrPort // whom the quoted datagram was for
	Offender   netip.Addr     // who sent the ICMP error; zero for local ones
	Origin     ErrorOrigin
	Type, Code uint8         // of ICMP
	Errno      syscall.Errno // what the kernel makes of it
	MTU        int           // EMSGSIZE: the next hop's MTU; else 0
	Quoted     []byte        // what is quoted behind the UDP (raw socket: IP) header
}

// errorsPerDrain bounds one drain: a flood of ICMP errors must not hold the
// worker. What is left raises the event again.
const errorsPerDrain = 64

// errorQueue receives one error at a time, into memory that is allocated once.
type errorQueue struct {
	hdr     unix.Msghdr
	iov     unix.Iovec
	from    [unix.SizeofSockaddrInet6]byte
	control [256]byte
	quoted  [576]byte
	err     SocketError
}

func (q *errorQueue) init() {
	q.iov.Base = &q.quoted[0]
	q.iov.SetLen(len(q.quoted))
	q.hdr.Iov = &q.iov
	q.hdr.SetIovlen(1)
	q.hdr.Name = &q.from[0]
	q.hdr.Control = &q.control[0]
}

// Errors drains as the Socket interface says.
func (e *endpoint) Errors(fn func(*SocketError)) (n int) {
	q := &e.eq
	for n < errorsPerDrain {
		q.hdr.Namelen = uint32(len(q.from))
		q.hdr.SetControllen(len(q.control))
		q.hdr.Flags = 0
		got, errno := sysRecvmsg(e.fd, &q.hdr, unix.MSG_ERRQUEUE)
		if errno != 0 {
			break
		}
		n++
		q.err = SocketError{
			Peer:   parseSockaddr(q.from[:min(int(q.hdr.Namelen), len(q.from))]),
			Quoted: q.quoted[:min(got, len(q.quoted))],
		}
		if parseError(q.control[:min(int(q.hdr.Controllen), len(q.control))], &q.err) {
			fn(&q.err)
		}
	}
	// The queue's head sets the socket's pending error, which would fail the
	// next call and raises the event as long as it is there.
	_, _ = unix.GetsockoptInt(e.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return n
}

// parseError finds the sock_extended_err (linux/errqueue.h: errno u32, origin,
// type, code, pad u8, info u32, data u32) and, behind it, the offender's address.
func parseError(b []byte, e *SocketError) bool {
	for {
		c, rest, ok := nextControl(b)
		if !ok {
			return false
		}
		b = rest
		v4 := c.level == unix.SOL_IP && c.typ == unix.IP_RECVERR
		v6 := c.level == unix.SOL_IPV6 && c.typ == unix.IPV6_RECVERR
		if !v4 && !v6 || len(c.data) < 16 {
			continue
		}
		e.Errno = syscall.Errno(binary.NativeEndian.Uint32(c.data))
		e.Origin = ErrorOrigin(c.data[4])
		e.Type, e.Code = c.data[5], c.data[6]
		if e.Errno == unix.EMSGSIZE {
			e.MTU = int(binary.NativeEndian.Uint32(c.data[8:]))
		}
		e.Offender = parseSockaddr(c.data[16:]).Addr()
		return true
	}
}
