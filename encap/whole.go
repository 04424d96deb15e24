package encap

import (
	"encoding/binary"
	"net/netip"
)

// Whole is the complete outer header of superframes that leave encapsulated but uncut (mechanism 1): a
// TAP takes them with metadata that tells the kernel, or the NIC, how to cut them late.
//
//	Ethernet │ outer IPv4 or IPv6 │ UDP │ VXLAN and inner Ethernet, or nothing │ inner IP …
//
// It is immutable but for SetLink.
type Whole struct {
	b      [EthernetLen + IPv6Len + UDPLen + vxlanHeaderLen]byte
	l3, l4 int    // offsets of the outer IP and UDP headers
	n      int    // length of all
	sum    uint32 // of the outer pseudo-header without the length
}

// NewWhole returns the header of datagrams from src to dst with h in front of the inner packet. The
// link-layer addresses are zero until SetLink.
func NewWhole(src, dst netip.AddrPort, h Header) Whole {
	w := Whole{l3: EthernetLen}
	eth := Ethernet(w.b[:])
	var p Packet
	p.Src, p.Dst, p.Proto = src.Addr().Unmap(), dst.Addr().Unmap(), ProtoUDP
	ip := w.b[w.l3:]
	if p.Dst.Is4() {
		p.Version = 4
		w.l4 = w.l3 + IPv4Len
		eth.Put(MAC{}, MAC{}, EtherTypeIPv4)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, outerTTL, ProtoUDP // DF always
		s, d := p.Src.As4(), p.Dst.As4()
		copy(ip[12:], s[:])
		copy(ip[16:], d[:])
	} else {
		p.Version = 6
		w.l4 = w.l3 + IPv6Len
		eth.Put(MAC{}, MAC{}, EtherTypeIPv6)
		ip[0], ip[6], ip[7] = 0x60, ProtoUDP, outerTTL
		s, d := p.Src.As16(), p.Dst.As16()
		copy(ip[8:], s[:])
		copy(ip[24:], d[:])
	}
	binary.BigEndian.PutUint16(w.b[w.l4:], src.Port())
	binary.BigEndian.PutUint16(w.b[w.l4+2:], dst.Port())
	w.n = w.l4 + UDPLen + h.Len()
	h.Put(w.b[w.l4+UDPLen:], false)
	w.sum = PseudoSum(&p, 0)
	return w
}

// outerTTL is that of the kernel's own sockets (net.ipv4.ip_default_ttl).
const outerTTL = 64

// SetLink sets the addresses of the link: our uplink's and the next hop's.
func (w *Whole) SetLink(src, dst MAC) {
	copy(w.b[0:], dst[:])
	copy(w.b[6:], src[:])
}

// Len is the header's length.
func (w *Whole) Len() int { return w.n }

// OuterL4 is the offset of the outer UDP header.
func (w *Whole) OuterL4() int { return w.l4 }

// Outer6 reports whether the outer header is IPv6.
func (w *Whole) Outer6() bool { return w.l4-w.l3 == IPv6Len }

// Fits reports whether an inner packet of n bytes makes a datagram that IP can carry.
func (w *Whole) Fits(n int) bool { return w.n-w.l3+n <= 0xffff }

// Put writes the header in front of an inner packet of n bytes, for which Fits holds, to dst[:Len()]. The
// outer UDP checksum holds the sum of the pseudo-header: whoever cuts completes it.
func (w *Whole) Put(dst []byte, n int, tos uint8, inner6 bool) {
	dst = dst[:w.n]
	copy(dst, w.b[:w.n])
	udp := w.n - w.l4 + n
	ip := dst[w.l3:]
	if w.Outer6() {
		ip[0] |= tos >> 4
		ip[1] = tos << 4
		binary.BigEndian.PutUint16(ip[4:], uint16(udp))
	} else {
		ip[1] = tos
		binary.BigEndian.PutUint16(ip[2:], uint16(IPv4Len+udp))
		binary.BigEndian.PutUint16(ip[10:], ^Fold(Sum(ip[:IPv4Len], 0)))
	}
	u := dst[w.l4:]
	binary.BigEndian.PutUint16(u[4:], uint16(udp))
	binary.BigEndian.PutUint16(u[6:], Fold(w.sum+uint32(udp)))
	if inner6 && w.n > w.l4+UDPLen {
		binary.BigEndian.PutUint16(dst[w.n-2:], EtherTypeIPv6)
	}
}
