package forwarder

import (
	"encoding/binary"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// TestNativeFenceOnlyWhereFramesLeft: underlays let protocol 4 through and not 41. Where only IPv4 goes to a peer by ipip, no fence by
// the socket of IPv6 is waited for; where nothing has gone at all, none.
func TestNativeFenceOnlyWhereFramesLeft(t *testing.T) {
	x := newNativePair(t, encap.KindIPIP)
	x.way(true)
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 10)})
	x.a.turn()
	if len(x.sent(t)) != 1 || len(x.a.f.workers[0].native.holding) != 0 {
		t.Error("the first frame to a peer waits for a fence that has nothing in front of it")
	}

	x = newNativePair(t, encap.KindIPIP)
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1v6, podBv6, 1, 2, 10)})
	x.a.turn()
	x.way(true)
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1v6, podBv6, 1, 2, 11)})
	x.a.turn()
	for i, e := range x.a.f.workers[0].lanes[0].egress {
		want := 0
		if i == laneInner6 {
			want = 2 // the packet and the fence
		}
		if n := len(e.sock.(*ring.FakeSocket).Sent()); n != want {
			t.Errorf("socket %d sent %d packets, want %d", i, n, want)
		}
	}
}

// TestNativeFenceUnanswered: a peer that never answers fences is asked ever more rarely, and said so: each try holds its frames back for a moment.
func TestNativeFenceUnanswered(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	var log strings.Builder
	x.a.f.log = slog.New(slog.NewTextHandler(&log, nil))
	now := time.Now()
	x.a.f.env.now = func() time.Time { return now }
	x.a.f.started = now
	w := x.a.f.workers[0]
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 10)})
	x.a.turn()
	x.way(true)
	tries := func(span time.Duration) (n int) {
		for end := now.Add(span); now.Before(end); now = now.Add(20 * time.Millisecond) {
			before := w.native.holding
			x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 11)})
			x.a.turn()
			if len(before) == 0 && len(w.native.holding) == 1 {
				n++
			}
			w.nativeTimers(-1)
		}
		return n
	}
	if n := tries(130 * time.Second); n < 6 || n > 8 { // at 0, 1, 3, 7, 15, 31, 63, 127 s, and a tenth each
		t.Errorf("%d tries in the first 130 s, want 8", n)
	}
	if n := strings.Count(log.String(), "answers no fence"); n != 1 && n != 2 {
		t.Errorf("said %d times, want once a minute at most:\n%s", n, log.String())
	}
	if n := len(x.sent(t)); n != 0 {
		t.Errorf("%d datagrams by the stream", n)
	}
	// Once one is answered, the next is soon again.
	o := w.transmits[0].native
	for !o.hold.on {
		tries(20 * time.Millisecond)
	}
	w.fencePassed(fenceNonce(0, 0, o.peer.state.index, o.hold.serial))
	if o.hold.failed != 0 || o.way == nil {
		t.Errorf("the way did not change; %d failed", o.hold.failed)
	}
}

// TestNativeStop: what waits when the worker ends leaves, by the way that it was on, and what there is of a burst is handed on; the rest is a drop.
func TestNativeStop(t *testing.T) {
	x := newWaitingPair(t)
	w := x.a.f.workers[0]
	w.stopNative()
	if v := x.a.f.Counters().Forwarded[ForwardedKey{"wire", "vxlan"}]; v.Packets != 3 || len(w.native.holding) != 0 {
		t.Errorf("%d of 3 frames have left, %d peers wait", v.Packets, len(w.native.holding))
	}
	x.a.check(nil)

	x = newNativePair(t, encap.KindVXLAN)
	x.way(false)
	x.podA.Inject(superTCP(podA1, podB, 5, 20000))
	x.a.turn()
	x.receive(each(x.sent(t)[:3])...)
	if n := len(x.podB.Sent()); n != 0 {
		t.Fatalf("%d frames of a burst that is not complete", n)
	}
	x.b.f.workers[0].stopNative()
	if n := len(x.podB.Sent()); n == 0 {
		t.Error("what there was of the burst is lost")
	}
	x.b.check(nil)
}

// TestNativeAnswerReleasesHold: an answer of ours may be the frame that is too much to wait. The packet that it answers still counts with all of its bytes.
func TestNativeAnswerReleasesHold(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 10)})
	x.a.turn()
	x.way(true)
	for i := 0; i < nativeHeldMost; i += batchFrames {
		for range batchFrames {
			x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 11)})
		}
		x.a.turn()
	}
	w := x.a.f.workers[0]
	o := w.transmits[0].native
	if !o.hold.on || len(o.hold.frames) != nativeHeldMost {
		t.Fatalf("%d frames wait", len(o.hold.frames))
	}
	inner := udpPacket(podB, netip.MustParseAddr("10.244.1.77"), 1, 2, 500) // no such pod: answered by ICMP to node B's
	h := encap.NewVXLANHeader(1, w.f.peers[nodeB].own, encap.MAC{2})
	d := make([]byte, h.Len()+len(inner))
	h.Put(d, false)
	copy(d[h.Len():], inner)
	before := x.a.f.Counters().Peers[0].Got
	w.lanes[0].sockets[0].(*ring.FakeSocket).Inject(ring.FakeDatagram{Data: d, Addr: netip.AddrPortFrom(nodeB, 7)})
	w.begin()
	w.serveLane(w.lanes[0], 0, true, false)
	w.ledger.publish(&w.tally)
	after := x.a.f.Counters().Peers[0].Got
	if o.hold.on {
		t.Fatal("the hold has room for the answer")
	}
	if after.Packets-before.Packets != 1 || after.Bytes-before.Bytes != uint64(len(inner)) {
		t.Errorf("received %d packets and %d bytes, want 1 and %d", after.Packets-before.Packets, after.Bytes-before.Bytes, len(inner))
	}
	x.a.check(map[Reason]uint64{DropNoPod: 1})
}

// TestDrainLane: behind a fence of ipip every worker receives all that waits, more than one batch of it.
func TestDrainLane(t *testing.T) {
	x := newNativePair(t, encap.KindIPIP)
	const waiting = 3*inboxMessages + 1
	w := x.b.f.workers[0]
	for range waiting {
		w.lanes[0].sockets[0].(*ring.FakeSocket).Inject(ring.FakeDatagram{Data: outerIPIP(false, udpPacket(podA1, podB, 1, 2, 10)), Addr: netip.AddrPortFrom(nodeA, 0)})
	}
	w.drainLane(x.b.f.peers[nodeA].endpoint)
	if n := x.b.f.Counters().Received["wire"]; n != waiting {
		t.Errorf("%d of %d packets are received", n, waiting)
	}
	x.b.check(nil)
	w.drainLane(77) // a lane that has gone
}

// TestNativeBiggerThanBursts: on an underlay whose MTU is nearly an IP packet's, what no burst holds goes by the encapsulation.
func TestNativeBiggerThanBursts(t *testing.T) {
	for _, by := range []native.Carrier{native.TCP, native.UDP} {
		x := newNativePairBy(t, encap.KindVXLAN, by)
		x.a.f.settings.UnderlayMTU = 65520
		p := x.a.f.peers[nodeB]
		p.mtu = 65470
		x.wayBy(by, false, 0)
		way := p.state.native.way.Load()
		for _, size := range []int{1000, way.room - native.MaxHeader, way.room - native.MaxHeader + 1, 65460} {
			before := x.a.f.Counters().Forwarded[ForwardedKey{"wire", "vxlan"}].Packets
			x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, size-28)})
			x.a.turn()
			standard := x.a.f.workers[0].lanes[0].egress
			sent := 0
			for _, e := range standard {
				sent += len(e.sock.(*ring.FakeSocket).Sent())
			}
			if want := size > way.room-native.MaxHeader; (sent == 1) != want {
				t.Errorf("%v: %d bytes with room for %d: by the encapsulation: %v, want %v", by, size, way.room, sent == 1, want)
			}
			if n := x.a.f.Counters().Forwarded[ForwardedKey{"wire", "vxlan"}].Packets - before; n > 1 {
				t.Errorf("%d packets", n)
			}
		}
		x.a.check(nil)
	}
}

// TestFenceOfAllWorkers: a fence of ipip is answered when every worker has received what waited, and not if one does not come to it.
func TestFenceOfAllWorkers(t *testing.T) {
	s := testSettings(encap.KindIPIP)
	s.Workers, s.Native = 2, Native{UDP: true, Port: 7471}
	r := newRig(t, s)
	r.attach(AttachTUN, "a1", podA1)
	fence := nativeEvent{peer: r.f.peers[nodeB], m: native.Message{Kind: native.Fence}}
	if r.f.native.passed(fence) {
		t.Error("it has passed, though no worker has looked")
	}
	stop := make(chan struct{})
	defer close(stop)
	for _, w := range r.f.workers {
		w.obey() // what was asked of it before
		packet := udpPacket(podB, podA1, 1, 2, 10)
		outer := outerIPIP(false, packet)
		copy(outer[12:20], append(nodeB.AsSlice(), nodeA.AsSlice()...))
		binary.BigEndian.PutUint16(outer[10:], 0)
		binary.BigEndian.PutUint16(outer[10:], ^slowSum(outer[:20]))
		w.lanes[fence.peer.endpoint].sockets[0].(*ring.FakeSocket).Inject(ring.FakeDatagram{Data: outer, Addr: netip.AddrPortFrom(nodeB, 0)})
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					w.obey()
				}
			}
		}()
	}
	if !r.f.native.passed(fence) {
		t.Error("it has not passed, though all workers have looked")
	}
	if n := r.f.Counters().Received["wire"]; n != 2 {
		t.Errorf("%d of 2 packets are received", n)
	}
}

// TestFenceHoldsUpNobody: while a fence waits for the workers, who asks how peers are reached is answered, and an agreement may end: the
// fence is answered only if it is still the same.
func TestFenceHoldsUpNobody(t *testing.T) {
	for _, ended := range []bool{false, true} {
		s := testSettings(encap.KindIPIP)
		s.Workers, s.Native = 2, Native{UDP: true, Port: 7471}
		r := newRig(t, s)
		n, p := r.f.native, r.f.peers[nodeB]
		n.mu.Lock()
		fence := nativeEvent{peer: p, m: native.Message{Kind: native.Fence, To: n.agreement(p).Self.From}}
		n.mu.Unlock()
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.handle(fence)
		}()
		await(t, r.f.workers[0].commands.waiting.Load)
		if !n.mu.TryLock() {
			t.Error("the plane is locked over the wait")
		} else {
			if ended {
				n.forget(p.state)
			}
			n.mu.Unlock()
		}
		for _, w := range r.f.workers {
			await(t, w.commands.waiting.Load)
			w.obey()
		}
		<-done
		if sent := len(n.sock.(*ring.FakeSocket).Sent()); (sent == 0) != ended {
			t.Errorf("ended %v: %d answers", ended, sent)
		}
	}
}
