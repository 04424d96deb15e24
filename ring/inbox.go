//go:build linux

package ring

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Inbox receives datagrams: a fixed number of messages, each with its own
// buffer, sender and control messages.
type Inbox struct {
	msgs []mmsghdr
	iovs []unix.Iovec
	meta []inboxMeta
	bufs [][]byte
	n    int // messages of the last Recv
}

type inboxMeta struct {
	from    [unix.SizeofSockaddrInet6]byte
	control [2 * cmsgSpace4]byte // TOS or traffic class, and UDP_GRO
}

// Datagram is one received message, lent until the next Recv into its Inbox.
type Datagram struct {
	Data      []byte // a raw IPv4 socket's starts with the outer IPv4 header
	From      netip.AddrPort
	TOS       uint8 // outer TOS or traffic class
	Segment   int   // UDP_GRO: Data is several datagrams of this many bytes; 0: one
	Truncated bool  // Data is cut to the Inbox's size
}

// NewInbox makes an inbox of so many messages, each of up to size bytes: 65,535
// where UDP_GRO or superframes are to be received. Pages become resident when
// they are first used.
func NewInbox(messages, size int) *Inbox {
	messages, size = max(messages, 1), max(size, 1)
	// An odd number of cache lines apart, so that the beginnings of the
	// buffers do not compete for the same sets of the cache.
	stride := ((size+cacheLine-1)/cacheLine | 1) * cacheLine
	mem := NewSlab(messages * stride).Alloc(messages * stride)
	in := &Inbox{
		msgs: make([]mmsghdr, messages),
		iovs: make([]unix.Iovec, messages),
		meta: make([]inboxMeta, messages),
		bufs: make([][]byte, messages),
	}
	for i := range in.msgs {
		in.bufs[i] = mem[i*stride : i*stride+size : i*stride+size]
		in.iovs[i].Base = &in.bufs[i][0]
		in.iovs[i].SetLen(size)
		h := &in.msgs[i].Hdr
		h.Iov = &in.iovs[i]
		h.SetIovlen(1)
		h.Name = &in.meta[i].from[0]
		h.Control = &in.meta[i].control[0]
		in.arm(i)
	}
	return in
}

// arm makes message i ready to receive: the kernel overwrites these fields.
func (in *Inbox) arm(i int) {
	h := &in.msgs[i].Hdr
	h.Namelen = uint32(len(in.meta[i].from))
	h.SetControllen(len(in.meta[i].control))
	h.Flags = 0
}

// Len is the number of messages of the last Recv.
func (in *Inbox) Len() int { return in.n }

// Cap is the number of messages one Recv can take.
func (in *Inbox) Cap() int { return len(in.msgs) }

// Datagram is message i of the last Recv.
func (in *Inbox) Datagram(i int) Datagram {
	m, meta := &in.msgs[i], &in.meta[i]
	n := min(int(m.Len), len(in.bufs[i]))
	d := Datagram{
		Data:      in.bufs[i][:n:n],
		From:      parseSockaddr(meta.from[:min(int(m.Hdr.Namelen), len(meta.from))]),
		Truncated: m.Hdr.Flags&unix.MSG_TRUNC != 0,
	}
	d.TOS, d.Segment = parseInbox(meta.control[:min(int(m.Hdr.Controllen), len(meta.control))])
	return d
}

// recv fills the inbox from fd by one recvmmsg.
func (in *Inbox) recv(fd int) (int, unix.Errno) {
	for i := range in.n {
		in.arm(i)
	}
	n, errno := sysRecvmmsg(fd, in.msgs)
	if errno != 0 {
		n = 0
	}
	in.n = n
	return n, errno
}
