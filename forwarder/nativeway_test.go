package forwarder

import (
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
