package encap

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
)

// edit returns a copy of b after change, with the IPv4 header checksum mended.
func edit(b []byte, change func(b []byte)) []byte {
	b = bytes.Clone(b)
	change(b)
	if b[0]>>4 == 4 && IPv4(b).HeaderLen() <= len(b) && IPv4(b).HeaderLen() >= 20 {
		IPv4(b).updateChecksum()
	}
	return b
}

func TestParseGood(t *testing.T) {
	f4, f6 := flow{sport: 1234, dport: 80, tos: 0xb9, ttl: 9, df: true}, flow{v6: true, sport: 1234, dport: 80, tos: 0xb9, ttl: 9}
	want4 := Packet{Src: pod4a, Dst: pod4b, Version: 4, TOS: 0xb9, TTL: 9, L4: 20, SrcPort: 1234, DstPort: 80, DF: true}
	want6 := Packet{Src: pod6a, Dst: pod6b, Version: 6, TOS: 0xb9, TTL: 9, L4: 40, SrcPort: 1234, DstPort: 80, DF: true}
	with := func(p Packet, change func(p *Packet)) Packet { change(&p); return p }
	icmp := func(p *Packet) { p.SrcPort, p.DstPort = 77, 77 }
	hop := []byte{17, 0, 5, 2, 0, 0, 1, 0}          // hop-by-hop: router alert, PadN; UDP next
	dest := []byte{60, 1, 1, 12, 0, 0, 0, 0, 0, 0}  // hop-by-hop of 16 bytes, destination options next
	dest = append(dest, make([]byte, 6)...)         //
	dest = append(dest, 51, 0, 1, 4, 0, 0, 0, 0)    // destination options, AH next
	dest = append(dest, 17, 1, 0, 0, 1, 2, 3, 4)    // AH of 12 bytes, as RFC 4302's length 1 says
	dest = append(dest, 5, 6, 7, 8)                 //
	atomic := []byte{17, 0, 0, 0, 0xde, 0xad, 1, 2} // fragment header of a whole packet

	tests := []struct {
		name string
		b    []byte
		want Packet
	}{
		{"tcp4", f4.tcp(t, layers.TCP{Options: timestamps(1, 2)}, pattern(10)), with(want4, func(p *Packet) { p.Proto = 6 })},
		{"udp4", f4.udp(t, nil), with(want4, func(p *Packet) { p.Proto = 17 })},
		{"superframe4", f4.udp(t, pattern(65535-28)), with(want4, func(p *Packet) { p.Proto = 17 })},
		{"echo4", f4.echo(t, 77, nil), with(want4, func(p *Packet) { p.Proto = 1; icmp(p) })},
		{"echo reply4", edit(f4.echo(t, 77, nil), func(b []byte) { b[20] = 0 }), with(want4, func(p *Packet) { p.Proto = 1; icmp(p) })},
		{"timestamp4", edit(f4.echo(t, 77, nil), func(b []byte) { b[20] = 13 }), with(want4, func(p *Packet) { p.Proto = 1; p.SrcPort, p.DstPort = 0, 0 })},
		{"echo reply6", edit(f6.echo(t, 77, nil), func(b []byte) { b[40] = 129 }), with(want6, func(p *Packet) { p.Proto = 58; icmp(p) })},
		{"router solicitation6", edit(f6.echo(t, 77, nil), func(b []byte) { b[40] = 133 }), with(want6, func(p *Packet) { p.Proto = 58; p.SrcPort, p.DstPort = 0, 0 })},
		{"echo of the other version", f6.raw(t, ProtoICMP, []byte{8, 0, 0, 0, 0, 77, 0, 0}), with(want6, func(p *Packet) { p.Proto = 1; p.SrcPort, p.DstPort = 0, 0 })},
		{"IPv6's echo types in IPv4", edit(f4.echo(t, 77, nil), func(b []byte) { b[20] = 128 }), with(want4, func(p *Packet) { p.Proto = 1; p.SrcPort, p.DstPort = 0, 0 })},
		{"IPv4's echo types in IPv6", edit(f6.echo(t, 77, nil), func(b []byte) { b[40] = 8 }), with(want6, func(p *Packet) { p.Proto = 58; p.SrcPort, p.DstPort = 0, 0 })},
		{"sctp4", f4.raw(t, 132, []byte("\x04\xd2\x00\x50\x00\x00\x00\x00\x00\x00\x00\x00")), with(want4, func(p *Packet) { p.Proto = 132 })},
		{"gre4", f4.raw(t, 47, []byte("\x04\xd2\x00\x50")), with(want4, func(p *Packet) { p.Proto = 47; p.SrcPort, p.DstPort = 0, 0 })},
		{"tcp6", f6.tcp(t, layers.TCP{Options: timestamps(1, 2)}, pattern(10)), with(want6, func(p *Packet) { p.Proto = 6 })},
		{"udp6", f6.udp(t, nil), with(want6, func(p *Packet) { p.Proto = 17 })},
		{"superframe6", f6.udp(t, pattern(65535-8)), with(want6, func(p *Packet) { p.Proto = 17 })},
		{"echo6", f6.echo(t, 77, nil), with(want6, func(p *Packet) { p.Proto = 58; icmp(p) })},
		{"hop by hop", flow{v6: true, sport: 1234, dport: 80, tos: 0xb9, ttl: 9, ext: hop, extFirst: 0}.udp(t, nil),
			with(want6, func(p *Packet) { p.Proto, p.L4 = 17, 48 })},
		{"three extensions", flow{v6: true, sport: 1234, dport: 80, tos: 0xb9, ttl: 9, ext: dest, extFirst: 0}.udp(t, nil),
			with(want6, func(p *Packet) { p.Proto, p.L4 = 17, 40+16+8+12 })},
		{"nothing behind the extensions", edit(flow{v6: true, sport: 1, tos: 0xb9, ttl: 9, ext: []byte{59, 0, 1, 4, 0, 0, 0, 0}, extFirst: 60}.raw(t, 59, nil), func([]byte) {}),
			with(want6, func(p *Packet) { p.Proto, p.L4, p.SrcPort, p.DstPort = 59, 48, 0, 0 })},
		{"atomic fragment", flow{v6: true, sport: 1234, dport: 80, tos: 0xb9, ttl: 9, ext: atomic, extFirst: 44}.udp(t, nil),
			with(want6, func(p *Packet) { p.Proto, p.L4 = 17, 48 })},
		{"first fragment4", edit(f4.udp(t, pattern(100-4)), func(b []byte) { b[6] = 0x20 }),
			with(want4, func(p *Packet) { p.Proto, p.Frag, p.DF, p.SrcPort, p.DstPort = 17, FirstFrag, false, 0, 0 })},
		{"later fragment4", edit(f4.udp(t, pattern(3)), func(b []byte) { b[7] = 1 }),
			with(want4, func(p *Packet) { p.Proto, p.Frag, p.SrcPort, p.DstPort = 17, LaterFrag, 0, 0 })},
		{"first fragment6", flow{v6: true, tos: 0xb9, ttl: 9, ext: []byte{17, 0, 0, 1, 0, 0, 0, 1}, extFirst: 44}.udp(t, pattern(32)),
			with(want6, func(p *Packet) { p.Proto, p.L4, p.Frag, p.SrcPort, p.DstPort = 17, 48, FirstFrag, 0, 0 })},
		{"later fragment6", flow{v6: true, tos: 0xb9, ttl: 9, ext: []byte{60, 0, 0, 8, 0, 0, 0, 1}, extFirst: 44}.udp(t, pattern(33)),
			with(want6, func(p *Packet) { p.Proto, p.L4, p.Frag, p.SrcPort, p.DstPort = 60, 48, LaterFrag, 0, 0 })},
		{"options4", flow{sport: 1234, dport: 80, tos: 0xb9, ttl: 9, df: true, ipOpts: []layers.IPv4Option{
			{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}}, {OptionType: 0}}}.udp(t, nil),
			with(want4, func(p *Packet) { p.Proto, p.L4 = 17, 28 })},
		{"shortest option4", flow{sport: 1234, dport: 80, tos: 0xb9, ttl: 9, df: true, ipOpts: []layers.IPv4Option{
			{OptionType: 30, OptionLength: 2}, {OptionType: 1}, {OptionType: 0}}}.udp(t, nil),
			with(want4, func(p *Packet) { p.Proto, p.L4 = 17, 24 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, padding := range []int{0, 1, 6} {
				b := append(bytes.Clone(tt.b), make([]byte, padding)...)
				got := *mustParse(t, b)
				if got.Hash == 0 {
					t.Error("no hash")
				}
				tt.want.Len, tt.want.Hash = len(tt.b), got.Hash
				if got != tt.want {
					t.Errorf("got  %+v\nwant %+v", got, tt.want)
				}
			}
		})
	}
}

func TestParseFaults(t *testing.T) {
	tcp4, udp4 := flow{}.tcp(t, layers.TCP{}, pattern(10)), flow{}.udp(t, pattern(10))
	tcp6, udp6 := flow{v6: true}.tcp(t, layers.TCP{}, pattern(10)), flow{v6: true}.udp(t, pattern(10))
	opts := func(bytes ...byte) []byte {
		b := append(append(append([]byte{}, udp4[:20]...), bytes...), udp4[20:]...)
		return edit(b, func(b []byte) { b[0] += byte(len(bytes) / 4); IPv4(b).setTotalLen(len(b)) })
	}
	ext := func(first uint8, ext ...byte) []byte {
		return flow{v6: true, ext: ext, extFirst: first}.udp(t, pattern(16))
	}
	chain := []byte{}
	for range maxExtensions - 1 {
		chain = append(chain, 60, 0, 1, 4, 0, 0, 0, 0)
	}
	chain = append(chain, 17, 0, 1, 4, 0, 0, 0, 0)
	long := append([]byte{60, 0, 1, 4, 0, 0, 0, 0}, chain...)
	tests := []struct {
		name string
		b    []byte
		want Fault
	}{
		{"nothing", nil, FaultShort},
		{"one byte", []byte{0x45}, FaultShort},
		{"19 bytes", udp4[:19], FaultShort},
		{"39 bytes", udp6[:39], FaultShort},
		{"version 0", edit(udp4, func(b []byte) { b[0] = 0x05 }), FaultBadVersion},
		{"version 5", edit(udp6, func(b []byte) { b[0] = 0x50 }), FaultBadVersion},
		{"IHL 4", edit(udp4, func(b []byte) { b[0] = 0x44 }), FaultBadHeaderLength},
		{"IHL 15", edit(udp4, func(b []byte) { b[0] = 0x4f }), FaultBadHeaderLength},
		{"total below header", edit(udp4, func(b []byte) { IPv4(b).setTotalLen(19) }), FaultBadTotalLength},
		{"total 0", edit(udp4, func(b []byte) { IPv4(b).setTotalLen(0) }), FaultBadTotalLength},
		{"truncated 4", udp4[:len(udp4)-1], FaultBadTotalLength},
		{"truncated 6", udp6[:len(udp6)-1], FaultBadTotalLength},
		{"header checksum", func() []byte { b := bytes.Clone(udp4); b[10] ^= 1; return b }(), FaultBadHeaderChecksum},
		{"header checksum with options", func() []byte { b := opts(1, 1, 1, 0); b[10] ^= 1; return b }(), FaultBadHeaderChecksum},
		{"option without length", opts(1, 1, 1, 7), FaultBadOptions},
		{"option of length 1", opts(7, 1, 0, 0), FaultBadOptions},
		{"option too long", opts(7, 5, 4, 0), FaultBadOptions},
		{"loose source route", opts(131, 3, 4, 0), FaultSourceRoute},
		{"strict source route", opts(1, 137, 3, 4), FaultSourceRoute},
		{"tcp short 4", edit(tcp4, func(b []byte) { IPv4(b).setTotalLen(39) }), FaultBadL4Length},
		{"tcp offset 4", edit(tcp4, func(b []byte) { b[32] = 0x40 }), FaultBadL4Length},
		{"tcp offset 15", edit(tcp4, func(b []byte) { b[32] = 0xf0 }), FaultBadL4Length},
		{"udp short 4", edit(udp4, func(b []byte) { IPv4(b).setTotalLen(27) }), FaultBadL4Length},
		{"udp length 7", edit(udp4, func(b []byte) { UDP(b[20:]).setLength(7) }), FaultBadL4Length},
		{"udp length 0", edit(udp6, func(b []byte) { UDP(b[40:]).setLength(0) }), FaultBadL4Length},
		{"udp too long", edit(udp4, func(b []byte) { UDP(b[20:]).setLength(19) }), FaultBadL4Length},
		{"sctp short", flow{}.raw(t, ProtoSCTP, pattern(11)), FaultBadL4Length},
		{"tcp short 6", edit(tcp6, func(b []byte) { IPv6(b).setPayloadLen(19) }), FaultBadL4Length},
		{"jumbogram", ext(0, 17, 0, 0xc2, 4, 0, 1, 0, 0)[:40], FaultBadTotalLength},
		{"jumbogram without length", edit(ext(0, 17, 0, 0xc2, 4, 0, 1, 0, 0), func(b []byte) { IPv6(b).setPayloadLen(0) }), FaultBadExtension},
		{"extension beyond the end", ext(60, 17, 200, 1, 4, 0, 0, 0, 0), FaultBadExtension},
		{"AH beyond the end", ext(51, 17, 200, 1, 4, 0, 0, 0, 0), FaultBadExtension},
		{"extension cut", edit(udp6, func(b []byte) { b[6] = 43; IPv6(b).setPayloadLen(7) }), FaultBadExtension},
		{"nothing behind the fragment header", edit(udp6, func(b []byte) { b[6] = 44; b[42], b[43] = 0, 8; IPv6(b).setPayloadLen(8) }), FaultBadFragment},
		{"fragment header cut", edit(udp6, func(b []byte) { b[6] = 44; b[43] = 8; IPv6(b).setPayloadLen(7) }), FaultBadExtension},
		{"hop-by-hop second", ext(60, 0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0), FaultBadExtension},
		{"two fragment headers", ext(44, 44, 0, 0, 1, 0, 0, 0, 0, 17, 0, 0, 1, 0, 0, 0, 0), FaultBadExtension},
		{"long chain", ext(60, long...), FaultBadExtension},
		{"first fragment without all headers", ext(44, 60, 0, 0, 1, 0, 0, 0, 0, 17, 90, 1, 4, 0, 0, 0, 0), FaultBadExtension},
		{"first fragment without L4", edit(ext(44, 60, 0, 0, 1, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0), func(b []byte) { IPv6(b).setPayloadLen(16) }), FaultBadFragment},
		{"routing type 0", ext(43, 17, 2, 0, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8), FaultSourceRoute},
		{"fragment not of eights 4", edit(udp4, func(b []byte) { b[6] = 0x20 }), FaultBadFragment},
		{"fragment beyond 65535", edit(udp4, func(b []byte) { b[6], b[7] = 0x1f, 0xff }), FaultBadFragment},
		{"empty fragment", edit(udp4, func(b []byte) { IPv4(b).setTotalLen(20); b[7] = 1 }), FaultBadFragment},
		{"fragment not of eights 6", flow{v6: true, ext: []byte{17, 0, 0, 1, 0, 0, 0, 0}, extFirst: 44}.udp(t, pattern(3)), FaultBadFragment},
		{"fragment beyond 65535 6", ext(44, 17, 0, 0xff, 0xf8, 0, 0, 0, 0), FaultBadFragment},
	}
	for _, tt := range tests {
		var p Packet
		if got := Parse(tt.b, &p); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if f := Parse(ext(60, chain...), new(Packet)); f != OK {
		t.Errorf("a chain of %d headers: %v", maxExtensions, f)
	}
}

// Both directions of a flow hash alike, whole and in fragments; different flows do not.
func TestHash(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		seen := map[uint32]int{}
		for port := range 4000 {
			there := flow{v6: v6, sport: uint16(port), dport: 443}
			back := flow{v6: v6, sport: 443, dport: uint16(port), src: pod4b.String(), dst: pod4a.String()}
			if v6 {
				back.src, back.dst = pod6b.String(), pod6a.String()
			}
			a, b := mustParse(t, there.udp(t, nil)), mustParse(t, back.udp(t, nil))
			if a.Hash != b.Hash {
				t.Fatalf("port %d: %#x there, %#x back", port, a.Hash, b.Hash)
			}
			seen[a.Hash%8]++
			seen[0x80000000|a.Hash>>29]++
		}
		for k, n := range seen {
			if n < 400 || n > 600 { // of 4000 in 8
				t.Errorf("v6=%v: %d of 4000 flows in bucket %#x", v6, n, k)
			}
		}
		// Neighbouring pods that talk crosswise must not cancel out.
		hashes := map[uint32]bool{}
		for i := range 50 {
			for j := range 50 {
				f := flow{v6: v6, src: netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}).String(), dst: netip.AddrFrom4([4]byte{10, 244, 2, byte(j)}).String()}
				if v6 {
					f.src, f.dst = netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)}).String(), netip.AddrFrom16([16]byte{0: 0xfd, 7: 1, 15: byte(j)}).String()
				}
				hashes[mustParse(t, f.udp(t, nil)).Hash] = true
			}
		}
		if len(hashes) < 2498 {
			t.Errorf("v6=%v: %d hashes of 2500 pairs", v6, len(hashes))
		}
	}
	first := edit(flow{sport: 1, dport: 2}.udp(t, pattern(16)), func(b []byte) { b[6] = 0x20 })
	later := edit(flow{sport: 1, dport: 2}.udp(t, pattern(16)), func(b []byte) { b[7] = 3 })
	back := edit(flow{src: pod4b.String(), dst: pod4a.String()}.udp(t, pattern(16)), func(b []byte) { b[7] = 9; b[9] = 6 })
	if a, b, c := mustParse(t, first).Hash, mustParse(t, later).Hash, mustParse(t, back).Hash; a != b || a != c {
		t.Errorf("fragments hash to %#x, %#x and back %#x", a, b, c)
	}
}

func TestHeaderLen(t *testing.T) {
	for name, c := range map[string]struct {
		b    []byte
		want int
	}{
		"tcp":        {flow{}.tcp(t, layers.TCP{Options: timestamps(1, 2)}, pattern(9)), 52},
		"udp6":       {flow{v6: true}.udp(t, pattern(9)), 48},
		"echo":       {flow{}.echo(t, 1, pattern(9)), 28},
		"short icmp": {flow{}.raw(t, ProtoICMP, pattern(3)), 23},
		"gre":        {flow{}.raw(t, 47, pattern(9)), 20},
		"sctp":       {flow{}.raw(t, ProtoSCTP, pattern(19)), 32},
		"fragment":   {edit(flow{}.udp(t, pattern(16)), func(b []byte) { b[7] = 3 }), 20},
	} {
		if got := HeaderLen(c.b, mustParse(t, c.b)); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
