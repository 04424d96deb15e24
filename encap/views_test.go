package encap

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// Every field that a view shows is what gopacket decodes there.
func TestViewsAgainstGopacket(t *testing.T) {
	frame := func(inner []byte, typ layers.EthernetType) []byte {
		return serialize(t, &layers.Ethernet{SrcMAC: podMAC[:], DstMAC: hostMAC[:], EthernetType: typ}, gopacket.Payload(inner))
	}
	addr := func(ip net.IP) netip.Addr { a, _ := netip.AddrFromSlice(ip); return a }
	opts := []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 7}}}
	tcp := layers.TCP{Seq: 0x01020304, Ack: 0x05060708, ACK: true, PSH: true, CWR: true, Window: 0x0a0b, Options: timestamps(1, 2)}

	b := frame(edit(flow{id: 0x1234, tos: 0x5a, ttl: 77, df: true, sport: 0x1122, dport: 0x3344, ipOpts: opts}.tcp(t, tcp, pattern(50)),
		func(b []byte) { b[6] |= 0x20; b[7] = 3 }), layers.EthernetTypeIPv4)
	pkt := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	eth := pkt.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
	e := Ethernet(b)
	if d, s := e.Dst(), e.Src(); !bytes.Equal(d[:], eth.DstMAC) || !bytes.Equal(s[:], eth.SrcMAC) || e.EtherType() != uint16(eth.EthernetType) ||
		s.String() != eth.SrcMAC.String() || s.IsMulticast() || s.IsZero() || !(MAC{1}).IsMulticast() || !(MAC{}).IsZero() {
		t.Errorf("Ethernet: %v %v %#x", e.Dst(), e.Src(), e.EtherType())
	}
	ip4 := pkt.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	h := IPv4(e.Payload())
	if h.Version() != 4 || h.HeaderLen() != int(ip4.IHL)*4 || h.TOS() != ip4.TOS || h.TotalLen() != int(ip4.Length) || h.ID() != ip4.Id ||
		!h.DF() || !h.MF() || h.FragOffset() != int(ip4.FragOffset)*8 || h.TTL() != ip4.TTL || h.Proto() != uint8(ip4.Protocol) ||
		h.Checksum() != ip4.Checksum || h.Src() != addr(ip4.SrcIP) || h.Dst() != addr(ip4.DstIP) || !bytes.Equal(h.Options(), []byte{148, 4, 0, 7}) {
		t.Errorf("IPv4: % x", h[:24])
	}

	b = flow{v6: true, tos: 0x5a, ttl: 77, sport: 0x1122, dport: 0x3344}.tcp(t, tcp, pattern(50))
	pkt = gopacket.NewPacket(b, layers.LayerTypeIPv6, gopacket.Default)
	ip6, tl := pkt.Layer(layers.LayerTypeIPv6).(*layers.IPv6), pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
	g := IPv6(b)
	if g.Version() != 6 || g.TOS() != ip6.TrafficClass || g.FlowLabel() != ip6.FlowLabel || g.PayloadLen() != int(ip6.Length) ||
		g.NextHeader() != uint8(ip6.NextHeader) || g.HopLimit() != ip6.HopLimit || g.Src() != addr(ip6.SrcIP) || g.Dst() != addr(ip6.DstIP) {
		t.Errorf("IPv6: % x", b[:40])
	}
	again := IPv6(bytes.Repeat([]byte{0xee}, 40))
	again.Put(g.TOS(), g.PayloadLen(), g.NextHeader(), g.HopLimit(), g.Src(), g.Dst())
	if again[1]&15 != 0 || again[2] != 0 || again[3] != 0 {
		t.Errorf("Put wrote flow label %#x", again.FlowLabel())
	}
	copy(again[1:4], []byte{again[1] | b[1]&15, b[2], b[3]})
	if !bytes.Equal(again, b[:40]) {
		t.Errorf("Put wrote % x, want % x", again, b[:40])
	}
	c := TCP(b[40:])
	if c.SrcPort() != uint16(tl.SrcPort) || c.DstPort() != uint16(tl.DstPort) || c.Seq() != tl.Seq || c.Ack() != tl.Ack || c.HeaderLen() != 32 ||
		c.Flags() != TCPAck|TCPPsh|TCPCwr || c.Window() != tl.Window || c.Checksum() != tl.Checksum || !bytes.Equal(c.Options(), tl.Contents[20:]) {
		t.Errorf("TCP: % x", c[:32])
	}

	b = flow{sport: 0x1122, dport: 0x3344}.udp(t, pattern(50))
	ul := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.Default).Layer(layers.LayerTypeUDP).(*layers.UDP)
	u := UDP(b[20:])
	if u.SrcPort() != uint16(ul.SrcPort) || u.DstPort() != uint16(ul.DstPort) || u.Length() != int(ul.Length) || u.Checksum() != ul.Checksum {
		t.Errorf("UDP: % x", u[:8])
	}

	b = flow{}.echo(t, 0x4321, pattern(50))
	il := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.Default).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	i := ICMP(b[20:])
	if i.Type() != il.TypeCode.Type() || i.Code() != il.TypeCode.Code() || i.Checksum() != il.Checksum || i.ID() != il.Id || i.Seq() != il.Seq {
		t.Errorf("ICMP: % x", i[:8])
	}
	i = ICMP{3, 4, 0, 0, 1, 2, 3, 4}
	if i.Code() != 4 || i.MTU(false) != 0x0304 || i.MTU(true) != 0x01020304 {
		t.Errorf("ICMP: code %d, MTU %#x and %#x", i.Code(), i.MTU(false), i.MTU(true))
	}

	b = arpRequestFrame(t, pod4a, link4)
	a := ARP(b[14:])
	if !a.Valid() || a.Op() != 1 || a.SenderMAC() != podMAC || a.Sender() != pod4a || a.Target() != link4 {
		t.Errorf("ARP: % x", a[:28])
	}
	x := VXLAN{0x08, 0, 0, 0, 0x12, 0x34, 0x56, 0xff}
	if !x.Valid() || x.VNI() != 0x123456 {
		t.Errorf("VXLAN: VNI %#x", x.VNI())
	}
}
