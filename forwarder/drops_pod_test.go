package forwarder

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// mangle changes bytes of a packet; header checksums are mended unless keep.
func mangle(ip []byte, edit func(b []byte) []byte) []byte {
	ip = edit(append([]byte{}, ip...))
	if len(ip) >= 20 && ip[0]>>4 == 4 {
		if n := int(ip[0]&15) * 4; n >= 20 && n <= len(ip) {
			binary.BigEndian.PutUint16(ip[10:], 0)
			binary.BigEndian.PutUint16(ip[10:], ^slowSum(ip[:n]))
		}
	}
	return ip
}

// raw4 is an IPv4 packet of any protocol with these bytes behind the header.
func raw4(src, dst netip.Addr, proto uint8, payload []byte, edit ...func(*layers.IPv4)) []byte {
	return ipPacket(src, dst, layers.IPProtocol(proto), payloadLayer(payload), nil, edit...)
}

// raw6 is an IPv6 packet of any next header with these bytes behind the fixed header.
func raw6(src, dst netip.Addr, next uint8, payload []byte) []byte {
	b := make([]byte, 40, 40+len(payload))
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, payload...)
}

// icmp6 is an ICMPv6 message with its checksum.
func icmp6(src, dst netip.Addr, hops uint8, message []byte) []byte {
	b := raw6(src, dst, encap.ProtoICMPv6, message)
	b[7] = hops
	sum := append(append([]byte{}, b[8:40]...), 0, 0, 0, 0, 0, 0, 0, encap.ProtoICMPv6)
	binary.BigEndian.PutUint32(sum[32:], uint32(len(message)))
	binary.BigEndian.PutUint16(b[42:], 0)
	binary.BigEndian.PutUint16(b[42:], ^slowSum(append(sum, b[40:]...)))
	return b
}

// podDrops are packets from a pod, each with the one reason that it must be
// dropped for; answered: the pod gets an ICMP error.
var podDrops = []struct {
	name     string
	ip       []byte
	v        ring.Virtio
	want     Reason
	answered bool
}{
	{name: "short v4", ip: []byte{0x45, 0, 0, 20, 0}, want: DropShort},
	{name: "short v6", ip: raw6(podA1v6, podBv6, 17, nil)[:39], want: DropShort},
	{name: "version 5", ip: mangle(udpPacket(podA1, podB, 1, 2, 9), func(b []byte) []byte { b[0] = 0x55; return b }), want: DropBadVersion},
	{name: "header length 16", ip: mangle(udpPacket(podA1, podB, 1, 2, 9), func(b []byte) []byte { b[0] = 0x44; return b }), want: DropBadHeaderLength},
	{name: "total length beyond", ip: mangle(udpPacket(podA1, podB, 1, 2, 9), func(b []byte) []byte { b[3]++; return b }), want: DropBadTotalLength},
	{name: "payload length beyond", ip: mangle(udpPacket(podA1v6, podBv6, 1, 2, 9), func(b []byte) []byte { b[5]++; return b }), want: DropBadTotalLength},
	{name: "header checksum", ip: func() []byte { b := udpPacket(podA1, podB, 1, 2, 9); b[10] ^= 1; return b }(), want: DropBadIPChecksum},
	{name: "option leaves the header", ip: mangle(raw4(podA1, podB, 200, []byte{7, 40, 4, 0}), func(b []byte) []byte { b[0] = 0x46; return b }), want: DropBadOptions},
	{name: "loose source route", ip: udpPacket(podA1, podB, 1, 2, 9, func(ip *layers.IPv4) {
		ip.Options = []layers.IPv4Option{{OptionType: 131, OptionLength: 7, OptionData: []byte{4, 10, 244, 2, 9}}, {OptionType: 0}}
	}), want: DropBadOptions},
	{name: "routing header type 0", ip: raw6(podA1v6, podBv6, 43, []byte{59, 0, 0, 1, 0, 0, 0, 0}), want: DropBadOptions},
	{name: "hop-by-hop out of place", ip: raw6(podA1v6, podBv6, 60, []byte{0, 0, 1, 4, 0, 0, 0, 0, 59, 0, 1, 4, 0, 0, 0, 0}), want: DropBadOptions},
	{name: "extension leaves the packet", ip: raw6(podA1v6, podBv6, 60, []byte{59, 9, 1, 4, 0, 0, 0, 0}), want: DropBadOptions},
	{name: "fragment not a multiple of 8", ip: raw4(podA1, podB, 17, make([]byte, 12), func(ip *layers.IPv4) { ip.Flags = layers.IPv4MoreFragments }), want: DropBadFragment},
	{name: "ping of death", ip: raw4(podA1, podB, 1, make([]byte, 100), func(ip *layers.IPv4) { ip.Flags, ip.FragOffset = 0, 8190 }), want: DropBadFragment},
	{name: "cut TCP header", ip: raw4(podA1, podB, 6, make([]byte, 19)), want: DropBadL4},
	{name: "UDP length beyond", ip: raw4(podA1, podB, 17, []byte{0, 1, 0, 2, 0, 99, 0, 0}), want: DropBadL4},
	{name: "NEEDS_CSUM beyond the end", ip: udpPacket(podA1, podB, 1, 2, 9), v: ring.Virtio{Flags: 1, CsumStart: 20, CsumOffset: 60}, want: DropBadVirtio},
	{name: "GSO type of another version", ip: tcpPacket(podA1, podB, 1, 2000), v: ring.Virtio{Flags: 1, CsumStart: 20, CsumOffset: 16, GSOType: ring.GSOTCPv6, GSOSize: 1000}, want: DropBadVirtio},
	{name: "GSO size 0", ip: tcpPacket(podA1, podB, 1, 2000), v: ring.Virtio{Flags: 1, CsumStart: 20, CsumOffset: 16, GSOType: ring.GSOTCPv4}, want: DropBadVirtio},
	{name: "UFO", ip: udpPacket(podA1, podB, 1, 2, 2000), v: ring.Virtio{Flags: 1, CsumStart: 20, CsumOffset: 6, GSOType: ring.GSOUDP, GSOSize: 1000}, want: DropBadVirtio},
	{name: "unknown GSO type", ip: udpPacket(podA1, podB, 1, 2, 2000), v: ring.Virtio{Flags: 1, CsumStart: 20, CsumOffset: 6, GSOType: 0x7f, GSOSize: 1000}, want: DropBadVirtio},

	{name: "spoofed v4", ip: udpPacket(podA2, podB, 1, 2, 9), want: DropSpoofed},
	{name: "spoofed v6", ip: udpPacket(podBv6, podBv6, 1, 2, 9), want: DropSpoofed},
	{name: "redirect v4", ip: raw4(podA1, podB, 1, []byte{5, 1, 0xfa, 0xfe, 0, 0, 0, 0}), want: DropRouterAdvert},
	{name: "router advertisement", ip: icmp6(podA1v6, podBv6, 255, []byte{134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}), want: DropRouterAdvert},
	{name: "redirect v6", ip: icmp6(podA1v6, podBv6, 255, append([]byte{137}, make([]byte, 39)...)), want: DropRouterAdvert},
	{name: "redirect v4 in fragments", ip: fragmentOf(raw4(podA1, podB, 1, append([]byte{5, 1, 0xfa, 0xfe}, make([]byte, 28)...)), 0, 8), want: DropRouterAdvert},
	{name: "router advertisement in fragments", ip: raw6(podA1v6, podBv6, 44, []byte{58, 0, 0, 1, 0, 0, 0, 7, 134, 0, 0, 0, 0, 0, 0, 0}), want: DropRouterAdvert},
	{name: "redirect v6 in fragments", ip: raw6(podA1v6, podBv6, 44, []byte{58, 0, 0, 1, 0, 0, 0, 7, 137, 0, 0, 0, 0, 0, 0, 0}), want: DropRouterAdvert},
	{name: "ICMP without a header", ip: raw4(podA2, podB, 1, nil), want: DropSpoofed},
	{name: "ICMPv6 without a header", ip: raw6(podBv6, podBv6, 58, nil), want: DropSpoofed},
	{name: "multicast v4", ip: udpPacket(podA1, netip.MustParseAddr("224.0.0.251"), 5353, 5353, 9), want: DropMulticast},
	{name: "broadcast", ip: udpPacket(podA1, netip.MustParseAddr("255.255.255.255"), 68, 67, 9), want: DropMulticast},
	{name: "DHCP, still without an address", ip: udpPacket(netip.IPv4Unspecified(), netip.MustParseAddr("255.255.255.255"), 68, 67, 9), want: DropMulticast},
	{name: "multicast v6", ip: udpPacket(podA1v6, netip.MustParseAddr("ff02::fb"), 5353, 5353, 9), want: DropMulticast},
	{name: "the host's loopback", ip: udpPacket(podA1, netip.MustParseAddr("127.0.0.1"), 1, 2, 9), want: DropMartian},
	{name: "the end of the loopback network", ip: udpPacket(podA1, netip.MustParseAddr("127.255.255.254"), 1, 2, 9), want: DropMartian},
	{name: "nowhere v4", ip: udpPacket(podA1, netip.MustParseAddr("0.0.0.0"), 1, 2, 9), want: DropMartian},
	{name: "this network", ip: udpPacket(podA1, netip.MustParseAddr("0.1.2.3"), 1, 2, 9), want: DropMartian},
	{name: "loopback v6", ip: udpPacket(podA1v6, netip.MustParseAddr("::1"), 1, 2, 9), want: DropMartian},
	{name: "nowhere v6", ip: udpPacket(podA1v6, netip.MustParseAddr("::"), 1, 2, 9), want: DropMartian},
	{name: "the loopback mapped into v6", ip: udpPacket(podA1v6, netip.MustParseAddr("::ffff:127.0.0.1"), 1, 2, 9), want: DropMartian},
	{name: "solicitation for a stranger", ip: icmp6(podA1v6, netip.MustParseAddr("ff02::1:ff00:99"), 255, append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, netip.MustParseAddr("fe80::99").AsSlice()...)), want: DropMulticast},

	{name: "our tunnel port on a peer", ip: udpPacket(podA1, nodeB, 1, 8472, 9), want: DropTunnelLoop},
	{name: "our tunnel port on this node", ip: udpPacket(podA1, nodeA, 1, 8472, 9), want: DropTunnelLoop},
	{name: "our tunnel port in fragments", ip: fragmentOf(udpPacket(podA1, nodeB, 1, 8472, 64), 0, 40), want: DropTunnelLoop},
	{name: "no route v4", ip: udpPacket(podA1, netip.MustParseAddr("10.244.9.9"), 1, 2, 9), want: DropNoRoute, answered: true},
	{name: "no route v6", ip: udpPacket(podA1v6, netip.MustParseAddr("fd00:10:244:9::9"), 1, 2, 9), want: DropNoRoute, answered: true},
	{name: "no pod v4", ip: udpPacket(podA1, netip.MustParseAddr("10.244.1.200"), 1, 2, 9), want: DropNoPod, answered: true},
	{name: "no pod v6", ip: udpPacket(podA1v6, netip.MustParseAddr("fd00:10:244:1::200"), 1, 2, 9), want: DropNoPod, answered: true},
	{name: "TTL 1", ip: udpPacket(podA1, podB, 1, 2, 9, func(ip *layers.IPv4) { ip.TTL = 1 }), want: DropTTLExpired, answered: true},
	{name: "TTL 0", ip: udpPacket(podA1, podB, 1, 2, 9, func(ip *layers.IPv4) { ip.TTL = 0 }), want: DropTTLExpired, answered: true},
	{name: "hop limit 1", ip: mangle(udpPacket(podA1v6, podBv6, 1, 2, 9), func(b []byte) []byte { b[7] = 1; return b }), want: DropTTLExpired, answered: true},
	{name: "too big v4", ip: udpPacket(podA1, podB, 1, 2, 1450-27), want: DropTooBig, answered: true},
	{name: "too big v6", ip: udpPacket(podA1v6, podBv6, 1, 2, 1450-47), want: DropTooBig, answered: true},
	{name: "too big segments", ip: tcpPacket(podA1, podB, 1, 5000), v: ring.Virtio{Flags: 1, CsumStart: 20, CsumOffset: 16, GSOType: ring.GSOTCPv4, GSOSize: 1411}, want: DropTooBig, answered: true},
}

// TestDropsFromPod: each reason for which a pod's packet is dropped, by both
// ways to attach a pod, one frame at a time and then all in one batch.
func TestDropsFromPod(t *testing.T) {
	for _, attach := range []string{AttachVeth, AttachTUN} {
		frame := func(ip []byte, v ring.Virtio) ring.FakePacket {
			if attach == AttachTUN {
				return ring.FakePacket{Data: ip, Virtio: v}
			}
			return fromVeth(ip, v)
		}
		t.Run(attach, func(t *testing.T) {
			sum, generated := map[Reason]uint64{}, uint64(0)
			all := newRig(t, testSettings(encap.KindVXLAN))
			podOfAll := all.attach(attach, "a1", podA1, podA1v6)
			for _, c := range podDrops {
				t.Run(c.name, func(t *testing.T) {
					r := newRig(t, testSettings(encap.KindVXLAN))
					pod := r.attach(attach, "a1", podA1, podA1v6)
					pod.Inject(frame(c.ip, c.v))
					podOfAll.Inject(frame(c.ip, c.v))
					sum[c.want]++
					r.turn()
					r.check(map[Reason]uint64{c.want: 1})
					answers := pod.Sent()
					if (len(answers) == 1) != c.answered {
						t.Errorf("%d answers, want one: %t", len(answers), c.answered)
					}
					for _, a := range answers {
						if attach == AttachVeth {
							a.Data = a.Data[14:]
						}
						decode(t, a.Data)
					}
					r.expect(0, uint64(len(answers)), 0)
					generated += uint64(len(answers))
					if p := r.f.Ports()[0]; p.Sent.Packets != 1 || p.Dropped != 1 {
						t.Errorf("port counts %d sent, %d dropped", p.Sent.Packets, p.Dropped)
					}
				})
			}
			all.turn()
			all.check(sum)
			all.expect(0, generated, 0)
		})
	}
}

// TestDropsOfEthernet: what only a frame with a link header can have wrong.
func TestDropsOfEthernet(t *testing.T) {
	ip := udpPacket(podA1, podB, 1, 2, 9)
	typed := func(typ uint16, b []byte) []byte {
		f := fromPod(ip).Data[:14]
		binary.BigEndian.PutUint16(f[12:], typ)
		return append(f[:14:14], b...)
	}
	for _, c := range []struct {
		name string
		p    ring.FakePacket
		want Reason
	}{
		{"runt", ring.FakePacket{Data: make([]byte, 13)}, DropShort},
		{"empty", ring.FakePacket{Data: nil}, DropShort},
		{"nothing behind the header", ring.FakePacket{Data: typed(0x0800, nil)}, DropShort},
		{"IPv6 typed as IPv4", ring.FakePacket{Data: typed(0x0800, udpPacket(podA1v6, podBv6, 1, 2, 3))}, DropBadVersion},
		{"IPv4 typed as IPv6", ring.FakePacket{Data: typed(0x86dd, ip)}, DropBadVersion},
		{"LLDP", ring.FakePacket{Data: typed(0x88cc, ip)}, DropNotIP},
		{"VLAN in the frame", ring.FakePacket{Data: typed(0x8100, append([]byte{0, 5, 8, 0}, ip...))}, DropNotIP},
		{"VLAN taken out", ring.FakePacket{Data: typed(0x0800, ip), VLAN: true}, DropNotIP},
		{"truncated", ring.FakePacket{Data: typed(0x0800, ip), Truncated: true}, DropTruncated},
		{"checksum of the link header", ring.FakePacket{Data: typed(0x0800, ip), Virtio: ring.Virtio{Flags: 1, CsumStart: 4, CsumOffset: 2}}, DropBadVirtio},
		{"cut ARP", ring.FakePacket{Data: typed(0x0806, make([]byte, 20))}, DropNotIP},
		{"ARP for a stranger", ring.FakePacket{Data: arpRequest(podA1, podA2)}, DropNotIP},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			pod := r.veth("a1", podA1, podA1v6)
			pod.Inject(c.p)
			r.turn()
			r.check(map[Reason]uint64{c.want: 1})
			if n := len(pod.Sent()); n != 0 {
				t.Errorf("%d answers", n)
			}
		})
	}
}

// TestPadding: Ethernet pads short packets; the padding does not travel.
func TestPadding(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.veth("a1", podA1)
	ip := udpPacket(podA1, podB, 1, 2, 3)
	f := fromPod(ip)
	f.Data = append(f.Data, make([]byte, 60-len(f.Data))...)
	pod.Inject(f)
	r.turn()
	r.check(nil)
	if ds := datagrams(t, r.sends()); len(ds) != 1 || len(ds[0]) != len(ip) {
		t.Errorf("sent %d bytes, want %d", len(ds[0]), len(ip))
	}
}

// TestDropsFromHost: the host's own mistakes. It is not judged by its source
// address, and what it cannot have routed is answered in the name of the address
// that it could not reach.
func TestDropsFromHost(t *testing.T) {
	for _, c := range []struct {
		name     string
		ip       []byte
		want     Reason
		answered bool
	}{
		{"short", []byte{0x45}, DropShort, false},
		{"multicast", udpPacket(hostAddr, netip.MustParseAddr("224.0.0.5"), 1, 2, 9), DropMulticast, false},
		{"multicast v6", udpPacket(podA1v6, netip.MustParseAddr("ff02::2"), 1, 2, 9), DropMulticast, false},
		{"its own encapsulation", udpPacket(nodeA, nodeB, 1, 8472, 9), DropTunnelLoop, false},
		{"no route", udpPacket(hostAddr, netip.MustParseAddr("10.244.9.9"), 1, 2, 9), DropNoRoute, true},
		{"no pod", udpPacket(hostAddr, netip.MustParseAddr("10.244.1.99"), 1, 2, 9), DropNoPod, true},
		{"outside: it would come back for ever", udpPacket(hostAddr, outsideAddr, 1, 2, 9), DropNoRoute, true},
		{"itself", udpPacket(podB, hostAddr, 1, 2, 9), DropNoRoute, true},
		{"too big", udpPacket(hostAddr, podB, 1, 2, 1450-27), DropTooBig, true},
		{"TTL 0 to a peer", udpPacket(hostAddr, podB, 1, 2, 9, func(ip *layers.IPv4) { ip.TTL = 0 }), DropTTLExpired, true},
		{"TTL 0 to a pod", udpPacket(hostAddr, podA1, 1, 2, 9, func(ip *layers.IPv4) { ip.TTL = 0 }), DropTTLExpired, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindVXLAN))
			r.veth("a1", podA1)
			r.hosts[0].Inject(ring.FakePacket{Data: c.ip})
			r.turn()
			r.check(map[Reason]uint64{c.want: 1})
			got := append(r.hosts[0].Sent(), r.pods["a1"].Sent()...)
			if c.name == "itself" {
				for _, d := range datagrams(t, r.sends()) {
					got = append(got, ring.FakePacket{Data: d[22:]}) // its source is a pod of node B
				}
			}
			if (len(got) == 1) != c.answered {
				t.Fatalf("%d answers", len(got))
			}
			if c.answered {
				dst, _ := netip.AddrFromSlice(decode(t, c.ip).ip4.DstIP.To4())
				if src, _ := netip.AddrFromSlice(decode(t, got[0].Data).ip4.SrcIP.To4()); src != dst {
					t.Errorf("answer from %s, want %s", src, dst)
				}
			}
		})
	}
}

// TestHiddenTunnelPort: extension headers that fill a first fragment would hide
// where it goes until a later one comes, which is not looked at. In one that has
// four bytes behind them, as AH allows, the port is seen.
func TestHiddenTunnelPort(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	r.f.address = netip.MustParseAddr("2001:db8::1") // as if the underlay were IPv6
	pod := r.veth("a1", podA1v6)
	options := func(next uint8) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	first := append([]byte{60, 0, 0, 1, 0, 0, 0, 7}, options(encap.ProtoUDP)...)
	ah := append([]byte{51, 0, 0, 1, 0, 0, 0, 7}, encap.ProtoUDP, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x12, 0x34, 8472>>8, 8472&0xff)
	elsewhere := netip.MustParseAddr("2001:db8:99::1")
	pod.Inject(fromPod(raw6(podA1v6, r.f.address, 44, first)), fromPod(raw6(podA1v6, elsewhere, 44, first)),
		fromPod(raw6(podA1v6, r.f.address, 44, ah)), fromPod(raw6(podA1v6, elsewhere, 44, ah)))
	r.turn()
	r.check(map[Reason]uint64{DropBadFragment: 2, DropTunnelLoop: 1})
	r.expect(0, 0, 1)
}
