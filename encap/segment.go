package encap

import "encoding/binary"

// MaxHeaderLen is the longest header that Segments writes: IPv4 and TCP with all their options are 120
// bytes; the rest is for IPv6 extension headers.
const MaxHeaderLen = 256

// Segments cuts a superframe into packets, as the kernel's tcp_gso_segment and __udp_gso_segment do:
// every segment gets a header of its own with complete checksums, its payload stays where it is.
//
//	b:   │ header │ payload 0 │ payload 1 │ … │ rest │
//	out: │ header 0 │→ payload 0     │ header 1 │→ payload 1     …
//
// It holds on to b from Init to the last Next and only reads it.
type Segments struct {
	b     []byte // the superframe, cut to its length
	hlen  int    // of all headers
	l4    int
	size  int // payload of a full segment
	count int
	next  int // index of the next segment
	pos   int // where its payload begins in b
	id    uint16
	v6    bool
	tcp   bool
	ipSum uint32 // of the IPv4 header without total length, identification and checksum
	l4Sum uint32 // of pseudo-header and L4 header without lengths, checksum, and of TCP sequence number and flags
	seq   uint32
	data  uint16 // TCP: the word of data offset and flags
}

// Init begins to cut superframe b as v says, after the checks of v.Check. A packet that is no longer than
// one segment gives one.
func (s *Segments) Init(b []byte, p *Packet, v Virtio) Fault {
	if !v.IsGSO() {
		return FaultBadVirtio
	}
	if f := v.Check(b, p); f != OK {
		return f
	}
	hlen := HeaderLen(b, p)
	if hlen > MaxHeaderLen {
		return FaultLongHeader
	}
	b = b[:p.Len]
	*s = Segments{
		b: b, hlen: hlen, l4: int(p.L4), size: int(v.GSOSize), pos: hlen,
		count: max(1, (p.Len-hlen+int(v.GSOSize)-1)/int(v.GSOSize)),
		v6:    p.Version == 6, tcp: p.Proto == ProtoTCP,
	}
	if !s.v6 {
		h := IPv4(b)
		s.id = h.ID()
		s.ipSum = Sum(b[6:10], Sum(b[12:s.l4], uint32(b[0])<<8|uint32(b[1])))
	}
	// The field holds the sum of the pseudo-header with the superframe's length: that length is taken
	// out again. Starting from the field and not from the addresses keeps the checksum end to end.
	l4 := b[s.l4:]
	l4len := uint32(len(l4))
	length := ^Fold(l4len>>16 + l4len&0xffff)
	if s.tcp {
		h := TCP(l4)
		s.seq = h.Seq()
		s.data = binary.BigEndian.Uint16(h[12:14])
		s.l4Sum = Sum(l4[8:12], uint32(h.Checksum())+uint32(length))
		s.l4Sum = Sum(l4[0:4], s.l4Sum)
		s.l4Sum = Sum(l4[14:16], s.l4Sum)
		s.l4Sum = Sum(l4[18:hlen-s.l4], s.l4Sum)
	} else {
		s.l4Sum = Sum(l4[0:4], uint32(UDP(l4).Checksum())+uint32(length))
	}
	return OK
}

// Count returns the number of segments, at least 1.
func (s *Segments) Count() int { return s.count }

// HeaderLen returns the length of each segment's header, in bytes, at most MaxHeaderLen.
func (s *Segments) HeaderLen() int { return s.hlen }

// SegmentLen returns the length of the longest segment as an IP packet, in bytes.
func (s *Segments) SegmentLen() int { return min(s.hlen+s.size, len(s.b)) }

// Next writes the header of the next segment to the start of hdr, HeaderLen bytes, and returns its
// payload, lent from b; ok is false when there are no more. IPv4 identifications count up; CWR stays in
// the first segment only, FIN and PSH in the last.
func (s *Segments) Next(hdr []byte) (payload []byte, ok bool) {
	if s.next >= s.count {
		return nil, false
	}
	payload = s.b[s.pos:min(s.pos+s.size, len(s.b))]
	hdr = hdr[:s.hlen]
	copy(hdr, s.b)
	total := s.hlen + len(payload)
	if s.v6 {
		IPv6(hdr).setPayloadLen(total - IPv6Len)
	} else {
		h := IPv4(hdr)
		id := s.id + uint16(s.next)
		h.setTotalLen(total)
		binary.BigEndian.PutUint16(h[4:6], id)
		h.setChecksum(^Fold(s.ipSum + uint32(total) + uint32(id)))
	}
	l4, l4len := hdr[s.l4:], uint32(total-s.l4)
	if s.tcp {
		h := TCP(l4)
		seq := s.seq + uint32(s.pos-s.hlen)
		data := s.data
		if s.next > 0 {
			data &^= uint16(TCPCwr)
		}
		if s.next < s.count-1 {
			data &^= uint16(TCPFin | TCPPsh)
		}
		h.setSeq(seq)
		binary.BigEndian.PutUint16(h[12:14], data)
		// Fold first: sums of Sum may fill 32 bits.
		sum := uint32(Fold(s.l4Sum)) + l4len + seq>>16 + seq&0xffff + uint32(data)
		h.setChecksum(^Fold(Sum(payload, sum)))
	} else {
		h := UDP(l4)
		h.setLength(int(l4len))
		h.setChecksum(nonZero(^Fold(Sum(payload, uint32(Fold(s.l4Sum))+2*l4len))))
	}
	s.pos += len(payload)
	s.next++
	return payload, true
}
