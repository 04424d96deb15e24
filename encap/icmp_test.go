package encap

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	gateway4 = netip.MustParseAddr("10.244.1.1")
	gateway6 = netip.MustParseAddr("fd00:10:244:1::1")
)

func icmpError(t testing.TB, b []byte, k ICMPKind, mtu int) []byte {
	t.Helper()
	p := mustParse(t, b)
	src := gateway4
	if p.Version == 6 {
		src = gateway6
	}
	dst := bytes.Repeat([]byte{0xee}, MaxICMPError+8)
	n := ICMPError(dst, b, p, k, mtu, src)
	if !bytes.Equal(dst[n:], bytes.Repeat([]byte{0xee}, len(dst)-n)) {
		t.Fatal("wrote beyond the length it says")
	}
	return dst[:n]
}

func TestICMPErrorAgainstGopacket(t *testing.T) {
	type code struct{ t4, c4, t6, c6 uint8 }
	for k, c := range map[ICMPKind]code{
		NetUnreachable: {3, 0, 1, 0}, HostUnreachable: {3, 1, 1, 3}, AdminProhibited: {3, 13, 1, 1},
		PacketTooBig: {3, 4, 2, 0}, TimeExceeded: {11, 0, 3, 0},
	} {
		for _, v6 := range []bool{false, true} {
			for _, n := range []int{0, 1, 500, 3001, 60000} {
				b := flow{v6: v6, sport: 5, dport: 6}.udp(t, pattern(n))
				got := icmpError(t, append(b, 1, 2, 3), k, 1400)
				q := mustParse(t, got)
				if CheckL4(got, q) != ChecksumGood || !refL4Valid(got, q) || q.TTL != 64 || q.TOS != 0xc0 || !q.DF || q.Frag != NotFrag {
					t.Fatalf("%v v6=%v %d: %+v, checksum %v", k, v6, n, q, CheckL4(got, q))
				}
				var typ, cod uint8
				var payload []byte
				var mtu uint32
				if v6 {
					pkt := gopacket.NewPacket(got, layers.LayerTypeIPv6, gopacket.Default)
					icmp := pkt.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
					typ, cod, payload, mtu = icmp.TypeCode.Type(), icmp.TypeCode.Code(), icmp.Payload[4:], binary.BigEndian.Uint32(icmp.Payload)
					if q.Src != gateway6 || q.Dst != pod6a || len(got) != min(1280, 48+len(b)) {
						t.Errorf("%v: from %v to %v, %d bytes", k, q.Src, q.Dst, len(got))
					}
					c.t4, c.c4 = c.t6, c.c6
				} else {
					pkt := gopacket.NewPacket(got, layers.LayerTypeIPv4, gopacket.Default)
					icmp := pkt.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
					typ, cod, payload, mtu = icmp.TypeCode.Type(), icmp.TypeCode.Code(), icmp.Payload, uint32(icmp.Id)<<16|uint32(icmp.Seq)
					if q.Src != gateway4 || q.Dst != pod4a || len(got) != min(576, 28+len(b)) {
						t.Errorf("%v: from %v to %v, %d bytes", k, q.Src, q.Dst, len(got))
					}
				}
				if typ != c.t4 || cod != c.c4 || !bytes.HasPrefix(b, payload) {
					t.Errorf("%v v6=%v: type %d code %d, quote of %d bytes", k, v6, typ, cod, len(payload))
				}
				if want := uint32(0); k == PacketTooBig && mtu != 1400 || k != PacketTooBig && mtu != want {
					t.Errorf("%v v6=%v: MTU field %d", k, v6, mtu)
				}
				// And back: the quote is the packet it was about, cut as it is.
				var r Packet
				want := *mustParse(t, b)
				if !QuotedFlow(got, q, &r) || r != want {
					t.Errorf("%v v6=%v %d: quoted\n got %+v\nwant %+v", k, v6, n, r, want)
				}
			}
		}
	}
}

func TestICMPErrorRefuses(t *testing.T) {
	b := flow{}.udp(t, pattern(3000))
	p := mustParse(t, b)
	dst := make([]byte, MaxICMPError)
	for name, n := range map[string]int{
		"other version": ICMPError(dst, b, p, NetUnreachable, 0, gateway6),
		"no source":     ICMPError(dst, b, p, NetUnreachable, 0, netip.Addr{}),
		"unknown kind":  ICMPError(dst, b, p, 99, 0, gateway4),
		"no room":       ICMPError(dst[:55], b, p, NetUnreachable, 0, gateway4),
		"no bytes":      ICMPError(nil, b, p, NetUnreachable, 0, gateway4),
	} {
		if n != 0 {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
	if n := ICMPError(dst[:56], b, p, NetUnreachable, 0, gateway4); n != 56 {
		t.Errorf("little room: %d bytes", n)
	}
	six := flow{v6: true}.udp(t, pattern(3000))
	for _, mtu := range []int{-1, 0} {
		ICMPError(dst, b, p, PacketTooBig, mtu, gateway4)
		if got := ICMP(dst[20:]).MTU(false); got != 0 {
			t.Errorf("MTU %d is said as %d", mtu, got)
		}
		ICMPError(dst, six, mustParse(t, six), PacketTooBig, mtu, gateway6)
		if got := ICMP(dst[40:]).MTU(true); got != 0 {
			t.Errorf("MTU %d is said as %d", mtu, got)
		}
	}
	if n := ICMPError(dst, b, p, PacketTooBig, 1<<20, gateway4); n != 576 || ICMP(dst[20:]).MTU(false) != 65535 {
		t.Errorf("large MTU: %d", ICMP(dst[20:]).MTU(false))
	}
}

func TestMayAnswer(t *testing.T) {
	to := func(src, dst string) []byte {
		return flow{v6: netip.MustParseAddr(src).Is6(), src: src, dst: dst}.udp(t, pattern(16))
	}
	icmp4 := func(typ byte) []byte { return flow{}.raw(t, ProtoICMP, []byte{typ, 0, 0, 0, 0, 0, 0, 0}) }
	icmp6 := func(typ byte) []byte { return flow{v6: true}.raw(t, ProtoICMPv6, []byte{typ, 0, 0, 0, 0, 0, 0, 0}) }
	a4, a6 := "10.244.1.2", "fd00::1"
	for _, c := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"udp", to(a4, "10.244.2.3"), true},
		{"udp6", to(a6, "fd00::2"), true},
		{"udp that looks like an ICMP error", flow{sport: 0x0304}.udp(t, nil), true},
		{"udp6 that looks like an ICMP error", flow{v6: true, sport: 0x0104}.udp(t, nil), true},
		{"first fragment", edit(to(a4, "10.244.2.3"), func(b []byte) { b[6] = 0x20 }), true},
		{"later fragment", edit(to(a4, "10.244.2.3"), func(b []byte) { b[7] = 1 }), false},
		{"to multicast", to(a4, "224.0.0.251"), false},
		{"to broadcast", to(a4, "255.255.255.255"), false},
		{"to class E", to(a4, "240.1.2.3"), false},
		{"to loopback", to(a4, "127.0.0.1"), false},
		{"to 0.0.0.0", to(a4, "0.0.0.0"), false},
		{"from 0.0.0.0", to("0.0.0.0", a4), false},
		{"from 0.1.2.3", to("0.1.2.3", a4), false},
		{"from loopback", to("127.5.0.1", a4), false},
		{"from multicast", to("224.0.0.1", a4), false},
		{"from broadcast", to("255.255.255.255", a4), false},
		{"from ::", to("::", a6), false},
		{"from ::1", to("::1", a6), false},
		{"from ff02::1", to("ff02::1", a6), false},
		{"to ff02::1", to(a6, "ff02::1"), false},
		{"echo", icmp4(8), true}, {"echo reply", icmp4(0), true}, {"timestamp", icmp4(13), true},
		{"unreachable", icmp4(3), false}, {"quench", icmp4(4), false}, {"redirect", icmp4(5), false},
		{"exceeded", icmp4(11), false}, {"parameter", icmp4(12), false}, {"unknown", icmp4(200), false},
		{"empty icmp", flow{}.raw(t, ProtoICMP, nil), false},
		{"echo6", icmp6(128), true}, {"echo reply6", icmp6(129), true}, {"solicitation", icmp6(135), true},
		{"unreachable6", icmp6(1), false}, {"too big6", icmp6(2), false}, {"unknown error6", icmp6(127), false},
		{"redirect6", icmp6(137), false}, {"empty icmp6", flow{v6: true}.raw(t, ProtoICMPv6, nil), false},
	} {
		if got := MayAnswer(c.b, mustParse(t, c.b)); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestQuotedFlow(t *testing.T) {
	quote := func(v6 bool, typ byte, inner []byte) []byte {
		proto := ProtoICMP
		if v6 {
			proto = ProtoICMPv6
		}
		return flow{v6: v6}.raw(t, proto, append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, inner...))
	}
	u4, u6 := flow{sport: 1, dport: 2}.udp(t, pattern(99)), flow{v6: true, sport: 1, dport: 2}.udp(t, pattern(99))
	e4 := flow{}.echo(t, 6, pattern(9))
	ext := flow{v6: true, sport: 1, dport: 2, ext: []byte{17, 0, 1, 4, 0, 0, 0, 0}, extFirst: 60}.udp(t, pattern(9))
	badsum := bytes.Clone(u4)
	badsum[10] ^= 1 // TTL and checksum may have changed on the way
	for _, c := range []struct {
		name         string
		b            []byte
		ok           bool
		sport, dport uint16
		l4           uint16
		frag         Frag
	}{
		{"udp, 8 bytes of it", quote(false, 3, u4[:28]), true, 1, 2, 20, NotFrag},
		{"nothing", quote(false, 3, nil), false, 0, 0, 0, 0},
		{"udp, 4 bytes of it", quote(false, 11, u4[:24]), true, 1, 2, 20, NotFrag},
		{"udp, 3 bytes of it", quote(false, 11, u4[:23]), true, 0, 0, 20, NotFrag},
		{"header only", quote(false, 3, u4[:20]), true, 0, 0, 20, NotFrag},
		{"bad header checksum", quote(false, 3, badsum[:28]), true, 1, 2, 20, NotFrag},
		{"echo", quote(false, 3, e4), true, 6, 6, 20, NotFrag},
		{"echo, cut", quote(false, 3, e4[:25]), true, 0, 0, 20, NotFrag},
		{"first fragment", quote(false, 3, edit(u4, func(b []byte) { b[6] = 0x20 })), true, 0, 0, 20, FirstFrag},
		{"later fragment", quote(false, 3, edit(u4, func(b []byte) { b[7] = 1 })), true, 0, 0, 20, LaterFrag},
		{"cut header", quote(false, 3, u4[:19]), false, 0, 0, 0, 0},
		{"bad IHL", quote(false, 3, edit(u4, func(b []byte) { b[0] = 0x44 })), false, 0, 0, 0, 0},
		{"options cut off", quote(false, 3, edit(u4[:28], func(b []byte) { b[0] = 0x4f })), false, 0, 0, 0, 0},
		{"no error", quote(false, 8, u4), false, 0, 0, 0, 0},
		{"wrong version", quote(false, 3, u6), false, 0, 0, 0, 0},
		{"udp6", quote(true, 1, u6[:48]), true, 1, 2, 40, NotFrag},
		{"udp6 with extension", quote(true, 2, ext[:56]), true, 1, 2, 48, NotFrag},
		{"udp6 with extension cut off", quote(true, 2, ext[:46]), false, 0, 0, 0, 0},
		{"udp6 header only", quote(true, 3, u6[:40]), true, 0, 0, 40, NotFrag},
		{"udp6 cut header", quote(true, 3, u6[:39]), false, 0, 0, 0, 0},
		{"redirect6", quote(true, 137, u6), false, 0, 0, 0, 0},
		{"wrong version 6", quote(true, 1, u4), false, 0, 0, 0, 0},
		{"no icmp", u4, false, 0, 0, 0, 0},
		{"short icmp", flow{}.raw(t, ProtoICMP, []byte{3, 0, 0}), false, 0, 0, 0, 0},
	} {
		var q Packet
		ok := QuotedFlow(c.b, mustParse(t, c.b), &q)
		if ok != c.ok || ok && (q.SrcPort != c.sport || q.DstPort != c.dport || q.L4 != c.l4 || q.Frag != c.frag) {
			t.Errorf("%s: %v %+v", c.name, ok, q)
		}
	}
}
