package forwarder

import (
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// forged is a piece as anyone can send it who knows a tag: a whole burst of one byte.
func forged(start uint32) ring.FakeDatagram {
	b := make([]byte, native.UDPLen+1)
	native.PutUDP(b, nativeTestTag, start, 1, 0)
	return ring.FakeDatagram{Data: b}
}

// forgedPair is a stream that carries, on a clock that stands still.
func forgedPair(t *testing.T) (x *nativePair, now *time.Time, passes func() int) {
	x = newNativePair(t, encap.KindVXLAN)
	x.way(false)
	now = new(time.Time)
	*now = time.Now()
	x.b.f.env.now = func() time.Time { return *now }
	passes = func() int {
		x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
		x.a.turn()
		x.receive(each(x.sent(t))...)
		return len(x.podB.Sent())
	}
	if passes() != 1 {
		t.Fatal("nothing passes")
	}
	return x, now, passes
}

// TestNativeForgedFar: single pieces a quarter of the stream apart, one of which lies ahead of wherever it is, move nothing.
func TestNativeForgedFar(t *testing.T) {
	x, _, passes := forgedPair(t)
	for at := range uint32(4) {
		x.receive(forged(at<<30 + 1<<29))
		if passes() != 1 {
			t.Errorf("nothing passes behind the piece at %#x", at<<30)
		}
	}
	x.b.check(map[Reason]uint64{DropNativeStray: 4})
	if s := x.b.f.Counters().Peers[0].Native; s.LostBytes != 0 || s.Refused != 4 {
		t.Errorf("status %+v", s)
	}
}

// TestNativeForgedNear: pieces just ahead of the stream are believed, as one behind a loss is, and all of the peer's then comes too late.
// After a second of that the stream begins anew where the peer is, though a burst of the forger's may be open.
func TestNativeForgedNear(t *testing.T) {
	x, now, passes := forgedPair(t)
	for i := range uint32(40) { // the gaps between them, more than are remembered
		x.receive(forged(1<<20 + i<<16))
	}
	open := make([]byte, native.UDPLen+1)
	native.PutUDP(open, nativeTestTag, 1<<20+40<<16, 5000, 0)
	x.receive(ring.FakeDatagram{Data: open})
	for range 3 {
		if passes() != 0 {
			t.Fatal("the forger's pieces were not believed: the test tests nothing")
		}
		*now = now.Add(nativeStands / 4)
	}
	*now = now.Add(nativeStands/4 + 1)
	for range 3 {
		if passes() != 1 {
			t.Error("the peer's pieces do not pass after a second")
		}
	}
	x.b.check(map[Reason]uint64{DropNativeBad: 40, DropNativeDuplicate: 3}) // a byte is no frame
}

// TestNativeRepeats: what comes twice is no forger's doing while the stream goes on, nor right after it has stopped.
func TestNativeRepeats(t *testing.T) {
	x, now, _ := forgedPair(t)
	for range 3 {
		x.podA.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 30)})
		x.a.turn()
		ds := each(x.sent(t))
		x.receive(ds...)
		*now = now.Add(nativeStands)
		for range 100 {
			x.receive(ds...)
		}
		if n := len(x.podB.Sent()); n != 1 {
			t.Errorf("the pod has %d packets", n)
		}
		*now = now.Add(10 * nativeStands)
	}
	x.b.check(map[Reason]uint64{DropNativeDuplicate: 300})
}
