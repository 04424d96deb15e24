package forwarder

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table/feed"
)

// TestDropsFromWire: each reason for which what arrives from the wire is
// dropped, for each encapsulation that can have it.
func TestDropsFromWire(t *testing.T) {
	good := udpPacket(podB, podA1, 1, 2, 30)
	flip := func(at int, to byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= to; return b }
	}
	for _, kind := range kinds {
		at := 0 // of the inner packet in what the socket gives
		switch kind {
		case encap.KindVXLAN:
			at = 22
		case encap.KindIPIP:
			at = 20
		}
		type wire struct {
			name     string
			d        ring.FakeDatagram
			want     Reason
			answered bool
		}
		one := func(name string, ip []byte, want Reason, edit ...func([]byte) []byte) wire {
			b := fromPeer(kind, nodeB, ip)
			for _, e := range edit {
				b = e(b)
			}
			return wire{name, ring.FakeDatagram{Data: b, Addr: netip.AddrPortFrom(nodeB, 7)}, want, false}
		}
		answered := func(c wire) wire { c.answered = true; return c }
		with := func(c wire, edit func(*ring.FakeDatagram)) wire { edit(&c.d); return c }
		cases := []wire{
			with(one("unknown peer", good, DropUnknownPeer), func(d *ring.FakeDatagram) { d.Addr = netip.AddrPortFrom(stranger, 7) }),
			with(one("from ourselves", good, DropUnknownPeer), func(d *ring.FakeDatagram) { d.Addr = netip.AddrPortFrom(nodeA, 7) }),
			with(one("truncated", good, DropTruncated), func(d *ring.FakeDatagram) { d.Truncated = true }),
			one("inner cut", good, map[encap.Kind]Reason{encap.KindUDP: DropBadTotalLength, encap.KindVXLAN: DropBadTotalLength, encap.KindIPIP: DropBadOuter}[kind],
				func(b []byte) []byte { return b[:len(b)-1] }),
			one("inner version", good, DropNotIP, flip(at, 0x10)),
			one("inner header checksum", good, DropBadIPChecksum, flip(at+10, 1)),
			one("inner checksum", good, DropInnerChecksum, flip(at+40, 1)),
			one("inner TCP checksum", tcpPacket(podB, podA1, 1, 20), DropInnerChecksum, flip(at+50, 1)),
			one("inner ICMP checksum", raw4(podB, podA1, 1, []byte{8, 0, 1, 2, 3, 4, 5, 6}), DropInnerChecksum),
			one("source of nobody", udpPacket(outsideAddr, podA1, 1, 2, 9), DropInnerSource),
			one("source of our own pod", udpPacket(podA2, podA1, 1, 2, 9), DropInnerSource),
			one("source is our host", udpPacket(hostAddr, podA1, 1, 2, 9), DropInnerSource),
			one("outside", udpPacket(podB, outsideAddr, 1, 2, 9), DropNotLocal),
			one("back to its sender", udpPacket(podB, netip.MustParseAddr("10.244.2.6"), 1, 2, 9), DropNotLocal),
			one("multicast", udpPacket(podB, netip.MustParseAddr("224.0.0.1"), 1, 2, 9), DropNotLocal),
			one("broadcast", udpPacket(podB, broadcast4, 1, 2, 9), DropNotLocal),
			answered(one("no pod", udpPacket(podB, netip.MustParseAddr("10.244.1.99"), 1, 2, 9), DropNoPod)),
			answered(one("TTL 1", udpPacket(podB, podA1, 1, 2, 9, func(ip *layers.IPv4) { ip.TTL = 1 }), DropTTLExpired)),
			answered(one("too big", udpPacket(podB, podA1, 1, 2, 1480), DropTooBig)),
			with(one("congestion on a deaf flow", good, DropECN), func(d *ring.FakeDatagram) { d.TOS = 3 }),
			one("bare IP header of UDP", raw4(podB, podA1, 17, nil), DropBadL4),
		}
		if kind == encap.KindVXLAN {
			cases = append(cases,
				one("no I flag", good, DropBadVXLAN, flip(0, 8)),
				one("another VNI", good, DropWrongVNI, flip(6, 7)),
				one("another VTEP", good, DropWrongVTEPMAC, flip(8, 0x40)),
				one("broadcast frame", good, DropWrongVTEPMAC, func(b []byte) []byte { copy(b[8:14], "\xff\xff\xff\xff\xff\xff"); return b }),
				one("inner ARP", good, DropNotIP, flip(21, 6)),
				one("cut VXLAN", good, DropShort, func(b []byte) []byte { return b[:21] }))
		}
		if kind == encap.KindIPIP {
			cases = append(cases, one("another protocol outside", good, DropBadOuter, flip(9, 1)), one("cut outside", good, DropShort, func(b []byte) []byte { return b[:19] }))
		}
		if kind != encap.KindIPIP {
			cases = append(cases, one("empty", good, DropShort, func(b []byte) []byte { return b[:0] }))
		}
		t.Run(kind.String(), func(t *testing.T) {
			sum, answers := map[Reason]uint64{}, uint64(0)
			all := newRig(t, testSettings(kind))
			all.veth("a1", podA1)
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					r := newRig(t, testSettings(kind))
					pod := r.veth("a1", podA1)
					r.listen(kind, false).Inject(c.d)
					all.listen(kind, false).Inject(c.d)
					r.turn()
					r.check(map[Reason]uint64{c.want: 1})
					sum[c.want]++
					if n := len(pod.Sent()); n != 0 {
						t.Errorf("%d frames reached the pod", n)
					}
					got := inner(t, kind, datagrams(t, r.sends()))
					if (len(got) == 1) != c.answered {
						t.Fatalf("%d answers", len(got))
					}
					for _, ip := range got {
						answers++
						o := decode(t, ip)
						if dst, _ := netip.AddrFromSlice(o.ip4.DstIP); dst != podB {
							t.Errorf("answer to %s", dst)
						}
						if src, _ := netip.AddrFromSlice(o.ip4.SrcIP); src != hostAddr {
							t.Errorf("answer from %s", src)
						}
					}
				})
			}
			all.turn()
			all.check(sum)
			all.expect(answers, 0, 0)
		})
	}
}

// TestWrongEncap: a peer that is known, heard on the socket of another encapsulation.
func TestWrongEncap(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	r.veth("a1", podA1)
	nodeC, podC := netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("10.244.3.5")
	r.peers(
		feed.Peer{Name: "node-b", Address: nodeB, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24")}},
		feed.Peer{Name: "node-c", Address: nodeC, Encap: "udp", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}})
	udp := r.udp[2] // after vxlan's listening and sending sockets
	if udp.Local().Port() != 8285 {
		t.Fatalf("socket on port %d", udp.Local().Port())
	}
	fromC := udpPacket(podC, podA1, 1, 2, 9)
	r.udp[0].Inject(ring.FakeDatagram{Data: fromPeer(encap.KindVXLAN, nodeC, fromC), Addr: netip.AddrPortFrom(nodeC, 8472)})
	udp.Inject(
		ring.FakeDatagram{Data: udpPacket(podB, podA1, 1, 2, 9), Addr: netip.AddrPortFrom(nodeB, 8285)},
		// A whole run of a stranger counts each of its frames.
		ring.FakeDatagram{Data: make([]byte, 350), Segment: 100, Addr: netip.AddrPortFrom(stranger, 8285)},
		ring.FakeDatagram{Data: make([]byte, 200), Segment: 100, Addr: netip.AddrPortFrom(nodeB, 8285)},
		ring.FakeDatagram{Data: fromC, Addr: netip.AddrPortFrom(nodeC, 8285)},
		// C may not speak for B's pods.
		ring.FakeDatagram{Data: udpPacket(podB, podA1, 1, 2, 9), Addr: netip.AddrPortFrom(nodeC, 8285)})
	r.turn()
	r.check(map[Reason]uint64{DropWrongEncap: 4, DropUnknownPeer: 4, DropInnerSource: 1})
	r.expect(0, 1, 0)
}

// TestTunnelLoopFromWire: a packet out of the tunnel that is for our own tunnel
// port. It needs a node whose underlay address is one of the pods' network.
func TestTunnelLoopFromWire(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.Address = netip.MustParseAddr("10.244.1.7")
	r := newRig(t, s)
	r.veth("a1", s.Address)
	r.receive(encap.KindUDP, 0, udpPacket(podB, s.Address, 1, 8285, 9), udpPacket(podB, s.Address, 1, 8286, 9),
		raw4(podB, s.Address, encap.ProtoIPIP, udpPacket(podB, podA1, 1, 2, 9)))
	r.turn()
	r.check(map[Reason]uint64{DropTunnelLoop: 1})
	r.expect(0, 2, 0)
}

// TestBadGRO: a coalesced buffer that is neither a run nor a superframe.
func TestBadGRO(t *testing.T) {
	for _, kind := range []encap.Kind{encap.KindUDP, encap.KindVXLAN} {
		t.Run(kind.String(), func(t *testing.T) {
			inject := func(data []byte, segment int) *rig {
				r := newRig(t, testSettings(kind))
				r.veth("a1", podA1)
				r.udp[0].Inject(ring.FakeDatagram{Data: data, Segment: segment, Addr: netip.AddrPortFrom(nodeB, 7)})
				r.turn()
				return r
			}
			ip := udpPacket(podB, podA1, 1, 2, 1000)
			b := fromPeer(kind, nodeB, ip)
			// The first inner length fills neither a segment nor the buffer.
			inject(append(b, make([]byte, 500)...), 500).check(map[Reason]uint64{DropBadGRO: uint64(len(b)+500+499) / 500})
			// It claims more than there is at all.
			inject(b[:len(b)-8], 500).check(map[Reason]uint64{DropBadGRO: uint64(len(b)-8+499) / 500})
			// A fragment fills the buffer: it has no inner segments.
			f := fromPeer(kind, nodeB, fragmentOf(ip, 0, 1000))
			inject(f, 400).check(map[Reason]uint64{DropBadGRO: 0})
			f = fromPeer(kind, nodeB, fragmentOf(udpPacket(podB, podA1, 1, 2, 3000), 0, 2400))
			inject(f, 400).check(map[Reason]uint64{DropBadGRO: 1})
			// A UDP superframe without a checksum cannot be cut again.
			z := mangle(udpPacket(podB, podA1, 1, 2, 4000), func(b []byte) []byte { binary.BigEndian.PutUint16(b[26:], 0); return b })
			inject(fromPeer(kind, nodeB, z), 1000).check(map[Reason]uint64{DropBadGRO: 1})
			// More segments than the kernel would take back.
			many := udpPacket(podB, podA1, 1, 2, 200)
			partial(many, 0)
			inject(fromPeer(kind, nodeB, many), 1).check(map[Reason]uint64{DropBadGRO: 1})
			// A flipped bit in a superframe.
			bad := tcpPacket(podB, podA1, 1, 20000)
			bad[5000] ^= 4
			inject(fromPeer(kind, nodeB, bad), 0).check(map[Reason]uint64{DropInnerChecksum: 1})
		})
	}
}
