package encap

import (
	"bytes"
	"crypto/sha256"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	vtepA = MAC{0x02, 1, 2, 3, 4, 5}
	vtepB = MAC{0x02, 9, 8, 7, 6, 5}
)

// The header must be what an independent encoder writes.
func TestVXLANHeaderAgainstGopacket(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		inner := flow{v6: v6}.udp(t, pattern(30))
		etherType := layers.EthernetTypeIPv4
		if v6 {
			etherType = layers.EthernetTypeIPv6
		}
		for _, vni := range []uint32{0, 1, 0x123456, 0xffffff} {
			want := serialize(t, &layers.VXLAN{ValidIDFlag: true, VNI: vni},
				&layers.Ethernet{SrcMAC: net.HardwareAddr(vtepA[:]), DstMAC: net.HardwareAddr(vtepB[:]), EthernetType: etherType},
				gopacket.Payload(inner))
			h := NewVXLANHeader(vni, vtepB, vtepA)
			got := make([]byte, h.Len())
			h.Put(got, v6)
			got = append(got, inner...)
			if !bytes.Equal(got, want) {
				t.Fatalf("vni %#x v6=%v:\n got %x\nwant %x", vni, v6, got, want)
			}
			off, f := Decap(KindVXLAN, got, vni, vtepB)
			if f != OK || !bytes.Equal(got[off:], inner) {
				t.Errorf("Decap: offset %d, %v", off, f)
			}
		}
	}
	var none Header
	none.Put(nil, true)
	if none.Len() != 0 {
		t.Errorf("the zero header has %d bytes", none.Len())
	}
}

func TestDecap(t *testing.T) {
	in4, in6 := flow{}.udp(t, pattern(30)), flow{v6: true}.udp(t, pattern(30))
	vxlan := func(change func(b []byte)) []byte {
		h := NewVXLANHeader(7, vtepB, vtepA)
		b := make([]byte, h.Len())
		h.Put(b, false)
		b = append(b, in4...)
		change(b)
		return b
	}
	ipip := func(proto layers.IPProtocol, inner []byte, change func(b []byte)) []byte {
		b := serialize(t, &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: net.IP{192, 0, 2, 1}, DstIP: net.IP{192, 0, 2, 2}},
			gopacket.Payload(inner))
		change(b)
		return b
	}
	same := func([]byte) {}
	tests := []struct {
		name string
		k    Kind
		b    []byte
		off  int
		want Fault
	}{
		{"udp 4", KindUDP, in4, 0, OK},
		{"udp 6", KindUDP, in6, 0, OK},
		{"udp empty", KindUDP, nil, 0, FaultShort},
		{"udp something", KindUDP, []byte{0x10, 0, 0}, 0, FaultNotIP},
		{"vxlan", KindVXLAN, vxlan(same), 22, OK},
		{"vxlan reserved bits", KindVXLAN, vxlan(func(b []byte) { b[0], b[1], b[2], b[3], b[7] = 0xff, 0xff, 0xff, 0xff, 0xff }), 22, OK},
		{"vxlan without I", KindVXLAN, vxlan(func(b []byte) { b[0] = 0xf7 }), 0, FaultBadVXLAN},
		{"vxlan other VNI", KindVXLAN, vxlan(func(b []byte) { b[4] = 1 }), 0, FaultWrongVNI},
		{"vxlan other MAC", KindVXLAN, vxlan(func(b []byte) { b[13] ^= 1 }), 0, FaultWrongMAC},
		{"vxlan broadcast", KindVXLAN, vxlan(func(b []byte) { copy(b[8:], "\xff\xff\xff\xff\xff\xff") }), 0, FaultWrongMAC},
		{"vxlan ARP", KindVXLAN, vxlan(func(b []byte) { b[21] = 6 }), 0, FaultNotIP},
		{"vxlan type against version", KindVXLAN, vxlan(func(b []byte) { b[20], b[21] = 0x86, 0xdd }), 0, FaultNotIP},
		{"vxlan cut", KindVXLAN, vxlan(same)[:21], 0, FaultShort},
		{"vxlan without packet", KindVXLAN, vxlan(same)[:22], 0, FaultShort},
		{"ipip 4", KindIPIP, ipip(4, in4, same), 20, OK},
		{"ipip 6", KindIPIP, ipip(41, in6, same), 20, OK},
		{"ipip 4 in 41", KindIPIP, ipip(41, in4, same), 0, FaultNotIP},
		{"ipip 6 in 4", KindIPIP, ipip(4, in6, same), 0, FaultNotIP},
		{"ipip other protocol", KindIPIP, ipip(47, in4, same), 0, FaultBadOuter},
		{"ipip bad IHL", KindIPIP, ipip(4, in4, func(b []byte) { b[0] = 0x44 }), 0, FaultBadOuter},
		{"ipip bad length", KindIPIP, ipip(4, in4, func(b []byte) { b[3]++ }), 0, FaultBadOuter},
		{"ipip version", KindIPIP, ipip(4, in4, func(b []byte) { b[0] = 0x65 }), 0, FaultBadOuter},
		{"ipip cut", KindIPIP, ipip(4, in4, same)[:19], 0, FaultShort},
		{"ipip, one byte", KindIPIP, ipip(4, in4[:1], same), 20, OK},
		{"ipip without packet", KindIPIP, ipip(4, nil, same), 0, FaultShort},
		{"ipip options", KindIPIP, append(append(ipip(4, in4, func(b []byte) { b[0] = 0x46; b[3] += 4 })[:20], 1, 1, 1, 0), in4...), 24, OK},
	}
	for _, tt := range tests {
		off, f := Decap(tt.k, tt.b, 7, vtepB)
		if off != tt.off || f != tt.want {
			t.Errorf("%s: %d, %v; want %d, %v", tt.name, off, f, tt.off, tt.want)
		}
	}
}

func TestKind(t *testing.T) {
	for _, c := range []struct {
		k            Kind
		name         string
		over4, over6 int
		header, mtu  int
		port         uint16
	}{
		{KindUDP, "udp", 28, 48, 0, 1472, 8285},
		{KindVXLAN, "vxlan", 50, 70, 22, 1450, 8472},
		{KindIPIP, "ipip", 20, 40, 0, 1480, 0},
	} {
		if c.k.String() != c.name || c.k.Overhead(false) != c.over4 || c.k.Overhead(true) != c.over6 ||
			c.k.HeaderLen() != c.header || PodMTU(1500, c.k, false) != c.mtu || c.k.DefaultPort() != c.port {
			t.Errorf("%v: overhead %d and %d, header %d, MTU %d, port %d", c.k, c.k.Overhead(false), c.k.Overhead(true),
				c.k.HeaderLen(), PodMTU(1500, c.k, false), c.k.DefaultPort())
		}
		if k, err := ParseKind(c.name); err != nil || k != c.k {
			t.Errorf("ParseKind(%q) = %v, %v", c.name, k, err)
		}
	}
	if _, err := ParseKind("gre"); err == nil {
		t.Error("ParseKind took gre")
	}
	if got := Kind(3).String(); got != "kind(3)" {
		t.Error(got)
	}
}

func TestVTEPMAC(t *testing.T) {
	sum := sha256.Sum256([]byte("192.0.2.1|1"))
	want := MAC{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
	if got := VTEPMAC(netip.MustParseAddr("192.0.2.1"), 1); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	// The same after an upgrade: the value itself, as sha256sum says it.
	if got := want.String(); got != "02:01:dd:0b:1c:70" {
		t.Errorf("%s", got)
	}
	if VTEPMAC(netip.MustParseAddr("::ffff:192.0.2.1"), 1) != want {
		t.Error("a mapped address gives another MAC")
	}
	if VTEPMAC(netip.MustParseAddr("192.0.2.1"), 2) == want || VTEPMAC(netip.MustParseAddr("192.0.2.2"), 1) == want {
		t.Error("two VTEPs with one MAC")
	}
}
