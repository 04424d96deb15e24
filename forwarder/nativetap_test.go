package forwarder

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// TestTapNativeRefused: what is refused of the stream shows as the datagram that it came in, and not as the frame that was delivered before
// it; and it counts as junk for the worker's standing.
func TestTapNativeRefused(t *testing.T) {
	junk := []byte{0x10, 1, 7} // a piece that is none
	for _, by := range []native.Carrier{native.UDP, native.TCP} {
		x := newNativePairBy(t, encap.KindVXLAN, by)
		x.wayBy(by, false, 0)
		tap := x.b.tap(TapFilter{})
		defer tap.Close()
		x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
		x.a.turn()
		var want [][]byte
		if by == native.UDP {
			d := x.sent(t)[0]
			x.receive(ring.FakeDatagram{Data: slices.Concat(d, d, junk), Segment: len(d)})
			want = [][]byte{junk, d}
		} else {
			p := cutTCP(t, uplink(x.a).Sent())[0]
			cut := ring.FakePacket{Data: bytes.Clone(p.Data), Truncated: true}
			x.receiveTCP(p, cut, ring.FakePacket{Data: bytes.Clone(p.Data)})
			want = [][]byte{p.Data[encap.EthernetLen:], p.Data[encap.EthernetLen:]}
		}
		_, records := story(tap)
		var dropped []TapRecord
		for _, o := range records {
			if o.Stage == Dropped {
				dropped = append(dropped, o)
			}
		}
		if len(dropped) != len(want) {
			t.Fatalf("%v: %d drops are shown, want %d", by, len(dropped), len(want))
		}
		for i, o := range dropped {
			if !o.Outer || !bytes.HasSuffix(o.Data, want[i]) || o.Pod != "" {
				t.Errorf("%v: %s shows outer %v, pod %q, % x\nwant % x", by, o.Reason, o.Outer, o.Pod, o.Data, want[i])
			}
		}
		if s := x.b.f.workers[0].standing; s.loose != 3 {
			t.Errorf("%v: %d packets are loose, want the datagram and what was refused", by, s.loose)
		}
	}
}

// TestTapNativeLost: a frame that is given up when nothing else comes shows with the peer that it came from, whoever sent last.
func TestTapNativeLost(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.way(false)
	now := time.Now()
	x.b.f.env.now = func() time.Time { return now }
	x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 1300)}, ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 1300)})
	x.a.turn()
	x.receive(each(x.sent(t)[:1])...)
	tap := x.b.tap(TapFilter{})
	defer tap.Close()
	w := x.b.f.workers[0]
	w.lanes[0].sockets[0].(*ring.FakeSocket).Inject(ring.FakeDatagram{Data: make([]byte, 40), Addr: netip.AddrPortFrom(stranger, 1)})
	w.begin()
	w.serveLane(w.lanes[0], 0, true, false)
	w.native.incomplete[0].since -= 2 * nativeExpire.Nanoseconds()
	w.nativeTimers(-1)
	lines, records := story(tap)
	if n := len(lines); n < 2 || lines[n-1] != "dropped native_lost node-a" || !bytes.Equal(records[n-1].Data[16:20], podB.AsSlice()) {
		t.Errorf("%q", lines)
	}
}
