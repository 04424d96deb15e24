package encap

import "encoding/binary"

// Part makes a TCP superframe out of some of another one's bytes, after a loss in its middle: the pod's TCP then sees
// an ordinary loss.
//
// b is a copy of the superframe's header with payload behind it that began from bytes into the payload; p is the
// superframe's Packet, v its virtio header; last says that the payload reaches to its end. Part sets lengths, sequence
// number, flags, identification and checksums, and returns what cuts the part: v, without GSO if it is one segment.
// The L4 checksum stays partial. What p says of lengths is no longer true of b: parse it again.
func Part(b []byte, p *Packet, v Virtio, from int, last bool) Virtio {
	q := *p
	q.Len = len(b)
	if p.Version == 6 {
		IPv6(b).setPayloadLen(len(b) - IPv6Len)
	} else {
		h := IPv4(b)
		h.setTotalLen(len(b))
		if v.GSOSize > 0 {
			binary.BigEndian.PutUint16(h[4:6], h.ID()+uint16(from/int(v.GSOSize)))
		}
		h.updateChecksum()
	}
	h := TCP(b[p.L4:])
	h.setSeq(h.Seq() + uint32(from))
	if from > 0 {
		h[13] &^= TCPCwr
		v.GSOType &^= GSOECN
	}
	if !last {
		h[13] &^= TCPFin | TCPPsh
	}
	writePartial(b, &q)
	if len(b)-HeaderLen(b, &q) <= int(v.GSOSize) {
		v.GSOType, v.GSOSize = GSONone, 0
	}
	v.Flags, v.CsumStart, v.CsumOffset = NeedsCsum, p.L4, tcpCsumOffset
	return v
}
