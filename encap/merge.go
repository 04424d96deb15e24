package encap

import (
	"bytes"
	"encoding/binary"
)

// Limits of a merged packet unless Merge says otherwise: what IPv4 can say, and what UDP_GRO_CNT_MAX of
// net/ipv4/udp_offload.c allows.
const (
	defaultMergeLen      = 65535
	defaultMergeSegments = 64
)

// Merge joins segments of one flow that arrive behind each other into a superframe, by the rules of the
// kernel's GRO (net/ipv4/tcp_offload.c, udp_offload.c, af_inet.c), so that cutting the result again gives
// the same segments: equal headers but for length, identification and checksum; in TCP consecutive
// sequence numbers, the same acknowledgement, window and options (timestamps included), no flags but ACK,
// ECE, CWR in the first and PSH or FIN in the last; all payloads of one size, the last may be shorter.
//
//	in:  │ header 0 │ payload 0 │    │ header 1 │ payload 1 │    …
//	out: │ header 0, mended by Finish │ payload 0 │→ payload 1 │→ payload 2 …      one write of iovecs
//
// The caller has verified the checksums (good or partial), as Finish leaves the new one partial. Merge
// holds on to the first packet from Start to Finish, which changes its header in place; of the others it
// keeps nothing. The zero value is ready; one Merge serves any number of superframes in turn.
type Merge struct {
	MaxLen      int // of the whole as an IP packet, in bytes; 0: 65535. Set before Start
	MaxSegments int // 0: 64; of UDP never more than 128. Set before Start

	b        []byte // the first packet
	l4       int
	hlen     int
	size     int // payload of a segment
	total    int // length of the whole so far, header included
	segments int
	seq      uint32 // TCP: of the next segment
	id       uint16 // IPv4: of the next segment
	last     uint8  // TCP: FIN and PSH, from the last segment
	v6, tcp  bool
	full     bool
}

// Start begins with packet b. It is false if nothing may be joined to it: neither TCP nor UDP, a
// fragment, IP options or extension headers, no payload (in TCP: less than 8 bytes), UDP without a
// checksum, or TCP flags that end a superframe or must not be in one. The Merge is then empty.
func (m *Merge) Start(b []byte, p *Packet) bool {
	m.b, m.segments, m.full, m.last = nil, 0, true, 0
	if p.Frag != NotFrag {
		return false
	}
	m.v6, m.l4 = p.Version == 6, int(p.L4)
	if m.v6 && m.l4 != IPv6Len || !m.v6 && m.l4 != IPv4Len {
		return false
	}
	b = b[:p.Len]
	l4 := b[m.l4:]
	switch p.Proto {
	case ProtoTCP:
		h := TCP(l4)
		if h.Flags()&(TCPSyn|TCPRst|TCPUrg|TCPFin|TCPPsh|TCPAck) != TCPAck {
			return false
		}
		m.tcp, m.hlen = true, m.l4+h.HeaderLen()
		m.size = p.Len - m.hlen
		m.seq = h.Seq() + uint32(m.size)
	case ProtoUDP:
		h := UDP(l4)
		if h.Checksum() == 0 || h.Length() != len(l4) {
			return false
		}
		m.tcp, m.hlen = false, m.l4+UDPLen
		m.size = p.Len - m.hlen
	default:
		return false
	}
	if m.size == 0 || m.tcp && m.size < minTCPSegment {
		return false // the latter the kernel would not take as a superframe
	}
	if !m.v6 {
		m.id = IPv4(b).ID() + 1
	}
	m.b, m.total, m.segments = b, p.Len, 1
	m.full = !m.fits()
	return true
}

// fits reports whether one more full segment would stay within the limits.
func (m *Merge) fits() bool {
	maxLen, maxSegments := m.MaxLen, m.MaxSegments
	if maxLen <= 0 || maxLen > defaultMergeLen {
		maxLen = defaultMergeLen
	}
	if maxSegments <= 0 {
		maxSegments = defaultMergeSegments
	}
	if !m.tcp {
		maxSegments = min(maxSegments, maxUDPSegments)
	}
	return m.segments < maxSegments && m.total+m.size <= maxLen
}

// Add joins packet b if it continues what is there: ok says so, and payload, lent from b, goes behind
// what went before. If not, the Merge is as it was; a packet of the same flow must not overtake it.
func (m *Merge) Add(b []byte, p *Packet) (payload []byte, ok bool) {
	if m.full || int(p.L4) != m.l4 || p.Frag != NotFrag || p.Len <= m.hlen || p.Len-m.hlen > m.size {
		return nil, false
	}
	a := m.b
	b = b[:p.Len]
	if m.v6 {
		// Version, traffic class, flow label; next header, hop limit; addresses.
		if [4]byte(a[0:4]) != [4]byte(b[0:4]) || [2]byte(a[6:8]) != [2]byte(b[6:8]) ||
			[32]byte(a[8:40]) != [32]byte(b[8:40]) {
			return nil, false
		}
	} else {
		// Version, header length, TOS; flags; TTL, protocol; addresses. Where DF is set the
		// identification means nothing (RFC 6864), else fragments on the way would need it in order.
		if [2]byte(a[0:2]) != [2]byte(b[0:2]) || [4]byte(a[6:10]) != [4]byte(b[6:10]) ||
			[8]byte(a[12:20]) != [8]byte(b[12:20]) || !p.DF && IPv4(b).ID() != m.id {
			return nil, false
		}
	}
	ha, hb := a[m.l4:m.hlen], b[m.l4:m.hlen]
	if [4]byte(ha[0:4]) != [4]byte(hb[0:4]) {
		return nil, false // ports
	}
	n := p.Len - m.hlen
	last := n < m.size
	if m.tcp {
		const (
			ends  = uint32(TCPFin|TCPPsh) << 16
			first = uint32(TCPCwr) << 16
		)
		// Data offset, flags and window are one word.
		wa, wb := binary.BigEndian.Uint32(ha[12:16]), binary.BigEndian.Uint32(hb[12:16])
		if TCP(hb).Seq() != m.seq || [4]byte(ha[8:12]) != [4]byte(hb[8:12]) ||
			(wa^wb)&^(ends|first) != 0 || wb&first != 0 || !bytes.Equal(ha[18:], hb[18:]) {
			return nil, false
		}
		m.seq += uint32(n)
		m.last |= uint8((wb & ends) >> 16)
		last = last || wb&ends != 0
	} else if h := UDP(b[m.l4:]); h.Checksum() == 0 || h.Length() != p.Len-m.l4 {
		return nil, false
	}
	m.id++
	m.segments++
	m.total += n
	m.full = last || !m.fits()
	return b[m.hlen:], true
}

// SameFlow reports whether p belongs to the flow that is being merged, and so must not overtake it.
// A fragment between the same addresses may belong to it.
func (m *Merge) SameFlow(b []byte, p *Packet) bool {
	if m.segments == 0 || m.v6 != (p.Version == 6) {
		return false
	}
	if m.v6 {
		if [32]byte(m.b[8:40]) != [32]byte(b[8:40]) {
			return false
		}
	} else if [8]byte(m.b[12:20]) != [8]byte(b[12:20]) {
		return false
	}
	if p.Frag != NotFrag {
		return true
	}
	h := TCP(m.b[m.l4:])
	return m.tcp == (p.Proto == ProtoTCP) && (m.tcp || p.Proto == ProtoUDP) &&
		h.SrcPort() == p.SrcPort && h.DstPort() == p.DstPort
}

// Segments returns how many packets are joined: 0 before Start and after Finish.
func (m *Merge) Segments() int { return m.segments }

// Len returns the length of the whole so far as an IP packet, in bytes.
func (m *Merge) Len() int { return m.total }

// Finish makes the first packet's header that of the whole, with a partial checksum, and returns the
// metadata that goes with it. Of a single packet the header stays and the result says nothing: the
// caller's own metadata of that packet still holds. The Merge is empty then.
func (m *Merge) Finish() Virtio {
	b, segments := m.b, m.segments
	m.b, m.segments, m.full = nil, 0, true
	if segments < 2 {
		return Virtio{}
	}
	v := Virtio{
		Flags: NeedsCsum, HdrLen: uint16(m.hlen), GSOSize: uint16(m.size), CsumStart: uint16(m.l4),
	}
	l4, l4len := b[m.l4:m.hlen], m.total-m.l4
	sum := uint32(l4len)
	if m.v6 {
		IPv6(b).setPayloadLen(m.total - IPv6Len)
		sum = Sum(b[8:40], sum)
	} else {
		h := IPv4(b)
		old := uint16(h.TotalLen())
		h.setTotalLen(m.total)
		h.setChecksum(update16(h.Checksum(), old, uint16(m.total)))
		sum = Sum(b[12:20], sum)
	}
	if m.tcp {
		h := TCP(l4)
		l4[13] |= m.last
		h.setChecksum(Fold(sum + uint32(ProtoTCP)))
		v.CsumOffset, v.GSOType = tcpCsumOffset, GSOTCPv4
		if m.v6 {
			v.GSOType = GSOTCPv6
		}
		if h.Flags()&TCPCwr != 0 {
			v.GSOType |= GSOECN
		}
		return v
	}
	h := UDP(l4)
	h.setLength(l4len)
	h.setChecksum(Fold(sum + uint32(ProtoUDP)))
	v.CsumOffset, v.GSOType = udpCsumOffset, GSOUDPL4
	return v
}
