//go:build linux

package ring

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Datagrams is a batch to be sent by a Socket: each message has a receiver, a
// TOS, the size of its segments and the caller's bytes by reference.
type Datagrams struct {
	batch
	meta []datagramMeta
}

type datagramMeta struct {
	to      *Sockaddr
	tos     uint8
	segment uint16
	control [2 * cmsgSpace4]byte // TOS or traffic class, then UDP_SEGMENT; each if it is not zero
}

// NewDatagrams makes room for a number of messages and of iovecs.
func NewDatagrams(messages, iovecs int) *Datagrams {
	b := newBatch(messages, iovecs)
	return &Datagrams{batch: b, meta: make([]datagramMeta, len(b.msgs))}
}

// Reset forgets all messages; what was appended is no longer borrowed.
func (d *Datagrams) Reset() { d.reset() }

// Begin opens the next message; false if there is no room for one with payload.
// to is borrowed until Send has returned. segment cuts the message into
// datagrams of that many bytes, the last one shorter (UDP_SEGMENT); 0: one
// datagram. A raw socket knows no segments.
func (d *Datagrams) Begin(to *Sockaddr, tos uint8, segment int) bool {
	if d.nmsg == len(d.msgs) || d.niov == len(d.iovs) {
		return false
	}
	m := &d.meta[d.nmsg]
	h := d.begin()
	h.Name, h.Namelen = &to.raw[0], to.len
	m.to, m.tos, m.segment = to, tos, uint16(segment)
	m.put(h)
	return true
}

// put writes the control messages and points h at them.
func (m *datagramMeta) put(h *unix.Msghdr) {
	rest := m.control[:]
	var data []byte
	if m.tos != 0 {
		// int, ip_cmsg_send and ip6_datagram_send_ctl.
		if m.to.is6() {
			data, rest = putControl(rest, unix.SOL_IPV6, unix.IPV6_TCLASS, 4)
		} else {
			data, rest = putControl(rest, unix.SOL_IP, unix.IP_TOS, 4)
		}
		binary.NativeEndian.PutUint32(data, uint32(m.tos))
	}
	if m.segment != 0 {
		// u16, __udp_cmsg_send.
		data, rest = putControl(rest, unix.SOL_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(data, m.segment)
	}
	n := len(m.control) - len(rest)
	h.Control = nil
	if n > 0 {
		h.Control = &m.control[0]
	}
	h.SetControllen(n)
}

// Append puts b behind what the open message holds. b is borrowed until Send
// has returned. false: no iovec is left, and the message is as it was.
func (d *Datagrams) Append(b []byte) bool { return d.append(b) }

// Drop takes the last message back.
func (d *Datagrams) Drop() { d.drop() }

// Len is the number of messages.
func (d *Datagrams) Len() int { return d.nmsg }

// Bytes is the length of message i, all segments together.
func (d *Datagrams) Bytes(i int) int { return int(d.bytes[i]) }

// To is the receiver of message i.
func (d *Datagrams) To(i int) *Sockaddr { return d.meta[i].to }

// TOS is the TOS or traffic class of message i.
func (d *Datagrams) TOS(i int) uint8 { return d.meta[i].tos }

// Segment is the segment size of message i, 0 for none.
func (d *Datagrams) Segment(i int) int { return int(d.meta[i].segment) }

// CopyTo copies message i into dst and returns how many bytes fitted. It is for
// captures and tests.
func (d *Datagrams) CopyTo(i int, dst []byte) int { return copyTo(dst, d.message(i)) }
