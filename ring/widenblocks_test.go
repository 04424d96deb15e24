//go:build linux

package ring

import (
	"testing"
	"time"
)

// A ring of blocks has frames that it has not handed over yet: they count as there, and come in their turn.
func TestWidenBlocks(t *testing.T) {
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	var tx, rx, wide *PacketSocket
	a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
	b.do(func() {
		rx = openPacket(t, PacketConfig{Device: "vb", Ring: RingV2, Widen: true})
	})
	number := byte(0)
	some := func(n int) (fs []FakePacket) {
		for range n {
			fs = append(fs, FakePacket{Data: udpFrame(64, number)})
			number++
		}
		return fs
	}
	slab, fs := NewSlab(17*FrameRoom), make([]Frame, 64)
	const handed = 600 * time.Millisecond
	total := 0
	for round := range 3 {
		before := some(3)
		send(t, tx, before...)
		began := time.Now() // the timer runs from the opening on
		b.do(func() {
			var err error
			cfg := blocksWide(2)
			cfg.BlockTimeout = handed
			wide, err = rx.OpenWide(cfg)
			must(t, err)
		})
		rx.Adopt(wide)
		must(t, rx.Choose(true))
		rx.Settled()
		beside := some(2)
		send(t, tx, beside...)
		if round%2 == 0 { // what is handed over only while the narrow ring fills again
			same(t, collect(t, rx, 3, 64), before)
			before = nil
		}
		if rx.Leave() != (before == nil) {
			t.Fatalf("%d frames in the narrow ring, and Leave says %v", len(before), before != nil)
		}
		if before != nil {
			if n, _ := rx.Read(slab, fs); n != 3 {
				t.Fatalf("%d frames, want 3, after %v of %v", n, time.Since(began), handed)
			}
			rx.Release()
			if before = nil; !rx.Leave() {
				t.Fatal("the narrow ring was read, and may not be left for")
			}
		}
		must(t, rx.Choose(false))
		behind := some(4)
		send(t, tx, behind...)
		if rx.Left() {
			t.Fatal("the wide ring counts as read, with two frames in a block that is not full")
		}
		if n, _ := rx.Read(slab, fs); n > 0 {
			t.Fatalf("%d frames overtake those in the block, after %v of %v", n, time.Since(began), handed)
		}
		same(t, collect(t, rx, len(before)+6, 64), append(append(before, beside...), behind...))
		if !rx.Left() {
			t.Fatal("the wide ring is not read to its end")
		}
		must(t, shed(rx))
		total += 9
	}
	if st, err := rx.Stats(); err != nil || st != (Stats{Received: uint64(total)}) {
		t.Errorf("%+v, %v; want %d received", st, err, total)
	}
}
