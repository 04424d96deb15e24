package forwarder

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table/feed"
)

const (
	nativeTestPiece = 1448
	nativeTestTag   = 0x9000
	testUplink      = 7
)

// nativePair is two nodes on fakes that have agreed on the stream. Their planes do not run: the test decides.
type nativePair struct {
	a, b       *rig
	podA, podB *ring.FakeQueue
}

func newNativePair(t testing.TB, kind encap.Kind) *nativePair {
	return newNativePairBy(t, kind, native.UDP)
}

func newNativePairBy(t testing.TB, kind encap.Kind, by native.Carrier) *nativePair {
	s := testSettings(kind)
	s.Native = Native{TCP: by&native.TCP != 0, UDP: by&native.UDP != 0, Port: 7471}
	if s.Native.TCP {
		s.Uplink = Uplink{Device: "eth0", Index: testUplink, TSO: true}
	}
	x := &nativePair{a: newRig(t, s)}
	s.Address = nodeB
	s.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:10:244:2::/64")}
	x.b = newRigOf(t, s, feed.Peer{Name: "node-a", Address: nodeA, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")}})
	x.podA, x.podB = x.a.attach(AttachTUN, "a1", podA1, podA1v6), x.b.attach(AttachTUN, "b1", podB, podBv6)
	x.b.f.peers[nodeA].state.native.from.Store(&nativePeer{first: nativeTestTag, streams: 1, size: [nativeCarriers]int{nativeTestPiece, nativeTestPiece}})
	return x
}

// way lets frames of node A go to B as the stream; fence: in order behind what went before.
func (x *nativePair) way(fence bool) { x.wayBy(native.UDP, fence, 0) }

func (x *nativePair) wayBy(by native.Carrier, fence bool, dead native.Carrier) {
	s := x.a.f.peers[nodeB].state
	way := newNativeWay(by, ring.NewSockaddr(netip.AddrPortFrom(nodeB, 7471)),
		native.Message{FirstTag: nativeTestTag, From: 1, To: 2, MinVersion: 1, MaxVersion: 1, PieceTCP: nativeTestPiece, PieceUDP: nativeTestPiece})
	way.fence, way.dead = fence, dead
	s.direct.Store(&UplinkPath{Source: encap.MAC{2, 0, 0, 0, 0, 1}, NextHop: encap.MAC{2, 0, 0, 0, 0, 2}, Index: testUplink})
	s.native.way.Store(way)
}

// sent takes what node A has sent as the stream, datagram by datagram.
func (x *nativePair) sent(t *testing.T) [][]byte {
	return datagrams(t, x.a.f.workers[0].native.sock.(*ring.FakeSocket).Sent())
}

// receive hands datagrams to node B's stream, each by itself or as runs of the kernel's.
func (x *nativePair) receive(ds ...ring.FakeDatagram) {
	w := x.b.f.workers[0]
	for i := range ds {
		ds[i].Addr = netip.AddrPortFrom(nodeA, 7)
	}
	w.native.sock.(*ring.FakeSocket).Inject(ds...)
	for range len(ds)/inboxMessages + 1 {
		w.begin()
		w.serveNative(true, false)
		w.ledger.publish(&w.tally)
	}
}

func each(bs [][]byte) (ds []ring.FakeDatagram) {
	for _, b := range bs {
		ds = append(ds, ring.FakeDatagram{Data: b})
	}
	return ds
}

// payloads are the TCP payloads of packets, joined by their sequence numbers from first on; what is missing is 0xee.
func payloads(ps []ring.FakePacket, first uint32, n int) []byte {
	all := bytes.Repeat([]byte{0xee}, n)
	for _, p := range ps {
		var q encap.Packet
		if encap.Parse(p.Data, &q) == encap.OK && q.Proto == encap.ProtoTCP {
			copy(all[encap.TCP(p.Data[q.L4:]).Seq()-first:], p.Data[encap.HeaderLen(p.Data, &q):q.Len])
		}
	}
	return all
}

// superTCP is a superframe with n bytes of payload.
func superTCP(src, dst netip.Addr, seq uint32, n int) ring.FakePacket {
	b := tcpPacket(src, dst, seq, n)
	return ring.FakePacket{Data: b, Virtio: partial(b, 1388)}
}

// TestNativeCarries: small packets and superframes, also those too long for a burst, go over in bursts, cut anyhow, and come out as they
// went in.
func TestNativeCarries(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.way(false)
	const long = 65000
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)}, superTCP(podA1, podB, 1000, 20000),
		ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 1300)}, superTCP(podA1, podB, 21000, long))
	x.a.turn()
	if n := len(x.a.f.workers[0].lanes[0].egress[0].sock.(*ring.FakeSocket).Sent()); n != 0 {
		t.Errorf("%d sends by vxlan", n)
	}
	all := x.a.f.workers[0].native.sock.(*ring.FakeSocket).Sent()
	for _, d := range all {
		if d.Segment != nativeTestPiece+native.UDPLen && len(d.Data) > nativeTestPiece || len(d.Data) > maxRunBytes {
			t.Errorf("a send of %d bytes in segments of %d", len(d.Data), d.Segment)
		}
	}
	x.receive(all...)
	got := x.podB.Sent()
	if len(got) != 5 || !bytes.Equal(payloads(got, 1000, 20000+long), tcpBytes(1000, 20000+long)) {
		t.Errorf("%d packets, or other bytes than were sent", len(got))
	}
	x.a.check(nil)
	x.b.check(nil)
	if s := x.a.f.Counters().Peers[0].Native; s.Carrier != "udp" || s.Frames != 4 || s.Bursts == 0 || s.Saved == 0 {
		t.Errorf("status %+v", s)
	}
}

// tcpBytes is what tcpPacket fills packets with.
func tcpBytes(seq uint32, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(int(seq) + i)
	}
	return b
}

// TestNativeLosesOnlyWhatWasLost: one datagram in the middle of a superframe is missing: the pod gets the bytes in front and behind.
func TestNativeLosesOnlyWhatWasLost(t *testing.T) {
	x := newNativePair(t, encap.KindUDP)
	x.way(false)
	x.podA.Inject(superTCP(podA1, podB, 5, 20000), ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
	x.a.turn()
	ds := x.sent(t)
	lost := ds[4][native.UDPLen:]
	x.receive(each(append(append([][]byte{}, ds[:4]...), ds[5:]...))...)
	// The next burst ends the wait.
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 31)})
	x.a.turn()
	late := ds[4]
	x.receive(each(append(x.sent(t), late, ds[3]))...)
	got := payloads(x.podB.Sent(), 5, 20000)
	if n := bytes.Count(got, []byte{0xee, 0xee, 0xee}); n == 0 {
		t.Fatal("nothing is missing")
	}
	want := tcpBytes(5, 20000)
	missing := 0
	for i := range got {
		if got[i] != want[i] {
			missing++
		}
	}
	if missing > len(lost) {
		t.Errorf("%d bytes are missing, the lost piece had %d", missing, len(lost))
	}
	x.b.check(map[Reason]uint64{DropNativeLate: 1, DropNativeDuplicate: 1})
	if s := x.b.f.Counters().Peers[0].Native; s.Carrier != "none" || s.Why == "" || s.Parts != 2 || s.Refused != 2 || s.LostBytes == 0 {
		t.Errorf("status %+v", s)
	}
}

// TestNativeWaitEnds: the end of a burst is not waited for for ever.
func TestNativeWaitEnds(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.way(false)
	x.podA.Inject(superTCP(podA1, podB, 5, 20000))
	x.a.turn()
	ds := x.sent(t)
	now := time.Now() // stands still: on a busy machine 5 ms may pass between two lines
	x.b.f.env.now = func() time.Time { return now }
	x.receive(each(ds[:len(ds)-1])...)
	w := x.b.f.workers[0]
	if w.nativeTimers(-1) != nativeTimerEvery {
		t.Error("nobody looks at the open burst")
	}
	w.native.incomplete[0].since -= 2 * nativeExpire.Nanoseconds()
	if w.nativeTimers(-1) != -1 || len(x.podB.Sent()) != 1 {
		t.Error("what has come is not handed on")
	}
	x.b.check(nil)
}

// TestNativeHostile: what no sender writes, what nobody has announced and who is unknown is dropped by name, and is not answered.
func TestNativeHostile(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.way(false)
	forged := udpPacket(stranger, podB, 1, 2, 30)
	burst := func(tag uint16, flags byte, ip []byte) []byte {
		b := make([]byte, native.UDPLen, 2000)
		b = append(append(b, flags, byte(len(ip)>>8), byte(len(ip))), ip...)
		native.PutUDP(b, tag, 0, len(b)-native.UDPLen, 0)
		return b
	}
	broken := udpPacket(podA1, podB, 1, 2, 30)
	broken[len(broken)-1] ^= 1
	next := burst(nativeTestTag, 0, broken)
	native.PutUDP(next, nativeTestTag, 1000, len(next)-native.UDPLen, 0)
	plain := udpPacket(podA1, podB, 1, 2, 30)
	after := append(make([]byte, native.UDPLen), 2, 0, byte(len(plain)), 0, 0) // a superframe of segments of nothing
	after = append(after, plain...)
	native.PutUDP(after, nativeTestTag, 2000, len(after)-native.UDPLen, 0)
	x.receive(each([][]byte{{0x10, 1}, burst(nativeTestTag+1, 0, forged), burst(nativeTestTag, 0, forged), next, after})...)
	w := x.b.f.workers[0]
	w.native.sock.(*ring.FakeSocket).Inject(ring.FakeDatagram{Data: make([]byte, 40), Addr: netip.AddrPortFrom(stranger, 1)})
	w.begin()
	w.serveNative(true, false)
	w.ledger.publish(&w.tally)
	x.b.check(map[Reason]uint64{DropNativeBad: 1, DropNativeUnknown: 1, DropInnerSource: 1, DropInnerChecksum: 1, DropBadVirtio: 1, DropUnknownPeer: 1})
	if len(x.b.f.native.inbox) != 0 || len(x.b.sends()) != 0 {
		t.Error("a stranger is answered")
	}
}

// TestNativeFence: frames are kept while a fence is on its way behind the last one of the encapsulation, and follow it by the new way.
func TestNativeFence(t *testing.T) {
	for _, kind := range []encap.Kind{encap.KindUDP, encap.KindVXLAN, encap.KindIPIP} {
		for _, answered := range []bool{true, false} {
			x := newNativePair(t, kind)
			x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 10)})
			x.a.turn()
			x.way(true)
			x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 11)}, ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 12)})
			x.a.turn()
			if n := len(x.sent(t)); n != 0 {
				t.Fatalf("%v: %d frames do not wait", kind, n)
			}
			w := x.a.f.workers[0]
			for _, e := range w.lanes[0].egress {
				ds := datagrams(t, e.sock.(*ring.FakeSocket).Sent())
				to := x.b.f.workers[0].lanes[0].sockets[e.index].(*ring.FakeSocket)
				for _, d := range ds {
					if kind == encap.KindIPIP {
						d = outerIPIP(e.index == laneInner6, d)
					}
					to.Inject(ring.FakeDatagram{Data: d, Addr: netip.AddrPortFrom(nodeA, 7)})
				}
			}
			x.b.turn()
			// One by what frames have left by; nothing has by the socket of ipip for IPv6.
			if n := len(x.b.f.native.inbox); n != 1 {
				t.Fatalf("%v: %d fences arrive, of 1", kind, n)
			}
			if n := len(x.podB.Sent()); n != 1 {
				t.Fatalf("%v: %d frames came with the fence", kind, n)
			}
			if answered {
				w.fencePassed((<-x.b.f.native.inbox).m.Nonce)
				if n := len(x.sent(t)); n != 1 {
					t.Errorf("%v: %d datagrams behind the fence, want one burst", kind, n)
				}
			} else {
				w.native.holding[0].hold.deadline = 0
				w.nativeTimers(-1)
				if n := len(x.sent(t)); n != 0 {
					t.Errorf("%v: the way changed without an answer", kind)
				}
			}
			if len(w.native.holding) != 0 {
				t.Error("frames still wait")
			}
			x.a.check(nil)
			x.b.check(nil)
		}
	}
}

// outerIPIP puts the outer header of node A to node B in front, as a raw socket gets it.
func outerIPIP(v6 bool, b []byte) []byte {
	proto := encap.ProtoIPIP
	if v6 {
		proto = encap.ProtoIPv6
	}
	h := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto, 0, 0}
	h = append(append(h, nodeA.AsSlice()...), nodeB.AsSlice()...)
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(b)))
	binary.BigEndian.PutUint16(h[10:], ^slowSum(h))
	return append(h, b...)
}

// TestNativeKept: what waits for a fence is bounded, and goes on by the old way when there is too much.
func TestNativeKept(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 10)})
	x.a.turn()
	x.way(true)
	for range 90 {
		x.podA.Inject(superTCP(podA1, podB, 5, 60000))
	}
	x.a.turn()
	if o := x.a.f.workers[0].transmits[0].native; o.hold.on || o.hold.mem != nil {
		t.Errorf("%d frames are kept", len(o.hold.frames))
	}
	if v := x.a.f.Counters().Forwarded[ForwardedKey{"wire", "vxlan"}]; v.Packets != 91 {
		t.Errorf("%d of 91 frames left by the encapsulation", v.Packets)
	}
	x.a.check(nil)
}

// newWaitingPair is one in which two frames of node A wait for a fence behind one that went by the encapsulation.
func newWaitingPair(t *testing.T) *nativePair {
	x := newNativePair(t, encap.KindVXLAN)
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 10)})
	x.a.turn()
	x.way(true)
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 11)}, ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 12)})
	x.a.turn()
	if len(x.a.f.workers[0].native.holding) != 1 {
		t.Fatal("nothing waits")
	}
	return x
}

// TestNativeHoldOutlivesItsPeer: a peer that a reload takes away while frames for it wait loses them by name, and nothing else.
func TestNativeHoldOutlivesItsPeer(t *testing.T) {
	x := newWaitingPair(t)
	w := x.a.f.workers[0]
	if err := x.a.f.SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	w.native.holding[0].hold.deadline = 0
	w.nativeTimers(-1)
	if len(w.native.holding) != 0 || len(x.sent(t)) != 0 {
		t.Error("frames for a peer that has gone still wait, or left")
	}
	x.a.check(map[Reason]uint64{DropNoRoute: 2})
}

// mixedFrames are 64 frames of a pod, small ones of many sizes and superframes among them, and their heads as they were: what
// forwards them writes into them.
func mixedFrames() (frames []ring.Frame, fresh [][]byte) {
	for i := range 64 {
		p := ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30+i*20)}
		if i%16 == 0 {
			p = superTCP(podA1, podB, 5, 30000)
		}
		frames = append(frames, ring.Frame{Mem: append(make([]byte, ring.Headroom), p.Data...), Start: ring.Headroom, Virtio: p.Virtio})
		fresh = append(fresh, append([]byte{}, p.Data[:headBytes/2]...))
	}
	return frames, fresh
}

// TestNativeNoAllocations: neither side allocates for what passes.
func TestNativeNoAllocations(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.way(false)
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
	sent := w.native.sock.(*ring.FakeSocket).Sent()
	w.native.sock = stillSocket{w.native.sock}
	if n := testing.AllocsPerRun(50, turn); n != 0 {
		t.Errorf("%v allocations to send", n)
	}
	r := x.b.f.workers[0]
	x.b.f.ports[0].io = &stillPort{FakeQueue: x.podB}
	for i := range sent {
		sent[i].Addr = netip.AddrPortFrom(nodeA, 7)
	}
	r.native.sock.(*ring.FakeSocket).Inject(sent...)
	n, err := r.native.sock.Recv(r.inbox)
	if err != nil || n != len(sent) {
		t.Fatal(n, err)
	}
	whole := make([][]byte, n)
	for i := range whole {
		whole[i] = append([]byte{}, r.inbox.Datagram(i).Data...)
	}
	start := uint32(0)
	if n := testing.AllocsPerRun(50, func() {
		r.begin()
		for i := range whole {
			d := r.inbox.Datagram(i)
			copy(d.Data, whole[i])
			for at := 0; at < len(d.Data); at += d.Segment {
				pc, _ := native.ParseUDP(d.Data[at:])
				native.PutUDP(d.Data[at:], pc.Tag, pc.Start+start, pc.Length, pc.Offset)
				if d.Segment == 0 {
					break
				}
			}
			r.nativeDatagrams(x.b.f.peers[nodeA], d)
		}
		start += 1 << 20
		r.flush()
		r.ledger.publish(&r.tally)
	}); n != 0 {
		t.Errorf("%v allocations to receive", n)
	}
	x.b.check(nil)
}

// TestNativePlaneIsNotWoken: while there is traffic the plane looks at every tick, and a frame that pokes it does not wake it: one that did would cost
// a look and a wake-up a frame.
func TestNativePlaneIsNotWoken(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	n := x.a.f.native
	n.done.Go(n.run)
	defer func() { close(n.stop); n.done.Wait() }()
	x.a.f.peers[nodeB].state.native.wanted.Store(true)
	n.poke()
	p := x.a.f.peers[nodeB]
	for end := time.Now().Add(10 * time.Second); n.status(p).Why == "no traffic to it yet"; time.Sleep(time.Millisecond) {
		p.state.native.wanted.Store(true)
		if time.Now().After(end) {
			t.Fatal("the plane does not look")
		}
	}
	if len(n.poked) == 0 {
		t.Error("the plane is woken between two ticks")
	}
}
