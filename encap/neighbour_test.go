package encap

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	podMAC  = MAC{0x0a, 1, 2, 3, 4, 5}
	hostMAC = MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
	link4   = netip.MustParseAddr("169.254.1.1")
	link6   = netip.MustParseAddr("fe80::1")
)

func arpRequestFrame(t testing.TB, sender, target netip.Addr) []byte {
	return serialize(t,
		&layers.Ethernet{SrcMAC: podMAC[:], DstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: 1, Protocol: 0x0800, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
			SourceHwAddress: podMAC[:], SourceProtAddress: sender.AsSlice(), DstHwAddress: make([]byte, 6), DstProtAddress: target.AsSlice()})
}

func TestARPReply(t *testing.T) {
	for _, sender := range []netip.Addr{pod4a, netip.IPv4Unspecified()} {
		dst := make([]byte, ARPReplyLen)
		req := arpRequestFrame(t, sender, link4)
		n := ARPReply(dst, req[:ARPReplyLen:ARPReplyLen], link4, hostMAC)
		if ARPReply(dst, req, link4, hostMAC) != n {
			t.Error("padded to 60 bytes it is not answered")
		}
		want := serialize(t,
			&layers.Ethernet{SrcMAC: hostMAC[:], DstMAC: podMAC[:], EthernetType: layers.EthernetTypeARP},
			&layers.ARP{AddrType: 1, Protocol: 0x0800, HwAddressSize: 6, ProtAddressSize: 4, Operation: 2,
				SourceHwAddress: hostMAC[:], SourceProtAddress: link4.AsSlice(), DstHwAddress: podMAC[:], DstProtAddress: sender.AsSlice()})
		want = want[:ARPReplyLen] // gopacket pads to 60 bytes, as a wire needs and a veth does not
		if !bytes.Equal(dst[:n], want) {
			t.Errorf("from %v:\n got %x\nwant %x", sender, dst[:n], want)
		}
	}
	req := arpRequestFrame(t, pod4a, link4)
	change := func(at int, v byte) []byte { b := bytes.Clone(req); b[at] = v; return b }
	for name, b := range map[string][]byte{
		"other target": arpRequestFrame(t, pod4a, pod4b), "announcement": arpRequestFrame(t, link4, link4), "cut": req[:41],
		"reply": change(21, 2), "other type": change(13, 0), "hardware": change(15, 6), "protocol": change(16, 9),
		"hardware length": change(18, 8), "protocol length": change(19, 16), "from a group": change(22, 1), "empty": nil,
	} {
		if n := ARPReply(make([]byte, 64), b, link4, hostMAC); n != 0 {
			t.Errorf("%s: answered", name)
		}
	}
	if ARPReply(make([]byte, 64), req, link6, hostMAC) != 0 || ARPReply(make([]byte, 41), req, link4, hostMAC) != 0 {
		t.Error("answered for an IPv6 gateway, or without room")
	}
}

type solicit struct {
	src, dst, target netip.Addr
	hop              uint8
	code             uint8
	opts             layers.ICMPv6Options
	ext              bool
}

func (s solicit) frame(t testing.TB) []byte {
	ip := &layers.IPv6{Version: 6, NextHeader: 58, HopLimit: s.hop, SrcIP: s.src.AsSlice(), DstIP: s.dst.AsSlice()}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(135, s.code)}
	_ = icmp.SetNetworkLayerForChecksum(ip)
	b := serialize(t, ip, icmp, &layers.ICMPv6NeighborSolicitation{TargetAddress: s.target.AsSlice(), Options: s.opts})
	return serialize(t, &layers.Ethernet{SrcMAC: podMAC[:], DstMAC: net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 1}, EthernetType: 0x86dd},
		gopacket.Payload(b))
}

func TestNeighbourAdvert(t *testing.T) {
	podLink, group := netip.MustParseAddr("fe80::abcd"), netip.MustParseAddr("ff02::1:ff00:1")
	slla := layers.ICMPv6Options{{Type: 1, Data: []byte{0x0a, 9, 9, 9, 9, 9}}}
	good := solicit{podLink, group, link6, 255, 0, slla, false}
	answer := func(dstMAC MAC, to netip.Addr, flags uint8) []byte {
		ip := &layers.IPv6{Version: 6, TrafficClass: 0xc0, NextHeader: 58, HopLimit: 255, SrcIP: link6.AsSlice(), DstIP: to.AsSlice()}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(136, 0)}
		_ = icmp.SetNetworkLayerForChecksum(ip)
		b := serialize(t, ip, icmp, &layers.ICMPv6NeighborAdvertisement{Flags: flags, TargetAddress: link6.AsSlice(),
			Options: layers.ICMPv6Options{{Type: 2, Data: hostMAC[:]}}})
		return serialize(t, &layers.Ethernet{SrcMAC: hostMAC[:], DstMAC: dstMAC[:], EthernetType: 0x86dd}, gopacket.Payload(b))
	}
	with := func(change func(s *solicit)) solicit { s := good; change(&s); return s }
	for _, c := range []struct {
		name string
		s    solicit
		want []byte
	}{
		{"multicast", good, answer(MAC{0x0a, 9, 9, 9, 9, 9}, podLink, 0xe0)},
		{"unicast, no option", with(func(s *solicit) { s.dst, s.opts = link6, nil }), answer(podMAC, podLink, 0xe0)},
		{"unknown option", with(func(s *solicit) { s.opts = layers.ICMPv6Options{{Type: 99, Data: make([]byte, 14)}} }), answer(podMAC, podLink, 0xe0)},
		{"unknown option of a MAC's length", with(func(s *solicit) { s.opts = layers.ICMPv6Options{{Type: 99, Data: []byte{0x0a, 9, 9, 9, 9, 9}}} }), answer(podMAC, podLink, 0xe0)},
		{"source option of another length", with(func(s *solicit) { s.opts = layers.ICMPv6Options{{Type: 1, Data: make([]byte, 14)}} }), answer(podMAC, podLink, 0xe0)},
		{"duplicate address detection", with(func(s *solicit) { s.src, s.opts = netip.IPv6Unspecified(), nil }),
			answer(MAC{0x33, 0x33, 0, 0, 0, 1}, netip.MustParseAddr("ff02::1"), 0xa0)},
		{"detection with source option", with(func(s *solicit) { s.src = netip.IPv6Unspecified() }), nil},
		{"detection by unicast", with(func(s *solicit) { s.src, s.opts, s.dst = netip.IPv6Unspecified(), nil, link6 }), nil},
		{"other target", with(func(s *solicit) { s.target = podLink }), nil},
		{"routed", with(func(s *solicit) { s.hop = 254 }), nil},
		{"code", with(func(s *solicit) { s.code = 1 }), nil},
		{"from a group", with(func(s *solicit) { s.src = group }), nil},
		{"from the gateway itself", with(func(s *solicit) { s.src = link6 }), nil},
		{"group MAC", with(func(s *solicit) { s.opts = layers.ICMPv6Options{{Type: 1, Data: []byte{1, 9, 9, 9, 9, 9}}} }), nil},
	} {
		dst := make([]byte, NeighbourAdvertLen)
		n := NeighbourAdvert(dst, append(c.s.frame(t), 0, 0), link6, hostMAC)
		if !bytes.Equal(dst[:n], c.want) {
			t.Errorf("%s:\n got %x\nwant %x", c.name, dst[:n], c.want)
		}
	}
	frame := good.frame(t)
	for _, n := range []int{4, 8, 20, 23} { // too short for a target, but with a right checksum
		sol := make(ICMP, n)
		sol[0] = 135
		b := flow{v6: true, ttl: 255, src: "fe80::abcd", dst: "fe80::1"}.raw(t, ProtoICMPv6, sol)
		sol = b[40:]
		sol.setChecksum(^Fold(Sum(sol, Sum(b[8:40], 58+uint32(n)))))
		short := make([]byte, 14+len(b))
		Ethernet(short).Put(hostMAC, podMAC, EtherTypeIPv6)
		copy(short[14:], b)
		if NeighbourAdvert(make([]byte, 100), short, link6, hostMAC) != 0 {
			t.Errorf("answered a solicitation of %d bytes", n)
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"checksum":     func(b []byte) []byte { b[57] ^= 1; return b },
		"cut":          func(b []byte) []byte { return b[:70] },
		"no frame":     func(b []byte) []byte { return b[:13] },
		"ethertype":    func(b []byte) []byte { b[12] = 8; return b },
		"advert":       func(b []byte) []byte { b[54] = 136; return b },
		"empty option": func(b []byte) []byte { b[79] = 0; return b },
		"long option":  func(b []byte) []byte { b[79] = 2; return b },
	} {
		b := change(bytes.Clone(frame))
		if name == "empty option" || name == "long option" { // valid but for the option
			IPv6(b[14:]).setPayloadLen(len(b) - 54)
			icmp := ICMP(b[54:])
			icmp.setChecksum(0)
			icmp.setChecksum(^Fold(Sum(icmp, Sum(b[22:54], 58+uint32(len(icmp))))))
		}
		if NeighbourAdvert(make([]byte, 100), b, link6, hostMAC) != 0 {
			t.Errorf("%s: answered", name)
		}
	}
	if NeighbourAdvert(make([]byte, 85), frame, link6, hostMAC) != 0 || NeighbourAdvert(make([]byte, 100), frame, link4, hostMAC) != 0 {
		t.Error("answered without room, or for an IPv4 gateway")
	}
}
