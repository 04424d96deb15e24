package forwarder

import (
	"bytes"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestReceiveSuperframe: a superframe that the kernel passed whole through the
// UDP socket reaches the pod whole, with the metadata that it lost on the way.
func TestReceiveSuperframe(t *testing.T) {
	for _, kind := range []encap.Kind{encap.KindUDP, encap.KindVXLAN} {
		for family, a := range families {
			for _, half := range []bool{false, true} {
				for _, c := range []struct {
					udp      bool
					n, gso   int // gso as UDP_GRO tells it, 0: not
					gsoInner int
				}{
					{false, 30000, 0, -1}, {false, 30000, 1300, -1}, {true, 12300, 1200, 1200}, {true, 600, 500, 500},
				} {
					t.Run(fmt.Sprint(kind, family, half, c), func(t *testing.T) {
						r := newRig(t, testSettings(kind))
						pod := r.veth("a1", podA1, podA1v6)
						ip := tcpPacket(a.b, a.a, 1, c.n)
						if c.udp {
							ip = udpPacket(a.b, a.a, 1, 2, c.n)
						}
						want := append([]byte{}, ip[len(ip)-c.n:]...)
						if half {
							partial(ip, 0)
						}
						r.udp[0].Inject(ring.FakeDatagram{Data: fromPeer(kind, nodeB, ip), Addr: netip.AddrPortFrom(nodeB, 7), Segment: c.gso})
						r.turn()
						got := pod.Sent()
						if len(got) != 1 {
							t.Fatalf("%d writes", len(got))
						}
						size, hdr := c.gsoInner, len(ip)-c.n
						if size < 0 {
							size = r.f.live.Load().podMTU - hdr
						}
						v := got[0].Virtio
						if int(v.GSOSize) != size || v.Flags != ring.NeedsCsum || v.GSOType == 0 || int(v.HdrLen) != hdr+14 {
							t.Errorf("metadata %+v, want size %d", v, size)
						}
						b := got[0].Data[14:]
						if !bytes.Equal(b[hdr:], want) {
							t.Error("payload differs")
						}
						at := int(v.CsumStart) - 14
						s := ^slowSum(b[at:])
						b[at+int(v.CsumOffset)], b[at+int(v.CsumOffset)+1] = byte(s>>8), byte(s)
						decode(t, b)
						r.check(nil)
						r.expect(0, 1, 0)
					})
				}
			}
		}
	}
}

// TestReceiveAmbiguous: a run whose first inner packet happens to be as long as
// a segment is a run; the last one may be shorter and may be of another flow.
func TestReceiveAmbiguous(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.attach(AttachTUN, "a1", podA1)
	r.receiveRun(encap.KindVXLAN, numbered(1, 1, 100), numbered(2, 1, 100), numbered(1, 2, 40))
	// A cmsg on a buffer of one datagram says nothing.
	r.udp[0].Inject(ring.FakeDatagram{Data: fromPeer(encap.KindVXLAN, nodeB, numbered(3, 1, 10)), Segment: 4000, Addr: netip.AddrPortFrom(nodeB, 7)})
	r.turn()
	if got := fmt.Sprint(seqs(t, pod.Sent(), 0)); got != "[1:1+1:2 2:1 3:1]" {
		t.Errorf("writes %s", got)
	}
	r.check(nil)
	r.expect(0, 4, 0)
}

// TestReceivePartial: a checksum that a kernel peer left undone goes on to the
// pod as that, or is completed for a port that cannot take it.
func TestReceivePartial(t *testing.T) {
	for _, offload := range []bool{true, false} {
		for _, ip := range [][]byte{udpPacket(podB, podA1, 1, 2, 99), tcpPacket(podB, podA1, 1, 99)} {
			s := testSettings(encap.KindVXLAN)
			s.Offload.TUNOffload = offload
			r := newRig(t, s)
			pod := r.attach(AttachTUN, "a1", podA1)
			v := partial(ip, 0)
			r.receive(encap.KindVXLAN, 0, ip)
			r.turn()
			got := pod.Sent()
			if len(got) != 1 {
				t.Fatalf("%d writes", len(got))
			}
			if !offload {
				if decode(t, got[0].Data); got[0].Virtio != (ring.Virtio{}) {
					t.Errorf("metadata %+v", got[0].Virtio)
				}
			} else if g := got[0].Virtio; g.Flags != v.Flags || g.CsumStart != v.CsumStart || g.CsumOffset != v.CsumOffset || g.GSOType != 0 {
				t.Errorf("metadata %+v, want %+v", g, v)
			}
			r.check(nil)
		}
	}
}

// TestECN: the whole table of RFC 6040 section 4.2 through the path, by both
// versions, with the DSCP kept.
func TestECN(t *testing.T) {
	const drop = 0xff
	// want[inner][outer]: Not-ECT, ECT(1), ECT(0), CE.
	want := [4][4]uint8{{0, 0, 0, drop}, {1, 1, 1, 3}, {2, 1, 2, 3}, {3, 3, 3, 3}}
	for _, kind := range kinds {
		for in := range uint8(4) {
			for out := range uint8(4) {
				r := newRig(t, testSettings(kind))
				pod := r.attach(AttachTUN, "a1", podA1, podA1v6)
				v6 := udpPacket(podBv6, podA1v6, 1, 2, 9)
				v6[0], v6[1] = 0x60|0xb8>>4, v6[1]&0x0f|(0xb8|in)<<4
				r.receive(kind, 0x20|out, udpPacket(podB, podA1, 1, 2, 9, func(ip *layers.IPv4) { ip.TOS = 0xb8 | in }), v6)
				r.turn()
				got := pod.Sent()
				if want[in][out] == drop {
					r.check(map[Reason]uint64{DropECN: 2})
					continue
				}
				r.check(nil)
				for _, g := range got {
					o := decode(t, g.Data)
					tos := uint8(0)
					if o.ip4 != nil {
						tos = o.ip4.TOS
					} else {
						tos = o.ip6.TrafficClass
					}
					if tos != 0xb8|want[in][out] {
						t.Errorf("%s: inner %d, outer %d: TOS %#x", kind, in, out, tos)
					}
				}
			}
		}
	}
}

// TestLearnedMTU: an error about a datagram of ours lowers the peer's MTU
// for ten minutes, and only for whom it is about. An ICMP error does not below 1280; this host's own word, of a device, does.
func TestLearnedMTU(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.attach(AttachTUN, "a1", podA1)
	tooBig := func(to netip.Addr, mtu int, origin ring.ErrorOrigin, errno syscall.Errno) {
		r.udp[1].InjectError(ring.SocketError{Peer: netip.AddrPortFrom(to, 8472), Offender: stranger, Origin: origin, Errno: errno, MTU: mtu})
		w := r.f.workers[0]
		w.begin()
		w.serveLane(w.lanes[0], 1, false, true)
	}
	mtu := func() int { return r.f.Counters().Peers[0].MTU }
	for _, c := range []struct {
		to     netip.Addr
		mtu    int
		origin ring.ErrorOrigin
		errno  syscall.Errno
		want   int
	}{
		{nodeB, 1500, ring.OriginLocal, syscall.EMSGSIZE, 1450},
		{nodeB, 9000, ring.OriginLocal, syscall.EMSGSIZE, 1450},
		{nodeB, 1400, ring.OriginLocal, syscall.ENETUNREACH, 1450},
		{nodeB, 1480, ring.OriginLocal, syscall.EMSGSIZE, 1430},
		{nodeB, 1400, ring.OriginICMP, syscall.ECONNREFUSED, 1430},
		{nodeB, 0, ring.OriginICMP, syscall.EMSGSIZE, 1430},
		{nodeB, -5, ring.OriginICMP, syscall.EMSGSIZE, 1430},
		{stranger, 1300, ring.OriginICMP, syscall.EMSGSIZE, 1430},
		{nodeB, 9000, ring.OriginICMP, syscall.EMSGSIZE, 1430}, // never raised
		{nodeB, 1400, ring.OriginICMP, syscall.EMSGSIZE, 1350},
		{nodeB, 1450, ring.OriginICMP, syscall.EMSGSIZE, 1350}, // not raised again
		{nodeB, 576, ring.OriginICMP, syscall.EMSGSIZE, 1230},  // the floor
		{nodeB, 68, ring.OriginICMP6, syscall.EMSGSIZE, 1230},
	} {
		if tooBig(c.to, c.mtu, c.origin, c.errno); mtu() != c.want {
			t.Errorf("after %+v: %d", c, mtu())
		}
	}
	// The pod is told the new MTU, and the peer's reload keeps it.
	r.peers(r.f.feedPeers...)
	pod.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 1230-27)}, ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 1230-28)})
	r.turn()
	if got := pod.Sent(); len(got) != 1 || decode(t, got[0].Data).icmp4.Seq != 1230 {
		t.Errorf("%d answers", len(got))
	}
	r.check(map[Reason]uint64{DropTooBig: 1})

	// What is quoted must be ours, and longer than the MTU.
	for _, kind := range []encap.Kind{encap.KindVXLAN, encap.KindUDP, encap.KindIPIP} {
		r := newRig(t, testSettings(kind))
		in := func(ip []byte) []byte { return append(make([]byte, kind.HeaderLen()), ip...) }
		whole, whole6 := in(udpPacket(podA1, podB, 1, 2, 1400)), in(udpPacket(podA1v6, podBv6, 1, 2, 1400))
		for _, c := range []struct {
			quoted []byte
			want   bool
		}{
			{whole, true}, {whole6, true}, {whole[:kind.HeaderLen()+8], true}, {whole6[:kind.HeaderLen()+8], true}, {nil, kind != encap.KindIPIP},
			{in(udpPacket(podA1, podB, 1, 2, 100)), false}, {in(udpPacket(podA1v6, podBv6, 1, 2, 100)), false},
			{in(udpPacket(podA1, podA2, 1, 2, 1400)), false}, {in(udpPacket(podA1, outsideAddr, 1, 2, 1400)), false}, {in(make([]byte, 100)), false},
		} {
			w := r.f.workers[0]
			w.begin()
			p := w.view.Peer(nodeB).peer
			p.state.pathMTU.Store(0)
			w.socketError(&ring.SocketError{Peer: netip.AddrPortFrom(nodeB, 8472), Offender: stranger, Origin: ring.OriginICMP, Errno: syscall.EMSGSIZE, MTU: 1400, Quoted: c.quoted})
			if got := p.innerMTU(w.now) < p.mtu; got != c.want {
				t.Errorf("%s, quoted %x: learned %v", kind, c.quoted[:min(40, len(c.quoted))], got)
			}
		}
	}

	s := &peerState{}
	begin := time.Unix(1_800_000_000, 0)
	if !s.learn(1400, begin) || s.learn(1400, begin) || s.learned(begin.Unix()) != 1400 {
		t.Error("not learned once")
	}
	end := begin.Add(learnedLifetime)
	if s.learned(end.Unix()-1) != 1400 || s.learned(end.Unix()) != 0 {
		t.Error("it does not end after its lifetime")
	}
	if !s.learn(1450, end) || s.learned(end.Unix()) != 1450 {
		t.Error("a larger one is not learned after the end")
	}
}

// TestClampMSS: a SYN's MSS is lowered to what fits, with its checksum right.
func TestClampMSS(t *testing.T) {
	for _, half := range []bool{false, true} {
		s := testSettings(encap.KindUDP)
		s.ClampMSS = true
		r := newRig(t, s)
		pod := r.veth("a1", podA1)
		syn := tcpPacket(podA1, podB, 1, 0, func(h *layers.TCP) {
			h.SYN, h.ACK = true, false
			h.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4, OptionData: []byte{0x22, 0xb8}}}
		})
		var v ring.Virtio
		if half {
			v = partial(syn, 0)
		}
		pod.Inject(fromVeth(syn, v))
		r.turn()
		o := decode(t, r.sends()[0].Data)
		if got := int(o.tcp.Options[0].OptionData[0])<<8 | int(o.tcp.Options[0].OptionData[1]); got != 1472-40 {
			t.Errorf("MSS %d", got)
		}
		r.check(nil)
	}
}

// TestLearnedMTUNotFromPods: whoever has an address of the pods' network is not on the way between nodes, whatever is quoted: a pod would shrink the path
// of all pods of its node. Nor is the peer itself, in whose name its masqueraded pods speak. Routers and this node are believed, and so is an error without an address.
func TestLearnedMTUNotFromPods(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	r.attach(AttachTUN, "a1", podA1, podA1v6)
	routed := netip.MustParseAddr("10.244.1.77")
	if _, err := r.f.Attach(PortSpec{Container: "r", Interface: "eth0", Attach: AttachRouted, Addresses: []netip.Addr{routed}}); err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddr
	for _, c := range []struct {
		who      string
		offender netip.Addr
		believed bool
	}{
		{"a pod here", podA1, false}, {"its IPv6 address", podA1v6, false}, {"its IPv4 address in IPv6", netip.AddrFrom16(podA1.As16()), false},
		{"a pod that has gone", podA2, false}, {"a routed pod", routed, false}, {"a pod of the peer", podB, false}, {"its IPv6 address", podBv6, false},
		{"this node among pods", hostAddr, false}, {"an address of no node", at("10.244.9.9"), false},
		{"a router", stranger, true}, {"one far away", outsideAddr, true}, {"one of IPv6", at("2001:db8::1"), true}, {"one of the link", at("fe80::1"), true},
		{"the peer", nodeB, false}, {"this node", nodeA, true}, {"nobody", netip.Addr{}, true},
	} {
		w := r.f.workers[0]
		w.begin()
		p := w.view.Peer(nodeB).peer
		p.state.pathMTU.Store(0)
		w.socketError(&ring.SocketError{Peer: netip.AddrPortFrom(nodeB, 8472), Offender: c.offender, Origin: ring.OriginICMP, Errno: syscall.EMSGSIZE, MTU: 1400})
		if got := p.innerMTU(w.now) < p.mtu; got != c.believed {
			t.Errorf("%s, %s: believed: %v", c.who, c.offender, got)
		}
	}
}

// TestRouteMTU: the device by which the route to a peer leaves bounds what fits, up and down, and an MTU learned on another way is forgotten.
func TestRouteMTU(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	learn := func(mtu int) {
		w := r.f.workers[0]
		w.begin()
		w.socketError(&ring.SocketError{Peer: netip.AddrPortFrom(nodeB, 8472), Origin: ring.OriginLocal, Errno: syscall.EMSGSIZE, MTU: mtu})
	}
	grow := func() {
		next := r.f.settings
		next.UnderlayMTU += 100
		if err := r.f.Reconfigure(next); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range []struct {
		do   func()
		want int
	}{
		{func() { r.f.SetUplinkPath(nodeB, &UplinkPath{MTU: 1400}) }, 1350},
		{func() { learn(1300) }, 1250},
		{func() { r.f.SetUplinkPath(nodeB, nil) }, 1250},                       // the next hop is not resolved for a moment
		{func() { r.f.SetUplinkPath(nodeB, &UplinkPath{MTU: 1400}) }, 1250},    // the same way again
		{func() { r.f.SetUplinkPath(nodeB, &UplinkPath{MTU: 1500}) }, 1450},    // another one
		{func() { r.f.SetDirectPath(nodeB, &UplinkPath{MTU: 9000}) }, 1450},    // not more than the node's own
		{func() { r.f.SetDirectPath(nodeB, &UplinkPath{MTU: 100}) }, 576 - 50}, // no device has so little
		{func() { r.f.SetDirectPath(nodeB, &UplinkPath{MTU: 1500}); learn(1200) }, 1150},
		{grow, 1550}, // forgotten, and it was the route's device that has grown
		{func() { r.f.SetDirectPath(nodeB, &UplinkPath{MTU: 1500}) }, 1450},
		{grow, 1450}, // it was another one
	} {
		if c.do(); r.f.Counters().Peers[0].MTU != c.want {
			t.Errorf("step %d: %d, want %d", i, r.f.Counters().Peers[0].MTU, c.want)
		}
	}
}
