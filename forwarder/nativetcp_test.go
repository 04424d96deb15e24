package forwarder

import (
	"bytes"
	"net/netip"
	"syscall"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/forwarder/agree"
	"github.com/penstock-net/penstock/ring"
)

// uplink is what a node's tcp carrier writes to and reads from.
func uplink(r *rig) *ring.FakeQueue { return r.pods["eth0"] }

// cutTCP is what a device makes of frames that leave by the tcp carrier: packets with complete checksums.
func cutTCP(t *testing.T, frames []ring.FakePacket) (out []ring.FakePacket) {
	t.Helper()
	for _, x := range frames {
		ip, v := x.Data[encap.EthernetLen:], encap.Virtio(x.Virtio)
		v.CsumStart -= encap.EthernetLen
		v.HdrLen -= encap.EthernetLen
		var p encap.Packet
		if f := encap.Parse(ip, &p); f != encap.OK || v.Check(ip, &p) != encap.OK {
			t.Fatalf("%v: %+v", f, v)
		}
		add := func(b []byte) {
			out = append(out, ring.FakePacket{Data: append(append([]byte{}, x.Data[:encap.EthernetLen]...), b...)})
		}
		if !v.IsGSO() {
			encap.Complete(ip, &p, &v)
			add(ip)
			continue
		}
		var s encap.Segments
		if f := s.Init(ip, &p, v); f != encap.OK {
			t.Fatal(f)
		}
		for range s.Count() {
			h := make([]byte, s.HeaderLen())
			payload, _ := s.Next(h)
			add(append(h, payload...))
		}
	}
	return out
}

// receiveTCP hands frames to node B's packet socket.
func (x *nativePair) receiveTCP(frames ...ring.FakePacket) {
	w := x.b.f.workers[0]
	uplink(x.b).Inject(frames...)
	for range len(frames)/batchFrames + 1 {
		w.begin()
		w.serveTCP(false)
		w.ledger.publish(&w.tally)
	}
}

// TestTCPCarries: small packets and superframes go over in one write a burst, and come out as they went in, whether the underlay passes bursts
// whole or cuts them.
func TestTCPCarries(t *testing.T) {
	for _, cut := range []bool{false, true} {
		x := newNativePairBy(t, encap.KindVXLAN, native.TCP)
		x.wayBy(native.TCP, false, 0)
		const long = 65300
		x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)}, superTCP(podA1, podB, 1000, 20000),
			ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 1300)}, superTCP(podA1, podB, 21000, long), superTCP(podA1, podB, 21000+long, 64300))
		x.a.turn()
		all := uplink(x.a).Sent()
		for _, p := range all {
			if e := encap.Ethernet(p.Data); e.Dst() != (encap.MAC{2, 0, 0, 0, 0, 2}) || e.Src() != (encap.MAC{2, 0, 0, 0, 0, 1}) {
				t.Errorf("from %v to %v", e.Src(), e.Dst())
			}
		}
		if n := len(all); n != 3 { // the longest is two halves, the second of which no other joins
			t.Errorf("%d bursts", n)
		}
		if cut {
			all = cutTCP(t, all)
		}
		x.receiveTCP(all...)
		got := x.podB.Sent()
		if len(got) != 6 || !bytes.Equal(payloads(got, 1000, 20000+long+64300), tcpBytes(1000, 20000+long+64300)) {
			t.Errorf("%d packets, or other bytes than were sent", len(got))
		}
		x.a.check(nil)
		x.b.check(nil)
		if s := x.a.f.Counters().Peers[0].Native; s.Carrier != "tcp" || s.Version != 1 || s.Frames != 5 || s.Bursts != 3 || s.Saved == 0 {
			t.Errorf("status %+v", s)
		}
		if n := len(x.a.f.workers[0].native.sock.(*ring.FakeSocket).Sent()); n != 0 {
			t.Errorf("%d datagrams", n)
		}
	}
}

// TestTCPHostile: what no sender writes, a wrong checksum and a stranger's segment are dropped by name; one that the kernel vouches for is taken.
func TestTCPHostile(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP)
	x.wayBy(native.TCP, false, 0)
	good := func(change func(b []byte)) ring.FakePacket {
		x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
		x.a.turn()
		p := cutTCP(t, uplink(x.a).Sent())[0]
		change(p.Data)
		return p
	}
	mend := func(b []byte) { // the checksum of what was changed
		ip := b[encap.EthernetLen:]
		ip[10], ip[11] = 0, 0
		sum := ^encap.Fold(encap.Sum(ip[:20], 0))
		ip[10], ip[11] = byte(sum>>8), byte(sum)
		var p encap.Packet
		if encap.Parse(ip, &p) != encap.OK || p.Proto != encap.ProtoTCP {
			return
		}
		ip[p.L4+16], ip[p.L4+17] = 0, 0
		sum = ^encap.Fold(encap.Sum(ip[p.L4:p.Len], encap.PseudoSum(&p, p.Len-int(p.L4))))
		ip[p.L4+16], ip[p.L4+17] = byte(sum>>8), byte(sum)
	}
	const tcp = encap.EthernetLen + 20
	partial := good(func(b []byte) { b[tcp+16] ^= 1 })
	partial.Virtio.Flags = ring.NeedsCsum
	verified := good(func(b []byte) { b[tcp+16] ^= 1 })
	verified.Virtio.Flags = ring.DataValid
	padded := good(func([]byte) {})
	padded.Data = append(padded.Data, 0, 0, 0, 0)
	short := good(func([]byte) {})
	short.Truncated = true
	x.receiveTCP(partial, verified, padded, short,
		good(func(b []byte) { b[len(b)-1] ^= 1 }),
		good(func(b []byte) { b[tcp+13] |= 2; mend(b) }),                 // SYN
		good(func(b []byte) { b[tcp+14], b[tcp+15] = 0, 0; mend(b) }),    // a message that is none
		good(func(b []byte) { b[tcp]++; mend(b) }),                       // a tag that nobody announced
		good(func(b []byte) { b[encap.EthernetLen+6] |= 0x20; mend(b) }), // a fragment
		good(func(b []byte) { b[encap.EthernetLen+9] = 99; mend(b) }),    // another protocol
		good(func(b []byte) { copy(b[encap.EthernetLen+12:], stranger.AsSlice()); mend(b) }))
	if n := x.b.f.Counters().Peers[0].Native.GotFrames; n != 3 {
		t.Errorf("%d frames are taken", n)
	}
	x.b.check(map[Reason]uint64{DropTruncated: 1, DropNativeChecksum: 1, DropNativeBad: 2, DropNativeUnknown: 1, DropBadOuter: 1, DropBadFragment: 1, DropUnknownPeer: 1})
	if len(x.b.f.native.inbox) != 0 || len(uplink(x.b).Sent()) != 0 {
		t.Error("somebody is answered")
	}
}

// TestTCPLosesOnlyWhatWasLost: one packet in the middle of a burst is missing: the pod gets the bytes in front and behind.
func TestTCPLosesOnlyWhatWasLost(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP)
	x.wayBy(native.TCP, false, 0)
	x.podA.Inject(superTCP(podA1, podB, 5, 20000))
	x.a.turn()
	ps := cutTCP(t, uplink(x.a).Sent())
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 31)})
	x.a.turn()
	x.receiveTCP(append(append(append([]ring.FakePacket{}, ps[:4]...), ps[5:]...), cutTCP(t, uplink(x.a).Sent())...)...)
	got, want, missing := payloads(x.podB.Sent(), 5, 20000), tcpBytes(5, 20000), 0
	for i := range got {
		if got[i] != want[i] {
			missing++
		}
	}
	if missing == 0 || missing > nativeTestPiece {
		t.Errorf("%d bytes are missing", missing)
	}
	x.receiveTCP(ps[4], ps[3])
	x.b.check(map[Reason]uint64{DropNativeLate: 1, DropNativeDuplicate: 1})
}

// TestTCPRefused: a kernel that takes no superframe gets the pieces one by one; this is said and remembered. If those are refused too, or there is
// another reason, the frames are dropped by name.
func TestTCPRefused(t *testing.T) {
	for _, c := range []struct {
		fails    []error
		remember bool
		drop     Reason
	}{
		{[]error{syscall.EINVAL}, true, dropNone},
		{[]error{syscall.EOPNOTSUPP}, true, dropNone},
		{[]error{syscall.EINVAL, syscall.ENOBUFS}, true, DropSendNoBuffers},
		{[]error{syscall.ENOBUFS}, false, DropSendNoBuffers},
		{[]error{syscall.ENOMEM}, false, DropSendNoBuffers},
		{[]error{syscall.EAGAIN}, false, DropSendFull},
		{[]error{syscall.ENXIO}, false, DropUnderlayUnreachable},
	} {
		x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
		x.wayBy(native.TCP, false, 0)
		for _, err := range c.fails {
			uplink(x.a).Fail(0, err)
		}
		x.podA.Inject(superTCP(podA1, podB, 5, 40000), ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 31)}, superTCP(podA1, podB, 40005, 60000))
		x.a.turn()
		x.receiveTCP(cutTCP(t, uplink(x.a).Sent())...)
		drops := map[Reason]uint64{}
		if c.drop != dropNone {
			drops[c.drop] = 2
		} else if got := payloads(x.podB.Sent(), 5, 100000); !bytes.Equal(got, tcpBytes(5, 100000)) {
			t.Errorf("%v: other bytes than were sent", c.fails)
		}
		x.a.check(drops)
		x.b.check(nil)
		n := x.a.f.native
		if n.refused.Load() != c.remember || x.a.f.Counters().SwitchedOff["nativeTCP"] != map[bool]uint64{true: 1}[c.remember] {
			t.Errorf("%v: remembered: %v", c.fails, n.refused.Load())
		}
	}
}

// TestTCPEndsWithItsPath: as soon as the host's routing leads elsewhere, or through an xfrm policy, frames go by the encapsulation; when it
// leads to the uplink again, by the carrier.
func TestTCPEndsWithItsPath(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP)
	x.wayBy(native.TCP, false, 0)
	s := x.a.f.peers[nodeB].state
	path := *s.direct.Load()
	elsewhere := path
	elsewhere.Index++
	moved := path
	moved.NextHop = encap.MAC{2, 9}
	for i, p := range []*UplinkPath{&path, nil, &elsewhere, &moved} {
		s.direct.Store(p)
		s.wantsWhole.Store(false)
		x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
		x.a.turn()
		sent := uplink(x.a).Sent()
		if want := p == &path || p == &moved; (len(sent) == 1) != want || s.wantsWhole.Load() != want {
			t.Errorf("%d: %d frames by the carrier", i, len(sent))
		} else if want && encap.Ethernet(sent[0].Data).Dst() != p.NextHop {
			t.Errorf("%d: to %v", i, encap.Ethernet(sent[0].Data).Dst())
		}
		if n := len(x.a.sends()); (n == 1) == (len(sent) == 1) {
			t.Errorf("%d: %d datagrams by vxlan", i, n)
		}
	}
	x.a.check(nil)
}

// TestNativeChangesCarrier: from one carrier that is alive to the other a fence goes first, by the old one; a dead one is left at once. Each
// carrier's stream goes on where it was.
func TestNativeChangesCarrier(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
	w := x.a.f.workers[0]
	send := func(n int) {
		x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, n)})
		x.a.turn()
	}
	counts := func() (tcp, udp int) {
		a, b := uplink(x.a).Sent(), w.native.sock.(*ring.FakeSocket).Sent()
		x.receiveTCP(a...)
		if len(b) > 0 {
			x.receive(b...)
		}
		return len(a), len(b)
	}
	expect := func(what string, wantTCP, wantUDP, wantPod int) {
		t.Helper()
		tcp, udp := counts()
		if pod := len(x.podB.Sent()); tcp != wantTCP || udp != wantUDP || pod != wantPod {
			t.Errorf("%s: %d by tcp, %d by udp, %d delivered", what, tcp, udp, pod)
		}
	}
	x.wayBy(native.TCP, false, 0)
	send(10)
	expect("tcp", 1, 0, 1)
	x.wayBy(native.TCP, true, native.UDP)
	send(11)
	expect("the other one has died", 1, 0, 1)
	x.wayBy(native.UDP, true, 0)
	send(12)
	expect("to udp, in order", 1, 0, 0) // the fence
	send(13)
	w.fencePassed((<-x.b.f.native.inbox).m.Nonce)
	expect("the fence has passed", 0, 1, 2)
	x.wayBy(native.TCP, true, native.UDP)
	send(14)
	expect("udp is dead", 1, 0, 1)
	x.wayBy(native.UDP, true, 0)
	x.a.f.peers[nodeB].state.direct.Store(nil)
	send(15)
	expect("tcp has no path", 0, 1, 1)
	x.a.check(nil)
	x.b.check(nil)
	if s := x.b.f.Counters().Peers[0].Native; s.LostBytes != 0 {
		t.Errorf("%d bytes are missing in the streams", s.LostBytes)
	}
}

// TestTCPMessages: a probe by the tcp carrier is an Ethernet frame of full size that the peer answers by the same carrier.
func TestTCPMessages(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
	x.wayBy(native.TCP, false, 0)
	n := x.a.f.native
	a := n.agreement(x.a.f.peers[nodeB])
	probe := agree.Send{Message: a.Self, By: native.TCP, Size: a.Self.Piece(native.TCP)}
	probe.Kind, probe.Nonce, probe.To = native.Probe, 77, 2
	n.send(a, []agree.Send{probe})
	sent := uplink(x.a).Sent()
	if len(sent) != 1 || len(sent[0].Data) != encap.EthernetLen+1500 || sent[0].Virtio.GSOType != 0 {
		t.Fatalf("%d frames", len(sent))
	}
	x.receiveTCP(sent...)
	e := <-x.b.f.native.inbox
	if e.by != native.TCP || e.m.Kind != native.Probe || e.m.Nonce != 77 || e.peer.spec.Address != nodeA {
		t.Errorf("%+v", e)
	}
	x.a.f.peers[nodeB].state.direct.Store(nil)
	n.send(a, []agree.Send{probe})
	if len(uplink(x.a).Sent()) != 0 {
		t.Error("a message without a path")
	}
	x.b.check(nil)
}

// TestTCPFollowsTheUplink: the sockets are those of the device that has the node's address; without one the carrier is not offered.
func TestTCPFollowsTheUplink(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
	f := x.a.f
	if f.native.self.Carriers != native.TCP|native.UDP || f.native.prefer != native.TCP {
		t.Errorf("%+v, %v", f.native.self, f.native.prefer)
	}
	instance := f.native.agreement(f.peers[nodeB]).Self.From
	next := f.settings
	next.Uplink = Uplink{Device: "eth1", Index: 9, USO: true}
	if err := f.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	if x.a.pods["eth1"] == nil || f.native.index != 9 || f.workers[0].native.tcp.index != 9 || f.native.prefer != native.UDP {
		t.Errorf("index %d, prefer %v", f.native.index, f.native.prefer)
	}
	if f.native.agreement(f.peers[nodeB]).Self.From == instance {
		t.Error("the agreement outlives the uplink")
	}
	next.Uplink = Uplink{}
	if err := f.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	if f.native.self.Carriers != native.UDP || f.workers[0].native.tcp != nil {
		t.Errorf("%v without an uplink", f.native.self.Carriers)
	}
	next.UnderlayMTU = 1060 // udp's pieces would be 1020 bytes, tcp's too
	next.Uplink = Uplink{Device: "eth0", Index: testUplink}
	if err := f.Reconfigure(next); err != nil {
		t.Fatal(err)
	}
	if f.native.self.Carriers != 0 {
		t.Errorf("%v with a tiny MTU", f.native.self.Carriers)
	}
}

// TestTCPNoAllocations: neither side allocates for what passes.
func TestTCPNoAllocations(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP)
	x.wayBy(native.TCP, false, 0)
	frames, fresh := mixedFrames()
	w := x.a.f.workers[0]
	port := x.a.f.ports[0]
	port.io = &stillPort{FakeQueue: port.io.(*ring.FakeQueue), frames: frames, fresh: fresh}
	x.a.f.peers[nodeB].state.native.wanted.Store(true)
	turn := func() {
		w.begin()
		w.servePort(port, false)
		w.ledger.publish(&w.tally)
	}
	turn()
	sent := uplink(x.a).Sent()
	w.native.tcp.io = &stillPort{FakeQueue: uplink(x.a)}
	if n := testing.AllocsPerRun(50, turn); n != 0 {
		t.Errorf("%v allocations to send", n)
	}
	start := uint32(0)
	for _, cut := range []bool{false, true} {
		arrive := sent
		if cut {
			arrive = cutTCP(t, sent[:1])
		}
		var in []ring.Frame
		var heads [][]byte
		for _, p := range arrive {
			in = append(in, ring.Frame{Mem: append(make([]byte, ring.Headroom), p.Data...), Start: ring.Headroom, Virtio: ring.Virtio{Flags: ring.DataValid}})
			heads = append(heads, append([]byte{}, p.Data...))
		}
		r := x.b.f.workers[0]
		x.b.f.ports[0].io = &stillPort{FakeQueue: x.podB}
		r.native.tcp.io = &stillPort{FakeQueue: uplink(x.b), frames: in, fresh: make([][]byte, len(in))}
		if n := testing.AllocsPerRun(50, func() {
			for i := range in { // the same bursts, further on in the stream
				b := in[i].Mem[ring.Headroom:]
				copy(b, heads[i])
				seg := b[encap.EthernetLen+20:]
				pc, _ := native.ParseTCP(seg)
				native.PutTCP(seg, pc.Tag, 7471, pc.Start+start, pc.Length, pc.Offset)
			}
			start += 1 << 20
			r.begin()
			r.serveTCP(false)
			r.ledger.publish(&r.tally)
		}); n != 0 {
			t.Errorf("%v allocations to receive, cut: %v", n, cut)
		}
	}
	x.b.check(nil)
	if d := x.b.f.Counters().Peers[0].Native; d.GotFrames == 0 {
		t.Error("nothing was received")
	}
}

// TestFirstTag: the tags of all workers are source ports that nobody takes for a service's.
func TestFirstTag(t *testing.T) {
	for range 10000 {
		if first := firstTag(); first < 1<<15 || first+255 < first {
			t.Fatalf("%d", first)
		}
	}
}

// TestNativeClosedToPods: no pod reaches the stream's port on any node, by TCP or UDP, whole or by a first fragment: masqueraded, its packets
// would be this node's to a peer that has the stream on, also where it is off here. Other ports and other addresses are none of our business.
func TestNativeClosedToPods(t *testing.T) {
	for _, by := range []native.Carrier{0, native.TCP, native.UDP, native.TCP | native.UDP} {
		x := newNativePairBy(t, encap.KindVXLAN, by)
		to := func(dst netip.Addr, port layers.TCPPort) []byte {
			return tcpPacket(podA1, dst, 1, 60, func(h *layers.TCP) { h.DstPort = port })
		}
		closed := [][]byte{to(nodeB, 7471), to(nodeA, 7471), fragmentOf(to(nodeB, 7471), 0, 40), fragmentOf(to(nodeA, 7471), 0, 8),
			udpPacket(podA1, nodeB, 7471, 7471, 40), udpPacket(podA1, nodeA, 1, 7471, 40)}
		open := [][]byte{to(nodeB, 7472), fragmentOf(to(nodeB, 7472), 0, 40), fragmentOf(to(nodeB, 7471), 40, 40), to(outsideAddr, 7471), to(stranger, 7471)}
		drops := map[Reason]uint64{DropTunnelLoop: uint64(len(closed))}
		for _, ip := range append(closed, open...) {
			x.podA.Inject(ring.FakePacket{Data: ip})
		}
		x.a.turn()
		if n := len(x.a.hosts[0].Sent()); n != len(open) {
			t.Errorf("%v: %d packets are handed to the host, want %d", by, n, len(open))
		}
		x.a.check(drops)
	}
}

// TestNativeOnlyByWhatIsOffered: of a peer that has one carrier nothing is taken by the other, whose port it may have left open to its pods.
func TestNativeOnlyByWhatIsOffered(t *testing.T) {
	for _, offered := range []native.Carrier{native.TCP, native.UDP} {
		for _, by := range []native.Carrier{native.TCP, native.UDP} {
			x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
			x.wayBy(by, false, 0)
			x.b.f.peers[nodeA].state.native.from.Store(newNativePeer(native.Message{Carriers: offered, FirstTag: nativeTestTag, Streams: 1, PieceTCP: nativeTestPiece, PieceUDP: nativeTestPiece}))
			x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
			x.a.turn()
			for _, arrives := range x.arrivals(t, by) {
				arrives(false)
			}
			drops := map[Reason]uint64{}
			if by != offered {
				drops[DropNativeUnknown] = 1
			}
			if n := len(x.podB.Sent()); (n == 1) != (by == offered) {
				t.Errorf("a peer that offers %v: %d frames by %v", offered, n, by)
			}
			x.b.check(drops)
		}
	}
}
