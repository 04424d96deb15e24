package forwarder

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/penstock-net/penstock/encap"
)

// TracePacket describes a packet to be made.
type TracePacket struct {
	Src, Dst         netip.Addr
	Proto            string // tcp, udp or icmp
	SrcPort, DstPort uint16 // of icmp: identifier and sequence number of an echo request
	Size             int    // of the IP packet; 0: 100 bytes
	TTL              int    // 0: 64
	DF               bool   // IPv4: do not fragment
}

// build makes the packet, with right checksums, or says why there is none.
func (t TracePacket) build() ([]byte, error) {
	if !t.Src.IsValid() || !t.Dst.IsValid() || t.Src.Is4() != t.Dst.Is4() {
		return nil, fmt.Errorf("%s and %s are not two addresses of one family", t.Src, t.Dst)
	}
	if t.Size == 0 {
		t.Size = 100
	}
	if t.TTL == 0 {
		t.TTL = 64
	}
	head, six := encap.IPv4Len, t.Src.Is6()
	if six {
		head = encap.IPv6Len
	}
	var proto uint8
	l4, checksum := 8, 2
	switch t.Proto {
	case "tcp":
		proto, l4, checksum = encap.ProtoTCP, 20, 16
	case "udp":
		proto, checksum = encap.ProtoUDP, 6
	case "icmp":
		if proto = encap.ProtoICMP; six {
			proto = encap.ProtoICMPv6
		}
	default:
		return nil, fmt.Errorf("protocol %q is neither tcp, udp nor icmp", t.Proto)
	}
	if t.Size < head+l4 || t.Size > 65535 {
		return nil, fmt.Errorf("a %s packet of %d bytes is impossible: its headers have %d, and no packet has more than 65535", t.Proto, t.Size, head+l4)
	}
	if t.TTL < 1 || t.TTL > 255 {
		return nil, fmt.Errorf("a TTL of %d is impossible", t.TTL)
	}
	b := make([]byte, t.Size)
	if six {
		b[0], b[6], b[7] = 0x60, proto, byte(t.TTL)
		binary.BigEndian.PutUint16(b[4:], uint16(t.Size-head))
		copy(b[8:], t.Src.AsSlice())
		copy(b[24:], t.Dst.AsSlice())
	} else {
		b[0], b[8], b[9] = 0x45, byte(t.TTL), proto
		if binary.BigEndian.PutUint16(b[2:], uint16(t.Size)); t.DF {
			b[6] = 0x40
		}
		copy(b[12:], t.Src.AsSlice())
		copy(b[16:], t.Dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^encap.Fold(encap.Sum(b[:head], 0)))
	}
	h := b[head:]
	sum := encap.PseudoSum(&encap.Packet{Src: t.Src, Dst: t.Dst, Proto: proto, Version: b[0] >> 4}, len(h))
	switch t.Proto {
	case "icmp":
		if h[0] = 8; six {
			h[0] = 128
		} else {
			sum = 0
		}
		binary.BigEndian.PutUint16(h[4:], t.SrcPort)
		binary.BigEndian.PutUint16(h[6:], t.DstPort)
	case "udp":
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)))
	case "tcp":
		h[12], h[13] = 5<<4, 2 // SYN
	}
	if t.Proto != "icmp" {
		binary.BigEndian.PutUint16(h, t.SrcPort)
		binary.BigEndian.PutUint16(h[2:], t.DstPort)
	}
	c := ^encap.Fold(encap.Sum(h, sum))
	if c == 0 && t.Proto == "udp" {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(h[checksum:], c)
	return b, nil
}

// encapsulate makes of an inner packet what p would send.
func (f *Forwarder) encapsulate(p *peer, ip []byte) []byte {
	six := ip[0]>>4 == 6
	switch p.kind {
	case encap.KindVXLAN:
		h := encap.NewVXLANHeader(p.vni, p.own, encap.MAC(p.spec.MAC))
		b := make([]byte, h.Len(), h.Len()+len(ip))
		h.Put(b, six)
		return append(b, ip...)
	case encap.KindIPIP:
		proto := byte(encap.ProtoIPIP)
		if six {
			proto = encap.ProtoIPv6
		}
		b := make([]byte, encap.IPv4Len, encap.IPv4Len+len(ip))
		b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, proto
		binary.BigEndian.PutUint16(b[2:], uint16(encap.IPv4Len+len(ip)))
		copy(b[12:], p.spec.Address.AsSlice())
		copy(b[16:], f.address.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^encap.Fold(encap.Sum(b, 0)))
		return append(b, ip...)
	}
	return ip
}
