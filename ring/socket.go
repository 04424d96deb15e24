//go:build linux

package ring

import (
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Socket sends and receives encapsulated packets.
type Socket interface {
	// Send hands the messages of d from index from on to the kernel, in order,
	// and never blocks. n were taken; err says why message from+n was not, and is
	// nil if all were. An ICMP error about an earlier datagram, which the kernel
	// reports on the next call whatever that is for, is not taken for one: the
	// message is tried again. EAGAIN: the send buffer is full. EMSGSIZE: longer
	// than the way's MTU. EIO: the route cannot do UDP_SEGMENT (xfrm, or
	// before kernel 6.11 a device that computes no checksums).
	Send(d *Datagrams, from int) (n int, err error)

	// Recv fills the inbox with what waits and never blocks: 0 and no error
	// means that nothing is there, and fewer than Inbox.Cap that all is drained.
	Recv(in *Inbox) (n int, err error)

	// Errors drains the queue of ICMP errors, for an Event with Error set, and
	// returns how many there were. Each is lent during its call.
	Errors(fn func(*SocketError)) int

	// Local is the bound address; port 0 for a raw socket.
	Local() netip.AddrPort

	// FD is the descriptor to wait on, level triggered.
	FD() int

	Close() error
}

// endpoint is what UDP and Raw share.
type endpoint struct {
	fd     int
	local  netip.AddrPort
	errors bool // the kernel queues ICMP errors for us
	eq     errorQueue
}

// icmpTries is how often one message is tried when each time an ICMP error may
// have been pending. A pending error is cleared when it is reported, so that a
// second refusal is nearly always about the message itself.
const icmpTries = 3

// fromICMP tells whether errno can come from an ICMP error about something
// sent earlier: icmp_err_convert (net/ipv4/icmp.c) and icmpv6_err_convert.
func fromICMP(errno unix.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE, unix.ENOPROTOOPT,
		unix.EOPNOTSUPP, unix.EHOSTDOWN, unix.ENONET, unix.EPROTO, unix.EACCES:
		return true
	}
	return false
}

// Send sends as the Socket interface says.
func (e *endpoint) Send(d *Datagrams, from int) (n int, err error) {
	tries := 0
	for i := from; i < d.nmsg; {
		sent, errno := sysSendmmsg(e.fd, d.msgs[i:d.nmsg])
		if errno == 0 {
			i += sent
			tries = 0
			continue
		}
		if tries++; e.errors && tries < icmpTries && fromICMP(errno) {
			continue
		}
		return i - from, errno
	}
	return d.nmsg - from, nil
}

// Recv receives as the Socket interface says.
func (e *endpoint) Recv(in *Inbox) (n int, err error) {
	for tries := 1; ; tries++ {
		n, errno := in.recv(e.fd)
		if errno == 0 || errno == unix.EAGAIN {
			return n, nil
		}
		if tries >= icmpTries || !fromICMP(errno) {
			return 0, errno
		}
	}
}

// Local is the bound address.
func (e *endpoint) Local() netip.AddrPort { return e.local }

// FD is the descriptor.
func (e *endpoint) FD() int { return e.fd }

// Close closes the descriptor. A second call is EBADF, and closes nobody else's, who may have the number by then.
func (e *endpoint) Close() error { return closeOnce(&e.fd) }

func closeOnce(fd *int) error {
	n := *fd
	*fd = -1
	return unix.Close(n)
}

// option is one setsockopt of a set-up.
type option struct {
	level, name, value int
	what               string
}

func setOptions(fd int, opts []option) error {
	for _, o := range opts {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("%s: %w", o.what, err)
		}
	}
	return nil
}

// setFilter attaches a classic BPF program.
func setFilter(fd int, prog []bpf.Instruction) error {
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}

// dropAll is the filter of a socket that only sends.
var dropAll = []bpf.Instruction{bpf.RetConstant{Val: 0}}

// sendOnlyRecvBuffer still has room for the queue of ICMP errors, which counts
// against the receive buffer.
const sendOnlyRecvBuffer = 32 << 10

func localAddress(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), nil
	}
	return netip.AddrPort{}, unix.EAFNOSUPPORT
}

func bind(fd int, a netip.AddrPort) error {
	if a.Addr().Is4() {
		return unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()})
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()})
}
