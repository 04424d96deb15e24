package forwarder

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// TestTCPPathComesBack: while the path is away frames go by the encapsulation, which is alive. So nothing waits for a way that cannot be gone, and
// what follows, the carrier again or the other one, comes in order behind a fence on the encapsulation.
func TestTCPPathComesBack(t *testing.T) {
	for _, next := range []native.Carrier{native.TCP, native.UDP} {
		x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
		x.wayBy(native.TCP, false, 0)
		w, s := x.a.f.workers[0], x.a.f.peers[nodeB].state
		send := func() (tcp, udp, standard int) {
			x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
			x.a.turn()
			return len(uplink(x.a).Sent()), len(w.native.sock.(*ring.FakeSocket).Sent()), len(w.lanes[0].egress[0].sock.(*ring.FakeSocket).Sent())
		}
		expect := func(what string, tcp, udp, standard int) {
			t.Helper()
			if a, b, c := send(); a != tcp || b != udp || c != standard {
				t.Errorf("%v, %s: %d by tcp, %d by udp, %d by vxlan", next, what, a, b, c)
			}
		}
		expect("tcp", 1, 0, 0)
		path := s.direct.Load()
		x.wayBy(native.TCP, true, native.UDP)
		s.direct.Store(nil)
		expect("the path goes", 0, 0, 1)
		expect("the path is away", 0, 0, 1)
		if len(w.native.holding) != 0 {
			t.Fatal("frames wait for a way that there is not")
		}
		x.wayBy(next, true, 0)
		s.direct.Store(path)
		expect("a fence", 0, 0, 1)
		if len(w.native.holding) != 1 {
			t.Fatalf("%v: the way changes without a fence", next)
		}
		o := w.native.holding[0]
		w.fencePassed(fenceNonce(0, 0, s.index, o.hold.serial))
		if tcp, udp := len(uplink(x.a).Sent()), len(w.native.sock.(*ring.FakeSocket).Sent()); tcp+udp != 1 || (tcp == 1) != (next == native.TCP) {
			t.Errorf("%v: %d by tcp, %d by udp behind the fence", next, tcp, udp)
		}
		x.a.check(nil)
	}
}

// TestTCPNotGoneWithoutPath: what goes by udp stays there when the plane names tcp but nothing can go by it; where udp has died, or is that of
// another agreement, the encapsulation takes over.
func TestTCPNotGoneWithoutPath(t *testing.T) {
	for i, c := range []struct {
		dead native.Carrier
		tag  uint16
		udp  int
	}{{0, 0, 1}, {native.UDP, 0, 0}, {0, 1, 0}} {
		x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
		x.wayBy(native.UDP, false, 0)
		w, s := x.a.f.workers[0], x.a.f.peers[nodeB].state
		send := func() int {
			x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
			x.a.turn()
			return len(w.native.sock.(*ring.FakeSocket).Sent())
		}
		if send() != 1 {
			t.Fatal("nothing goes by udp")
		}
		x.wayBy(native.TCP, true, c.dead)
		way := *s.native.way.Load()
		way.me.FirstTag += c.tag
		s.native.way.Store(&way)
		s.direct.Store(nil)
		if n := send(); n != c.udp || len(w.native.holding) != 0 || len(w.lanes[0].egress[0].sock.(*ring.FakeSocket).Sent()) != 1-c.udp {
			t.Errorf("%d: %d by udp, %d wait", i, n, len(w.native.holding))
		}
		x.a.check(nil)
	}
}

// TestFenceEndsTheOpenBurst: what came in front of a fence is handed on before the fence is answered, though the end of its burst is lost, also when
// fence and pieces come in one read. The burst of another stream stays open.
func TestFenceEndsTheOpenBurst(t *testing.T) {
	for _, c := range []struct {
		by      native.Carrier
		number  int // of the stream
		waiting bool
	}{{native.UDP, 0, false}, {native.UDP, 1, true}, {native.TCP, 0, false}, {native.TCP, 1, true}} {
		x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
		x.wayBy(c.by, false, 0)
		x.podA.Inject(superTCP(podA1, podB, 5, 20000))
		x.a.turn()
		w := x.b.f.workers[0]
		m := native.Message{Kind: native.Fence, FirstTag: nativeTestTag, From: 1, To: 2, MinVersion: 1, MaxVersion: 1, Nonce: fenceNonce(c.number, 0, 0, 1)}
		b := make([]byte, native.MessageLen)
		m.Put(b)
		if c.by == native.UDP {
			ds := x.sent(t)
			run := ring.FakeDatagram{Segment: len(ds[0])} // as UDP_GRO merges, a fence behind pieces of full size
			for _, d := range append(ds[:len(ds)-1:len(ds)-1], b) {
				run.Data = append(run.Data, d...)
			}
			x.receive(run)
		} else {
			ps := cutTCP(t, uplink(x.a).Sent())
			o := newOuter(x.a.f, x.a.f.peers[nodeB], x.a.f.peers[nodeB].state.direct.Load())
			head := make([]byte, o.Len())
			o.Put(head, nativeTestTag+uint16(c.number), 0, 0, 0, len(b), 0)
			x.receiveTCP(append(ps[:len(ps)-1], cutTCP(t, []ring.FakePacket{{Data: append(head, b...), Virtio: ring.Virtio(o.Virtio(len(b), nativeTestPiece))}})...)...)
		}
		if len(x.b.f.native.inbox) != 1 {
			t.Fatalf("%v: %d fences", c.by, len(x.b.f.native.inbox))
		}
		if got := len(x.podB.Sent()); (got == 0) != c.waiting || w.native.incomplete[0].Incomplete() != c.waiting {
			t.Errorf("%v, stream %d: %d frames in front of the fence", c.by, c.number, got)
		}
		if n := x.b.f.Counters().Peers[0].Got.Bytes; (n == 0) != c.waiting {
			t.Errorf("%v: %d bytes are counted", c.by, n)
		}
		x.b.check(nil)
	}
}

// TestReconfigureStopped: a forwarder that has stopped opens nothing any more, wherever the uplink has moved.
func TestReconfigureStopped(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP)
	f := x.a.f
	if err := f.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	next := f.settings
	next.Uplink = Uplink{Device: "eth1", Index: 9}
	if err := f.Reconfigure(next); err == nil || x.a.pods["eth1"] != nil {
		t.Errorf("%v, sockets on the uplink: %v", err, x.a.pods["eth1"] != nil)
	}
}

// TestNewTagInABatch: bursts that wait when the stream gets another tag keep their places in the old one, and the new one begins at 0.
func TestNewTagInABatch(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.way(false)
	w, p := x.a.f.workers[0], x.a.f.peers[nodeB]
	send := func() {
		b := udpPacket(podA1, podB, 1, 2, 30)
		f := &frame{mem: append(make([]byte, ring.Headroom), b...), at: ring.Headroom}
		if fault := encap.Parse(f.ip(), &f.p); fault != encap.OK || !w.toNative(f, p) {
			t.Fatal(fault)
		}
	}
	w.begin()
	send()
	w.flush()
	send()
	way := *p.state.native.way.Load()
	way.me.FirstTag++
	p.state.native.way.Store(&way)
	send()
	w.flush()
	send()
	w.flush()
	ds := x.sent(t)
	if len(ds) != 4 {
		t.Fatalf("%d bursts", len(ds))
	}
	for i, want := range []struct {
		tag   uint16
		start uint32
	}{{nativeTestTag, 0}, {nativeTestTag, 1}, {nativeTestTag + 1, 0}, {nativeTestTag + 1, 1}} {
		pc, ok := native.ParseUDP(ds[i])
		if want.start *= uint32(pc.Length); !ok || pc.Tag != want.tag || pc.Start != want.start {
			t.Errorf("burst %d: tag %d, from %d on, want %v", i, pc.Tag, pc.Start, want)
		}
	}
}

// TestTCPOpenedLater: sockets that could not be opened are tried again with any new settings; the agreements are made anew only when that succeeds.
func TestTCPOpenedLater(t *testing.T) {
	x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
	f := x.a.f
	open, fails := f.env.openPacket, true
	f.env.openPacket = func(c ring.PacketConfig) (ring.Port, func() (ring.Stats, error), error) {
		if fails {
			return nil, nil, syscall.EMFILE
		}
		return open(c)
	}
	instance := func() uint64 { return f.native.agreement(f.peers[nodeB]).Self.From }
	next := f.settings
	next.Uplink.Device = "eth1"
	if err := f.Reconfigure(next); err != nil || f.native.self.Carriers != native.UDP {
		t.Fatalf("%v, %v", err, f.native.self.Carriers)
	}
	before := instance()
	if err := f.Reconfigure(next); err != nil || f.native.self.Carriers != native.UDP || instance() != before {
		t.Errorf("in vain: %v, %v", err, f.native.self.Carriers)
	}
	fails = false
	if err := f.Reconfigure(next); err != nil || f.native.self.Carriers != native.TCP|native.UDP || f.workers[0].native.tcp == nil || instance() == before {
		t.Errorf("%v, %v", err, f.native.self.Carriers)
	}
	before, x.a.pods["eth1"] = instance(), nil
	if err := f.Reconfigure(next); err != nil || x.a.pods["eth1"] != nil || instance() != before {
		t.Errorf("what is open is opened again: %v", err)
	}
}

// TestAnswersOutliveAFlush: an answer that ends a batch's bursts on its way, here as the stream has got another tag, is still whole when more answers
// have been made behind it.
func TestAnswersOutliveAFlush(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.way(false)
	x.b.f.peers[nodeA].state.native.from.Store(&nativePeer{first: nativeTestTag, streams: 2, size: [nativeCarriers]int{nativeTestPiece, nativeTestPiece}})
	w, p := x.a.f.workers[0], x.a.f.peers[nodeB]
	const answers, first = 6, 1000
	w.begin()
	for i := range answers {
		if i == 1 {
			way := *p.state.native.way.Load()
			way.me.FirstTag++
			p.state.native.way.Store(&way)
		}
		f := &w.frame
		*f = frame{mem: udpPacket(podB, netip.MustParseAddr("10.244.1.99"), uint16(first+i), 2, 400), by: p}
		if fault := encap.Parse(f.ip(), &f.p); fault != encap.OK {
			t.Fatal(fault)
		}
		w.tally.received[Wire]++
		w.refuse(f, DropNoPod, encap.HostUnreachable)
	}
	w.flush()
	w.ledger.publish(&w.tally)
	sent := w.native.sock.(*ring.FakeSocket).Sent()
	if len(sent) < 2 {
		t.Fatalf("%d bursts: nothing was flushed on the way", len(sent))
	}
	x.receive(sent...)
	var got, want []uint16
	for _, a := range x.podB.Sent() {
		got = append(got, binary.BigEndian.Uint16(decode(t, a.Data).icmp4.Payload[20:]))
	}
	for i := range answers {
		want = append(want, uint16(first+i))
	}
	if !slices.Equal(got, want) {
		t.Errorf("answers about the packets of ports %v, want %v", got, want)
	}
	x.a.check(map[Reason]uint64{DropNoPod: answers})
	x.b.check(nil)
}
