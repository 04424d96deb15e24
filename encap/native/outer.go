package native

import (
	"encoding/binary"
	"net/netip"

	"github.com/penstock-net/penstock/encap"
)

// Outer is what stands in front of a burst that leaves by the tcp carrier, ready for a device: Ethernet, IP and TCP. It is
// immutable but for SetLink.
type Outer struct {
	b    [MaxOuter]byte
	l4   int    // offset of the TCP header
	port uint16 // the receiver's
	sum  uint32 // of the pseudo-header without the length
}

// MaxOuter is the longest outer header.
const MaxOuter = encap.EthernetLen + encap.IPv6Len + TCPLen

// NewOuter is the header of what goes from src to port of dst, two addresses of one family. The addresses of the link are zero until SetLink.
func NewOuter(src, dst netip.Addr, port uint16) Outer {
	const ttl = 64
	o := Outer{port: port}
	var p encap.Packet
	p.Src, p.Dst, p.Proto = src.Unmap(), dst.Unmap(), encap.ProtoTCP
	eth, ip := encap.Ethernet(o.b[:]), o.b[encap.EthernetLen:]
	if p.Dst.Is4() {
		p.Version, o.l4 = 4, encap.EthernetLen+encap.IPv4Len
		eth.Put(encap.MAC{}, encap.MAC{}, encap.EtherTypeIPv4)
		ip[0], ip[6], ip[8], ip[9] = 0x45, 0x40, ttl, encap.ProtoTCP // DF always
		s, d := p.Src.As4(), p.Dst.As4()
		copy(ip[12:], s[:])
		copy(ip[16:], d[:])
	} else {
		p.Version, o.l4 = 6, encap.EthernetLen+encap.IPv6Len
		eth.Put(encap.MAC{}, encap.MAC{}, encap.EtherTypeIPv6)
		ip[0], ip[6], ip[7] = 0x60, encap.ProtoTCP, ttl
		s, d := p.Src.As16(), p.Dst.As16()
		copy(ip[8:], s[:])
		copy(ip[24:], d[:])
	}
	o.sum = encap.PseudoSum(&p, 0)
	return o
}

// SetLink sets the addresses of the link: our uplink's and the next hop's.
func (o *Outer) SetLink(src, dst encap.MAC) {
	copy(o.b[0:], dst[:])
	copy(o.b[6:], src[:])
}

// Len is the header's length.
func (o *Outer) Len() int { return o.l4 + TCPLen }

// Put writes the header of n bytes to dst[:Len()]: of a burst, of its piece at an offset, or, with length 0, of a message. The TCP
// checksum is the sum of the pseudo-header, which whoever cuts completes.
func (o *Outer) Put(dst []byte, tag uint16, start uint32, length, offset, n int, tos uint8) {
	dst = dst[:o.l4+TCPLen]
	copy(dst, o.b[:o.l4])
	ip, size := dst[encap.EthernetLen:], TCPLen+n
	if o.l4 == encap.EthernetLen+encap.IPv6Len {
		ip[0] |= tos >> 4
		ip[1] = tos << 4
		binary.BigEndian.PutUint16(ip[4:], uint16(size))
	} else {
		ip[1] = tos
		binary.BigEndian.PutUint16(ip[2:], uint16(encap.IPv4Len+size))
		binary.BigEndian.PutUint16(ip[10:], ^encap.Fold(encap.Sum(ip[:encap.IPv4Len], 0)))
	}
	tcp := dst[o.l4:]
	PutTCP(tcp, tag, o.port, start, length, offset)
	binary.BigEndian.PutUint16(tcp[16:], encap.Fold(o.sum+uint32(size)))
}

// Virtio is the virtio header for n bytes behind this header, of which a device makes packets of piece bytes each.
func (o *Outer) Virtio(n, piece int) encap.Virtio {
	v := encap.Virtio{Flags: encap.NeedsCsum, HdrLen: uint16(o.Len()), CsumStart: uint16(o.l4), CsumOffset: 16}
	if n > piece {
		v.GSOType, v.GSOSize = encap.GSOTCPv4, uint16(piece)
		if o.l4 == encap.EthernetLen+encap.IPv6Len {
			v.GSOType = encap.GSOTCPv6
		}
	}
	return v
}
