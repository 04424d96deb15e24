package forwarder

import (
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// arrivals are the pieces of what node A has sent by a carrier: each hands one to node B, by itself, as it was sent or marked (CE) by the path.
func (x *nativePair) arrivals(t *testing.T, by native.Carrier) (as []func(marked bool)) {
	t.Helper()
	if by == native.TCP {
		for _, p := range cutTCP(t, uplink(x.a).Sent()) {
			as = append(as, func(marked bool) {
				if marked {
					p.Data = append(p.Data[:encap.EthernetLen:encap.EthernetLen], mangle(p.Data[encap.EthernetLen:], func(b []byte) []byte { b[1] |= 3; return b })...)
				}
				x.receiveTCP(p)
			})
		}
		return as
	}
	for _, d := range x.a.f.workers[0].native.sock.(*ring.FakeSocket).Sent() {
		for _, b := range datagrams(t, []ring.FakeDatagram{d}) {
			as = append(as, func(marked bool) {
				tos := d.TOS
				if marked {
					tos |= 3
				}
				x.receive(ring.FakeDatagram{Data: b, TOS: tos})
			})
		}
	}
	return as
}

// TestNativeMarks: what the path, or a pod by itself, has marked of one burst marks that burst and no other: neither those that follow, nor an open one
// that a late one comes beside. A mark that stuck would cost the peer every later packet that is not ECN-capable.
func TestNativeMarks(t *testing.T) {
	for _, by := range []native.Carrier{native.UDP, native.TCP} {
		x := newNativePairBy(t, encap.KindVXLAN, native.TCP|native.UDP)
		x.wayBy(by, false, 0)
		send := func(p ring.FakePacket) []func(bool) {
			t.Helper()
			x.podA.Inject(p)
			x.a.turn()
			return x.arrivals(t, by)
		}
		small := func(tos uint8) []func(bool) { // one piece
			return send(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30, func(ip *layers.IPv4) { ip.TOS = tos })})
		}
		super := func(tos uint8) []func(bool) { // several
			p := superTCP(podA1, podB, 5, 20000)
			p.Data = mangle(p.Data, func(b []byte) []byte { b[1] = tos; return b })
			return send(p)
		}
		all := func(as []func(bool), marked bool) {
			for _, a := range as {
				a(marked)
			}
		}
		expect := func(what string, want ...uint8) {
			t.Helper()
			var got []uint8
			for _, p := range x.podB.Sent() {
				got = append(got, p.Data[1])
			}
			if !slices.Equal(got, want) {
				t.Errorf("%v, %s: delivered with TOS %v, want %v", by, what, got, want)
			}
		}

		for _, tos := range []uint8{0, 3, 0, 0, 2, 0} {
			all(small(tos), false)
			expect("bursts in turn", tos)
		}
		all(small(2), true)
		expect("marked on the way", 3)
		all(small(0), false)
		expect("behind it", 0)

		for i, a := range super(2) {
			a(i == 2)
		}
		expect("one piece marked", 3)
		all(super(0), false)
		expect("another burst of many pieces", 0)

		lost := super(2)
		lost[0](true)
		lost[1](false)
		all(small(0), false)
		expect("a burst that is given up, and what gives it up", 3, 0)

		late, open := small(2), super(0)
		open[0](false)
		all(late, true)
		expect("late and marked", 3)
		all(open[1:], false)
		expect("open beside it", 0)

		late, open = small(0), super(2)
		open[0](true)
		all(late, false)
		expect("late beside one that is marked", 0)
		all(open[1:], false)
		expect("open and marked", 3)
		x.a.check(nil)
		x.b.check(nil)
	}
}
