package encap

import "encoding/binary"

// Peek reads of an IP packet that nobody has judged, and that may be cut anywhere, what it says of itself: for people who look at
// packets, dropped ones above all. [Parse] judges. Of p it sets Version, Src, Dst, Proto, TTL and Frag; L4 where the headers before it are
// whole; and the ports of TCP, UDP and SCTP where they are there, in first fragments as well. It reports whether b begins with an IP header.
func Peek(b []byte, p *Packet) bool {
	*p = Packet{}
	total := 0
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
		total = h.TotalLen()
	case len(b) >= IPv6Len && b[0]>>4 == 6:
		h := IPv6(b[:IPv6Len:len(b)])
		p.Version, p.Src, p.Dst, p.TTL = 6, h.Src(), h.Dst(), h.HopLimit()
		if n := h.PayloadLen(); n > 0 {
			total = IPv6Len + n
		}
		p.peekExtensions(b, h.NextHeader())
	default:
		return false
	}
	if total >= int(p.L4) && total < len(b) {
		b = b[:total] // behind it is padding of the link
	}
	switch p.Proto {
	case ProtoTCP, ProtoUDP, ProtoSCTP:
		if at := int(p.L4); at != 0 && p.Frag != LaterFrag && at+4 <= len(b) {
			p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:])
		}
	}
	return true
}

// peekExtensions goes as far as the headers are there, also where walkExtensions refuses them.
func (p *Packet) peekExtensions(b []byte, next uint8) {
	for off := IPv6Len; off <= min(len(b), 0xffff); {
		p.Proto = next
		size, is := extensionSize(b[off:], next)
		if !is {
			p.L4 = uint16(off)
			return
		}
		if size == 0 {
			return
		}
		if next == extFragment {
			switch field := binary.BigEndian.Uint16(b[off+2:]); {
			case field&^7 != 0:
				p.Proto, p.L4, p.Frag = b[off], uint16(min(off+8, 0xffff)), LaterFrag
				return
			case field&1 != 0:
				p.Frag = FirstFrag
			}
		}
		next, off = b[off], off+size
	}
}
