package encap

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// ICMP message types (RFC 792 and IANA's list; RFC 4443).
const (
	icmpEchoReply   = 0
	icmpUnreachable = 3
	icmpQuench      = 4
	icmpRedirect    = 5
	icmpEcho        = 8
	icmpExceeded    = 11
	icmpParameter   = 12

	icmp6Unreachable = 1
	icmp6TooBig      = 2
	icmp6Exceeded    = 3
	icmp6Parameter   = 4
	icmp6Info        = 128 // from here on messages are not errors
	icmp6Echo        = 128
	icmp6EchoReply   = 129
	icmp6NeighSol    = 135
	icmp6NeighAdv    = 136
	icmp6Redirect    = 137
)

// MaxICMPError is the longest packet that ICMPError makes: the minimal MTU of IPv6 (RFC 4443 section
// 2.4(c)). IPv4's are up to 576 bytes (RFC 1812 section 4.3.2.3).
const MaxICMPError = 1280

const maxICMPv4Error = 576

// icmpTTL and icmpTOS are those of errors that a node sends: precedence internetwork control (RFC 1812
// section 4.3.2.5), and not ECN-capable.
const (
	icmpTTL = 64
	icmpTOS = 0xc0
)

// ICMPKind is what an ICMP error says, in IPv4 and IPv6 alike.
type ICMPKind uint8

// The errors that a router sends.
const (
	NetUnreachable  ICMPKind = iota // no route
	HostUnreachable                 // the destination does not answer
	AdminProhibited                 // not allowed
	PacketTooBig                    // and its MTU; in IPv4: fragmentation needed and DF set
	TimeExceeded                    // TTL or hop limit used up
)

var icmpKinds = [...]struct {
	name                    string
	type4, code4, t6, code6 uint8
}{
	NetUnreachable:  {"net_unreachable", icmpUnreachable, 0, icmp6Unreachable, 0},
	HostUnreachable: {"host_unreachable", icmpUnreachable, 1, icmp6Unreachable, 3},
	AdminProhibited: {"admin_prohibited", icmpUnreachable, 13, icmp6Unreachable, 1},
	PacketTooBig:    {"packet_too_big", icmpUnreachable, 4, icmp6TooBig, 0},
	TimeExceeded:    {"time_exceeded", icmpExceeded, 0, icmp6Exceeded, 0},
}

// String returns the kind's name, as it stands in metrics.
func (k ICMPKind) String() string {
	if int(k) < len(icmpKinds) {
		return icmpKinds[k].name
	}
	return "icmp_kind(" + strconv.Itoa(int(k)) + ")"
}

// MayAnswer reports whether an ICMP error about this packet may be sent (RFC 1122 section 3.2.2, RFC 1812
// section 4.3.2.7, RFC 4443 section 2.4(e)): not about ICMP errors, redirects or ICMP messages of a type
// that is not known to be harmless, later fragments, packets to a group or broadcast address, or from a
// source that is not one host's. RFC 4443's exceptions for multicast are not taken.
func MayAnswer(b []byte, p *Packet) bool {
	if p.Frag == LaterFrag || !oneHost(p.Src) || !oneHost(p.Dst) {
		return false
	}
	switch {
	case p.Proto == ProtoICMP && p.Version == 4:
		if p.Len <= int(p.L4) {
			return false
		}
		switch t := b[p.L4]; t {
		case icmpEcho, icmpEchoReply, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43:
			return true // queries and their answers
		}
		return false
	case p.Proto == ProtoICMPv6 && p.Version == 6:
		return p.Len > int(p.L4) && b[p.L4] >= icmp6Info && b[p.L4] != icmp6Redirect
	}
	return true
}

// oneHost reports whether a is an address of one host beyond this one.
func oneHost(a netip.Addr) bool {
	if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	if a.Is4() {
		// 0.0.0.0/8 is "this network", 240.0.0.0/4 reserved, with the broadcast address at its end.
		first := a.As4()[0]
		return first != 0 && first != 127 && first < 240
	}
	return !a.Is4In6()
}

// ICMPError writes to dst a whole IP packet from src that tells the source of packet b what became of it,
// quoting as much of b as fits into dst and the standard's limit; MaxICMPError bytes are enough. mtu is
// that of the next hop for PacketTooBig. It returns the length of the packet, or 0 if dst has no room for
// headers and 8 bytes of payload, or src is of the other IP version. Whether to answer at all is
// MayAnswer's. dst and b must not overlap.
func ICMPError(dst []byte, b []byte, p *Packet, k ICMPKind, mtu int, src netip.Addr) int {
	if int(k) >= len(icmpKinds) || src.Is4() != (p.Version == 4) || !src.IsValid() {
		return 0
	}
	ipLen, limit := IPv4Len, maxICMPv4Error
	if p.Version == 6 {
		ipLen, limit = IPv6Len, MaxICMPError
	}
	head := ipLen + ICMPLen
	quote := min(limit-head, len(dst)-head, p.Len)
	if quote < min(int(p.L4)+8, p.Len, limit-head) {
		return 0
	}
	total := head + quote
	dst = dst[:total]
	h := ICMP(dst[ipLen:])
	clear(h[:ICMPLen])
	copy(h[ICMPLen:], b[:quote])
	kind := &icmpKinds[k]
	if p.Version == 6 {
		h[0], h[1] = kind.t6, kind.code6
		if k == PacketTooBig {
			binary.BigEndian.PutUint32(h[4:8], uint32(max(mtu, 0)))
		}
		IPv6(dst).Put(icmpTOS, len(h), ProtoICMPv6, icmpTTL, src, p.Src)
		h.setChecksum(^Fold(Sum(h, Sum(dst[8:40], uint32(ProtoICMPv6)+uint32(len(h))))))
		return total
	}
	h[0], h[1] = kind.type4, kind.code4
	if k == PacketTooBig {
		binary.BigEndian.PutUint16(h[6:8], uint16(min(max(mtu, 0), 0xffff)))
	}
	h.setChecksum(^Fold(Sum(h, 0)))
	putIPv4(dst, icmpTOS, total, ProtoICMP, icmpTTL, src, p.Src)
	return total
}

// putIPv4 writes an IPv4 header without options, with DF, so that its identification may be 0 (RFC 6864).
func putIPv4(b []byte, tos uint8, total int, proto, ttl uint8, src, dst netip.Addr) {
	h := IPv4(b[:IPv4Len])
	clear(h)
	h[0], h[1] = 4<<4|IPv4Len/4, tos
	h.setTotalLen(total)
	h.setFragField(ipv4DF)
	h[8], h[9] = ttl, proto
	s, d := src.As4(), dst.As4()
	copy(h[12:16], s[:])
	copy(h[16:20], d[:])
	h.updateChecksum()
}

// QuotedFlow reads the packet that ICMP error p quotes into q, and reports whether p is an error that
// quotes one. The quote is cut, so only what its header says is known: q.Len is the length that the
// packet had, q.L4 may lie at the end of the quote, ports are 0 where they are cut off, checksums are not
// looked at. q serves to find the flow; it must not be handed to functions that take b and p.
func QuotedFlow(b []byte, p *Packet, q *Packet) bool {
	if p.Frag == LaterFrag || p.Len-int(p.L4) < ICMPLen {
		return false
	}
	h := ICMP(b[p.L4:p.Len])
	quote := h[ICMPLen:]
	*q = Packet{}
	switch {
	case p.Proto == ProtoICMP && p.Version == 4:
		switch h.Type() {
		case icmpUnreachable, icmpQuench, icmpRedirect, icmpExceeded, icmpParameter:
		default:
			return false
		}
		if len(quote) < IPv4Len || quote[0]>>4 != 4 {
			return false
		}
		ip := IPv4(quote)
		hlen := ip.HeaderLen()
		if hlen < IPv4Len || hlen > len(quote) || ip.TotalLen() < hlen {
			return false
		}
		q.Src, q.Dst, q.Len, q.L4 = ip.Src(), ip.Dst(), ip.TotalLen(), uint16(hlen)
		q.Version, q.Proto, q.TOS, q.TTL, q.DF = 4, ip.Proto(), ip.TOS(), ip.TTL(), ip.DF()
		if ip.FragOffset() != 0 {
			q.Frag = LaterFrag
		} else if ip.MF() {
			q.Frag = FirstFrag
		}
		quotedPorts(quote, q)
		q.Hash = hash4(ip, q)
		return true
	case p.Proto == ProtoICMPv6 && p.Version == 6:
		if t := h.Type(); t < icmp6Unreachable || t > icmp6Parameter {
			return false
		}
		if len(quote) < IPv6Len || quote[0]>>4 != 6 {
			return false
		}
		ip := IPv6(quote)
		q.Src, q.Dst, q.Len, q.L4 = ip.Src(), ip.Dst(), IPv6Len+ip.PayloadLen(), IPv6Len
		q.Version, q.Proto, q.TOS, q.TTL, q.DF = 6, ip.NextHeader(), ip.TOS(), ip.HopLimit(), true
		x, f := walkExtensions(quote, q.Proto, IPv6Len)
		if f != OK || x.off > 0xffff {
			return false
		}
		q.Proto, q.L4, q.Frag, q.enroute = x.proto, uint16(x.off), x.frag, x.enroute
		quotedPorts(quote, q)
		q.Hash = hash6(ip, q)
		return true
	}
	return false
}

// quotedPorts reads the ports of a quoted whole packet as far as the quote goes.
func quotedPorts(quote []byte, q *Packet) {
	if q.Frag != NotFrag {
		return
	}
	l4 := quote[q.L4:]
	switch q.Proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		if len(l4) >= 4 {
			q.SrcPort, q.DstPort = binary.BigEndian.Uint16(l4[0:2]), binary.BigEndian.Uint16(l4[2:4])
		}
	case ProtoICMP, ProtoICMPv6:
		if id, ok := echoID(l4, q); ok {
			q.SrcPort, q.DstPort = id, id
		}
	}
}

// echoID returns the identifier of an ICMP echo request or reply, which stands for its flow's ports.
func echoID(l4 []byte, p *Packet) (id uint16, ok bool) {
	if len(l4) < ICMPLen {
		return 0, false
	}
	t := l4[0]
	if p.Version == 4 && p.Proto == ProtoICMP && (t == icmpEcho || t == icmpEchoReply) ||
		p.Version == 6 && p.Proto == ProtoICMPv6 && (t == icmp6Echo || t == icmp6EchoReply) {
		return ICMP(l4).ID(), true
	}
	return 0, false
}
