package encap

import "encoding/binary"

// Part makes the headers of a TCP superframe that is some of another one: what is left of it on one side of a loss, or
// half of one that is too long for its carrier.
//
// h is a copy of the superframe's headers; the part is n bytes long with them and begins from bytes into the payload; p is
// the superframe's Packet, v its virtio header; last says that the part reaches to its end. Part sets lengths, sequence
// number, flags, identification and checksums, and returns what cuts the part: v, without GSO if it is one segment.
// The L4 checksum stays partial. What p says of lengths is not true of the part: parse it anew.
func Part(h []byte, n int, p *Packet, v Virtio, from int, last bool) Virtio {
	if p.Version == 6 {
		IPv6(h).setPayloadLen(n - IPv6Len)
	} else {
		ip := IPv4(h)
		ip.setTotalLen(n)
		if v.GSOSize > 0 {
			binary.BigEndian.PutUint16(ip[4:6], ip.ID()+uint16(from/int(v.GSOSize)))
		}
		ip.updateChecksum()
	}
	l4 := TCP(h[p.L4:])
	l4.setSeq(l4.Seq() + uint32(from))
	if from > 0 {
		l4[13] &^= TCPCwr
		v.GSOType &^= GSOECN
	}
	if !last {
		l4[13] &^= TCPFin | TCPPsh
	}
	l4.setChecksum(Fold(pseudoSum(h, p, n-int(p.L4))))
	if n-int(p.L4)-l4.HeaderLen() <= int(v.GSOSize) {
		v.GSOType, v.GSOSize = GSONone, 0
	}
	v.Flags, v.CsumStart, v.CsumOffset = NeedsCsum, p.L4, tcpCsumOffset
	return v
}
