package encap

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// TestPeek: what Parse refuses or leaves out, and people want to see.
func TestPeek(t *testing.T) {
	udp4, udp6 := flow{sport: 7, dport: 53}.udp(t, pattern(40)), flow{v6: true, sport: 7, dport: 53}.udp(t, pattern(40))
	hop := flow{v6: true, sport: 7, dport: 53, ext: []byte{17, 0, 1, 4, 0, 0, 0, 0}, extFirst: 0}.udp(t, pattern(40))
	edit := func(b []byte, f func([]byte)) []byte {
		b = append([]byte(nil), b...)
		f(b)
		return b
	}
	for _, c := range []struct {
		name         string
		b            []byte
		proto        uint8
		sport, dport uint16
		l4           uint16
		frag         Frag
	}{
		{"whole 4", udp4, ProtoUDP, 7, 53, IPv4Len, NotFrag},
		{"whole 6", udp6, ProtoUDP, 7, 53, IPv6Len, NotFrag},
		{"cut behind the ports 4", udp4[:IPv4Len+4], ProtoUDP, 7, 53, IPv4Len, NotFrag},
		{"cut behind the ports 6", udp6[:IPv6Len+4], ProtoUDP, 7, 53, IPv6Len, NotFrag},
		{"cut in the ports", udp4[:IPv4Len+3], ProtoUDP, 0, 0, IPv4Len, NotFrag},
		{"wrong checksum", edit(udp4, func(b []byte) { b[10] ^= 1 }), ProtoUDP, 7, 53, IPv4Len, NotFrag},
		{"wrong total length", edit(udp4, func(b []byte) { b[2] = 0xff }), ProtoUDP, 7, 53, IPv4Len, NotFrag},
		{"header length of 16", edit(udp4, func(b []byte) { b[0] = 0x44 }), ProtoUDP, 0, 0, 0, NotFrag},
		{"header beyond the end", edit(udp4[:IPv4Len+4], func(b []byte) { b[0] = 0x4f }), ProtoUDP, 0, 0, 0, NotFrag},
		{"first fragment 4", edit(udp4, func(b []byte) { b[6] = 0x20 }), ProtoUDP, 7, 53, IPv4Len, FirstFrag},
		{"later fragment 4", edit(udp4, func(b []byte) { b[6], b[7] = 0x20, 5 }), ProtoUDP, 0, 0, IPv4Len, LaterFrag},
		{"behind an extension", hop, ProtoUDP, 7, 53, IPv6Len + 8, NotFrag},
		{"padding behind it", edit(udp4, func(b []byte) { b[2], b[3] = 0, IPv4Len+3 }), ProtoUDP, 0, 0, IPv4Len, NotFrag},
		{"padding behind it 6", edit(udp6, func(b []byte) { b[4], b[5] = 0, 3 }), ProtoUDP, 0, 0, IPv6Len, NotFrag},
		{"source route", flow{v6: true, sport: 7, dport: 53, ext: []byte{17, 0, 0, 1, 0, 0, 0, 0}, extFirst: 43}.udp(t, pattern(40)), ProtoUDP, 7, 53, IPv6Len + 8, NotFrag},
		{"hop-by-hop not first", flow{v6: true, sport: 7, dport: 53, ext: []byte{0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0}, extFirst: 60}.udp(t, pattern(40)), ProtoUDP, 7, 53, IPv6Len + 16, NotFrag},
		{"cut in an extension", hop[:IPv6Len+7], 0, 0, 0, 0, NotFrag},
		{"first fragment 6", flow{v6: true, sport: 7, dport: 53, ext: []byte{17, 0, 0, 1, 0, 0, 0, 0}, extFirst: 44}.udp(t, pattern(40)), ProtoUDP, 7, 53, IPv6Len + 8, FirstFrag},
		{"later fragment 6", flow{v6: true, sport: 7, dport: 53, ext: []byte{17, 0, 0, 8, 0, 0, 0, 0}, extFirst: 44}.udp(t, pattern(40)), ProtoUDP, 0, 0, IPv6Len + 8, LaterFrag},
	} {
		p := Packet{Proto: 99, SrcPort: 9, L4: 9, Frag: LaterFrag} // of another packet
		if !Peek(c.b, &p) {
			t.Errorf("%s: no IP packet", c.name)
		}
		if p.Proto != c.proto || p.SrcPort != c.sport || p.DstPort != c.dport || p.L4 != c.l4 || p.Frag != c.frag || !p.Src.IsValid() || !p.Dst.IsValid() || p.TTL == 0 {
			t.Errorf("%s: %+v", c.name, p)
		}
	}
	for _, b := range [][]byte{nil, udp4[:IPv4Len-1], udp6[:IPv6Len-1], append([]byte{0x50}, udp4[1:]...)} {
		p := Packet{Proto: 99, Src: netip.MustParseAddr("10.0.0.1")}
		if Peek(b, &p) || p != (Packet{}) {
			t.Errorf("% x: %+v", b, p)
		}
	}
}

// FuzzPeek: whatever is peeked at, and what Parse has passed looks the same to both.
func FuzzPeek(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, uint16(len(b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		var p, q Packet
		Peek(b[:min(int(cut), len(b))], &q)
		if Parse(b, &p) != OK {
			return
		}
		if !Peek(b, &q) || q.Src != p.Src || q.Dst != p.Dst || q.Version != p.Version || q.Proto != p.Proto || q.TTL != p.TTL || q.Frag != p.Frag || q.L4 != p.L4 {
			t.Fatalf("%+v, parsed %+v", q, p)
		}
		switch {
		case p.Proto != ProtoTCP && p.Proto != ProtoUDP && p.Proto != ProtoSCTP:
		case p.Frag == NotFrag:
			if q.SrcPort != p.SrcPort || q.DstPort != p.DstPort {
				t.Fatalf("ports of %+v, parsed %+v", q, p)
			}
		case p.Frag == FirstFrag && p.Len >= int(p.L4)+4:
			if q.SrcPort != binary.BigEndian.Uint16(b[p.L4:]) {
				t.Fatalf("port of a first fragment: %+v", q)
			}
		}
	})
}
