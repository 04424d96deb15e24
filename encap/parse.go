package encap

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Frag says which part of a packet this is.
type Frag uint8

// NotFrag is a whole packet, atomic IPv6 fragments (RFC 6946) included; FirstFrag begins with the L4
// header; LaterFrag has none.
const (
	NotFrag Frag = iota
	FirstFrag
	LaterFrag
)

// Packet is what Parse found in an IP packet. It owns nothing and refers to nothing.
type Packet struct {
	Src, Dst netip.Addr
	Len      int    // by the IP header, in bytes, ≤ 65575; what lies beyond is link padding
	Hash     uint32 // the same in both directions of a flow; of fragments: of the addresses only
	L4       uint16 // offset of the L4 header, or of the payload of a later fragment
	SrcPort  uint16 // of TCP, UDP and SCTP; the identifier of an ICMP echo in both; else, and in fragments, 0
	DstPort  uint16
	Version  uint8 // 4 or 6
	Proto    uint8 // of the L4 header; in a later fragment what the fragment header calls next
	TOS      uint8 // DSCP and ECN
	TTL      uint8 // or hop limit
	Frag     Frag
	DF       bool // may not be fragmented on its way: always so in IPv6

	enroute bool // IPv6 routing header with segments left: Dst is not the pseudo-header's
}

// Parse validates the IP packet at the start of b, which may be a superframe, and fills p: version,
// lengths, the IPv4 header checksum and options, IPv6 extension headers, fragment bounds, and in whole
// packets the lengths of TCP and UDP headers. What p holds after a fault is undefined.
func Parse(b []byte, p *Packet) Fault {
	if len(b) < IPv4Len {
		return FaultShort
	}
	switch b[0] >> 4 {
	case 4:
		return parseIPv4(b, p)
	case 6:
		return parseIPv6(b, p)
	}
	return FaultBadVersion
}

func parseIPv4(b []byte, p *Packet) Fault {
	h := IPv4(b[:IPv4Len:len(b)])
	hlen, total := h.HeaderLen(), h.TotalLen()
	if hlen < IPv4Len || hlen > len(b) {
		return FaultBadHeaderLength
	}
	if total < hlen || total > len(b) {
		return FaultBadTotalLength
	}
	b = b[:total]
	if hlen == IPv4Len {
		// The usual header is summed in place: a call and a loop would cost as much as all the rest.
		sum, c := bits.Add64(binary.LittleEndian.Uint64(h[0:8]), binary.LittleEndian.Uint64(h[8:16]), 0)
		sum, c = bits.Add64(sum, uint64(binary.LittleEndian.Uint32(h[16:20])), c)
		if fold64(sum+c) != 0xffff {
			return FaultBadHeaderChecksum
		}
	} else {
		if Fold(Sum(b[:hlen], 0)) != 0xffff {
			return FaultBadHeaderChecksum
		}
		if f := checkIPv4Options(b[IPv4Len:hlen]); f != OK {
			return f
		}
	}
	p.Src, p.Dst = h.Src(), h.Dst()
	p.Len, p.L4 = total, uint16(hlen)
	p.Version, p.Proto, p.TOS, p.TTL = 4, h.Proto(), h.TOS(), h.TTL()
	p.SrcPort, p.DstPort = 0, 0
	p.enroute = false
	frag := h.fragField()
	p.DF = frag&ipv4DF != 0
	p.Frag = NotFrag
	if frag&(ipv4MF|ipv4OffsetMask) != 0 {
		p.Frag = LaterFrag
		if frag&ipv4OffsetMask == 0 {
			p.Frag = FirstFrag
		}
		if f := checkFragment(int(frag&ipv4OffsetMask)*8, total-hlen, frag&ipv4MF != 0); f != OK {
			return f
		}
	} else if f := parseL4(b, p); f != OK {
		return f
	}
	p.Hash = hash4(h, p)
	return OK
}

func parseIPv6(b []byte, p *Packet) Fault {
	if len(b) < IPv6Len {
		return FaultShort
	}
	h := IPv6(b[:IPv6Len:len(b)])
	total := IPv6Len + h.PayloadLen()
	if total > len(b) {
		return FaultBadTotalLength
	}
	b = b[:total]
	p.Src, p.Dst = h.Src(), h.Dst()
	p.Len, p.L4 = total, IPv6Len
	p.Version, p.Proto, p.TOS, p.TTL = 6, h.NextHeader(), h.TOS(), h.HopLimit()
	p.SrcPort, p.DstPort = 0, 0
	p.Frag, p.DF, p.enroute = NotFrag, true, false
	if p.Proto != ProtoTCP && p.Proto != ProtoUDP {
		x, f := walkExtensions(b, p.Proto, IPv6Len)
		if f != OK {
			return f
		}
		if x.off > 0xffff {
			return FaultBadExtension // L4 could not say it; only a packet of nothing but headers gets there
		}
		p.Proto, p.L4, p.Frag, p.enroute = x.proto, uint16(x.off), x.frag, x.enroute
		if x.frag != NotFrag {
			// All that follows the fragment header is the fragmented part; in first fragments that
			// may be more extension headers before L4.
			if f := checkFragment(x.fragOff, total-x.fragStart, x.moreFrag); f != OK {
				return f
			}
			if x.off == total {
				return FaultBadFragment // a first fragment of headers alone: RFC 7112 section 5 wants L4 in it
			}
		}
	}
	if p.Frag == NotFrag {
		if f := parseL4(b, p); f != OK {
			return f
		}
	}
	p.Hash = hash6(h, p)
	return OK
}

// checkFragment checks a fragment of n payload bytes at offset off: something in it, a multiple of 8
// unless it is the last, and not beyond what reassembly could hold ("ping of death").
func checkFragment(off, n int, more bool) Fault {
	if n <= 0 || more && n&7 != 0 || off+n > 0xffff {
		return FaultBadFragment
	}
	return OK
}

// parseL4 reads the ports of a whole packet, cut to its length, and checks the lengths of its L4 header.
func parseL4(b []byte, p *Packet) Fault {
	l4 := b[p.L4:]
	switch p.Proto {
	case ProtoTCP:
		if len(l4) < TCPLen {
			return FaultBadL4Length
		}
		if n := TCP(l4).HeaderLen(); n < TCPLen || n > len(l4) {
			return FaultBadL4Length
		}
	case ProtoUDP:
		if len(l4) < UDPLen {
			return FaultBadL4Length
		}
		if n := UDP(l4).Length(); n < UDPLen || n > len(l4) {
			return FaultBadL4Length
		}
	case ProtoSCTP:
		if len(l4) < sctpLen {
			return FaultBadL4Length
		}
	case ProtoICMP, ProtoICMPv6:
		if id, ok := echoID(l4, p); ok {
			p.SrcPort, p.DstPort = id, id
		}
		return OK
	default:
		return OK
	}
	p.SrcPort, p.DstPort = binary.BigEndian.Uint16(l4[0:2]), binary.BigEndian.Uint16(l4[2:4])
	return OK
}

// Odd constants without structure (digits of the golden ratio, and of xxHash's primes).
const (
	hashSide  = 0x9e3779b97f4a7c15
	hashOther = 0xc2b2ae3d27d4eb4f
	hashProto = 0x165667b19e3779f9
)

func hash4(h IPv4, p *Packet) uint32 {
	return hash(
		uint64(binary.BigEndian.Uint32(h[12:16]))<<16|uint64(p.SrcPort), 0,
		uint64(binary.BigEndian.Uint32(h[16:20]))<<16|uint64(p.DstPort), 0, p)
}

func hash6(h IPv6, p *Packet) uint32 {
	return hash(
		binary.BigEndian.Uint64(h[8:16]), binary.BigEndian.Uint64(h[16:24])+uint64(p.SrcPort)*hashSide,
		binary.BigEndian.Uint64(h[24:32]), binary.BigEndian.Uint64(h[32:40])+uint64(p.DstPort)*hashSide, p)
}

// hash mixes the two ends of a flow, each given as two words, in a way that does not tell one end from
// the other. It is not keyed: it spreads flows, it does not resist someone who wants collisions.
func hash(s0, s1, d0, d1 uint64, p *Packet) uint32 {
	proto := uint64(p.Proto)
	if p.Frag != NotFrag {
		proto = 0 // later fragments do not always know it
	}
	sh, sl := bits.Mul64(s0^hashSide, s1^hashOther)
	dh, dl := bits.Mul64(d0^hashSide, d1^hashOther)
	hi, lo := bits.Mul64((sh^sl)+(dh^dl), hashProto^proto)
	return uint32((hi ^ lo) >> 16)
}

// HeaderLen returns the length of everything in front of the payload: IP header, extension headers and
// L4 header with its options. Of fragments, and of protocols that Parse does not know, it is p.L4. It is
// what Virtio.HdrLen should say on a write.
func HeaderLen(b []byte, p *Packet) int {
	n := int(p.L4)
	if p.Frag != NotFrag {
		return n
	}
	switch p.Proto {
	case ProtoTCP:
		return n + TCP(b[n:]).HeaderLen()
	case ProtoUDP:
		return n + UDPLen
	case ProtoSCTP:
		return n + sctpLen
	case ProtoICMP, ProtoICMPv6:
		return min(n+ICMPLen, p.Len)
	}
	return n
}
