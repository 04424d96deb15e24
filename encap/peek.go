package encap

import "encoding/binary"

// Peek reads of an IP packet that nobody has judged, and that may be cut anywhere, what it says of itself: for people who look at
// packets, dropped ones above all. [Parse] judges. Of p it sets Version, Src, Dst, Proto, TTL and Frag; L4 where the headers before it are
// whole; and the ports of TCP, UDP and SCTP where they are there, in first fragments as well. It reports whether b begins with an IP header.
func Peek(b []byte, p *Packet) bool {
	*p = Packet{}
	switch {
	case len(b) >= IPv4Len && b[0]>>4 == 4:
		h := IPv4(b[:IPv4Len:len(b)])
		p.Version, p.Src, p.Dst, p.Proto, p.TTL = 4, h.Src(), h.Dst(), h.Proto(), h.TTL()
		if n := h.HeaderLen(); n >= IPv4Len && n <= len(b) {
			p.L4 = uint16(n)
		}
		switch frag := h.fragField(); {
		case frag&ipv4OffsetMask != 0:
			p.Frag = LaterFrag
		case frag&ipv4MF != 0:
			p.Frag = FirstFrag
		}
	case len(b) >= IPv6Len && b[0]>>4 == 6:
		h := IPv6(b[:IPv6Len:len(b)])
		p.Version, p.Src, p.Dst, p.Proto, p.TTL = 6, h.Src(), h.Dst(), h.NextHeader(), h.HopLimit()
		if x, f := walkExtensions(b, p.Proto, IPv6Len); f == OK && x.off <= 0xffff {
			p.Proto, p.L4, p.Frag = x.proto, uint16(x.off), x.frag
		}
	default:
		return false
	}
	switch p.Proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		if at := int(p.L4); at != 0 && p.Frag != LaterFrag && at+4 <= len(b) {
			p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
		}
	}
	return true
}
