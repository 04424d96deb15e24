//go:build linux

package ring

import (
	"encoding/binary"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// numbered writes frames with rising numbers, a superframe among each 32, until
// stop; it returns how many. No more than 500 wait to be read, so that no ring is
// too small for them.
func numbered(t *testing.T, tx *PacketSocket, stop <-chan struct{}, read *atomic.Uint32) uint32 {
	p := NewPackets(32, 64)
	small, super := udpFrame(64, 0), tcpFrame(20000, 0)
	var held [32][]byte
	for i := range held {
		if held[i] = append([]byte{}, small...); i == 17 {
			held[i] = append([]byte{}, super...)
		}
	}
	for n := uint32(0); ; {
		select {
		case <-stop:
			return n
		default:
		}
		if n-read.Load() > 500 {
			runtime.Gosched()
			continue
		}
		p.Reset()
		for i := range held {
			at, v := 48, Virtio{}
			if i == 17 {
				at, v = 60, tcpSuper
			}
			binary.BigEndian.PutUint32(held[i][at:], n)
			n++
			p.Begin(v)
			p.Append(held[i])
		}
		if k, err := tx.Write(p, 0); k != len(held) || err != nil {
			t.Errorf("write: %d, %v", k, err)
			return n
		}
	}
}

func number(f []byte) uint32 {
	if len(f) > 1500 {
		return binary.BigEndian.Uint32(f[60:])
	}
	return binary.BigEndian.Uint32(f[48:])
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	es, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(es)
}

// reader reads as a worker does; widen and narrow change its ring beside it.
type reader struct {
	t    *testing.T
	s    *PacketSocket
	ask  chan func()
	done chan struct{}
	next atomic.Uint32 // the number expected
	lost uint32
	wide int // frames read while there was a wide ring
}

func startReader(t *testing.T, s *PacketSocket) *reader {
	r := &reader{t: t, s: s, ask: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		slab, fs := NewSlab(64*FrameRoom), make([]Frame, 64)
		for {
			select {
			case fn := <-r.ask:
				if fn == nil {
					return
				}
				fn()
			default:
			}
			r.read(slab, fs)
		}
	}()
	return r
}

func (r *reader) read(slab *Slab, fs []Frame) int {
	n, err := r.s.Read(slab, fs)
	if err != nil {
		r.t.Errorf("read: %v", err)
	}
	for _, f := range fs[:n] {
		if len(f.Bytes()) < 52 {
			r.t.Errorf("a frame of %d bytes", len(f.Bytes()))
			continue
		}
		k, next := number(f.Bytes()), r.next.Load()
		if k < next {
			r.t.Errorf("frame %d behind frame %d", k, next-1)
		}
		r.lost += k - next
		r.next.Store(k + 1)
	}
	if r.s.wide != nil {
		r.wide += n
	}
	r.s.Release()
	slab.Reset()
	return n
}

func (r *reader) do(fn func()) {
	done := make(chan struct{})
	r.ask <- func() { fn(); close(done) }
	<-done
}

// Wide rings of both kinds.
func slotsWide(slots, buffer int) PacketConfig {
	return PacketConfig{Ring: RingV2, Slots: slots, RecvBuffer: buffer}
}

func blocksWide(blocks int) PacketConfig {
	return PacketConfig{Ring: RingV3, Slots: blocks, SlotSize: 256 << 10}
}

func (r *reader) widen(ns *testNS, cfg PacketConfig) {
	r.t.Helper()
	var w *PacketSocket
	var err error
	ns.do(func() { w, err = r.s.OpenWide(cfg) })
	must(r.t, err)
	r.do(func() { r.s.Adopt(w) })
	must(r.t, r.s.Choose(true))
	r.do(r.s.Settled)
}

// shed ends the reading of the wide socket and closes it.
func shed(s *PacketSocket) error {
	wide := s.wide
	s.Shed()
	return wide.Close()
}

func (r *reader) narrow() {
	r.t.Helper()
	for left := false; !left; {
		r.do(func() { left = r.s.Leave() })
	}
	must(r.t, r.s.Choose(false))
	r.do(func() {
		slab, fs := NewSlab(64*FrameRoom), make([]Frame, 64)
		for !r.s.Left() {
			r.read(slab, fs)
		}
		must(r.t, shed(r.s))
	})
}

// Numbered frames come in order, none lost and none twice, while the ring is
// changed to and fro under them, and every one is counted.
func TestWiden(t *testing.T) {
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	var tx, rx *PacketSocket
	a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
	b.do(func() {
		rx = openPacket(t, PacketConfig{Device: "vb", Ring: RingV2, Slots: 1024, RecvBuffer: 4 << 20, Widen: true})
	})
	if !rx.CanWiden() {
		t.Fatal("this kernel makes no fanout group")
	}
	files := openFiles(t)
	r := startReader(t, rx)
	stop := make(chan struct{})
	var sent uint32
	var wait sync.WaitGroup
	wait.Go(func() { sent = numbered(t, tx, stop, &r.next) })
	const changes = 16
	for i := range changes {
		if cfg := slotsWide(2048, 4<<20); i%2 == 0 {
			r.widen(b, cfg)
		} else {
			r.widen(b, blocksWide(64)) // each millisecond may end one
		}
		time.Sleep(time.Duration(1+i/4) * time.Millisecond)
		r.narrow()
		time.Sleep(time.Millisecond)
	}
	close(stop)
	wait.Wait()
	eventually(t, "all frames read", func() bool { return r.next.Load() == sent })
	close(r.ask)
	<-r.done
	st, err := rx.Stats()
	must(t, err)
	if r.lost != 0 || st != (Stats{Received: uint64(sent)}) {
		t.Errorf("%d sent, %d missing, the kernel counts %+v", sent, r.lost, st)
	}
	if r.wide == 0 || sent < 1000 {
		t.Errorf("%d frames sent, %d read beside a wide ring: nothing is shown", sent, r.wide)
	}
	if n := openFiles(t); n != files {
		t.Errorf("%d descriptors are open, %d were", n, files)
	}
	t.Logf("%d frames, %d beside a wide ring", sent, r.wide)
}

// At rest nothing may be lost at all, in either direction, and both rings' drops
// are the socket's.
func TestWidenCounts(t *testing.T) {
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	var tx, rx, wide *PacketSocket
	a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
	b.do(func() {
		rx = openPacket(t, PacketConfig{Device: "vb", Ring: RingV2, Slots: 8, SlotSize: 4096, Widen: true})
	})
	some := func(n int) (fs []FakePacket) {
		for i := range n {
			fs = append(fs, FakePacket{Data: udpFrame(64, byte(i))})
		}
		return fs
	}
	send(t, tx, some(12)...) // 4 too many
	b.do(func() {
		var err error
		wide, err = rx.OpenWide(PacketConfig{Ring: RingV2, Slots: 16, SlotSize: 4096})
		must(t, err)
	})
	rx.Adopt(wide)
	must(t, rx.Choose(true))
	sent := some(20) // 4 too many
	send(t, tx, sent...)
	got := collect(t, rx, 24, 5)
	same(t, got, append(some(8), sent[:16]...))
	if !rx.Crowded() || rx.Crowded() {
		t.Error("full rings are no crowd, or one for ever")
	}
	rx.Settled()
	send(t, tx, some(3)...)
	same(t, collect(t, rx, 3, 5), some(3))
	if rx.Crowded() {
		t.Error("three frames are a crowd")
	}
	send(t, tx, some(2)...)
	if !rx.Leave() {
		t.Error("the narrow ring is empty, and may not be left for")
	}
	must(t, rx.Choose(false))
	send(t, tx, sent[:3]...)
	if rx.Left() {
		t.Error("the wide ring counts as read, with two frames in it")
	}
	same(t, collect(t, rx, 5, 1), append(some(2), sent[:3]...))
	if !rx.Left() {
		t.Error("the wide ring is not read to its end")
	}
	must(t, shed(rx))
	send(t, tx, some(9)...) // one too many
	same(t, collect(t, rx, 8, 8), some(8))
	st, err := rx.Stats()
	must(t, err)
	if st != (Stats{Received: 8 + 16 + 3 + 2 + 3 + 8, Dropped: 4 + 4 + 1}) {
		t.Errorf("statistics %+v", st)
	}
}

// A ring that finds no room for superframes is crowded, and so is one with many of them.
func TestCrowdedBySuperframes(t *testing.T) {
	for _, c := range []struct {
		frames, buffer int
		want           bool
	}{{3, 4 << 20, false}, {crowdedSpills, 4 << 20, true}, {3, 64 << 10, true}} {
		tx, rx := packetPair(t, PacketConfig{Ring: RingV2, RecvBuffer: c.buffer, Widen: true})
		var fs []FakePacket
		for i := range c.frames {
			fs = append(fs, FakePacket{Data: tcpFrame(60000, byte(i)), Virtio: tcpSuper})
		}
		send(t, tx, fs...)
		collect(t, rx, c.frames, 64)
		if rx.Crowded() != c.want {
			t.Errorf("%d superframes in %d bytes of buffer: crowded is %v", c.frames, c.buffer, !c.want)
		}
	}
}

// What the host sends out of the device is read by neither ring, and a device that
// goes down and up again keeps the choice.
func TestWidenDevice(t *testing.T) {
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	var tx, rx, other, wide *PacketSocket
	a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
	b.do(func() {
		rx = openPacket(t, PacketConfig{Device: "vb", Ring: RingV2, Widen: true})
		other = openPacket(t, PacketConfig{Device: "vb", NoBypass: true})
		var err error
		wide, err = rx.OpenWide(slotsWide(1024, 1<<20))
		must(t, err)
	})
	rx.Adopt(wide)
	must(t, rx.Choose(true))
	rx.Settled()
	send(t, other, FakePacket{Data: udpFrame(64, 1)})
	send(t, rx, FakePacket{Data: udpFrame(64, 2)})
	send(t, tx, FakePacket{Data: udpFrame(64, 3)})
	same(t, collect(t, rx, 1, 8), []FakePacket{{Data: udpFrame(64, 3)}})
	l, err := b.h.LinkByName("vb")
	must(t, err)
	must(t, b.h.LinkSetDown(l))
	if err := rx.TakeError(); err != unix.ENETDOWN {
		t.Errorf("TakeError: %v", err)
	}
	if err := rx.TakeError(); err != nil {
		t.Errorf("TakeError again: %v", err)
	}
	must(t, b.h.LinkSetUp(l))
	_ = tx.TakeError()
	a.running("va")
	send(t, tx, FakePacket{Data: udpFrame(64, 4)})
	same(t, collect(t, rx, 1, 8), []FakePacket{{Data: udpFrame(64, 4)}})
	if st, err := wide.Stats(); err != nil || st.Received != 2 {
		t.Errorf("of two frames the wide ring has received %d, %v", st.Received, err)
	}
	must(t, rx.Close())
	if err := wide.Close(); err != unix.EBADF {
		t.Errorf("closing the wide socket after the narrow one: %v, want it closed already", err)
	}
}

// Group number 0 is a group: two pods of one namespace, of whatever numbers, read
// their own frames, once.
func TestWidenGroups(t *testing.T) {
	a, b := newNS(t), newNS(t)
	var tx, rx []*PacketSocket
	for i := range 4 {
		name := strconv.Itoa(i)
		veth(t, a, "va"+name, b, "vb"+name, 1500)
		a.do(func() { tx = append(tx, openPacket(t, PacketConfig{Device: "va" + name})) })
		b.do(func() {
			rx = append(rx, openPacket(t, PacketConfig{Device: "vb" + name, Ring: RingV2, Widen: true}))
			wide, err := rx[i].OpenWide(slotsWide(256, 0))
			must(t, err)
			rx[i].Adopt(wide)
		})
	}
	groups := map[uint16]bool{}
	for i := range rx {
		groups[rx[i].group] = true
		send(t, tx[i], FakePacket{Data: udpFrame(64, byte(i))})
		must(t, rx[i].Choose(true))
		send(t, tx[i], FakePacket{Data: udpFrame(65, byte(i))})
		same(t, collect(t, rx[i], 2, 8), []FakePacket{{Data: udpFrame(64, byte(i))}, {Data: udpFrame(65, byte(i))}})
		if st, err := rx[i].Stats(); err != nil || st != (Stats{Received: 2}) {
			t.Errorf("pod %d: %+v, %v; want 2 received", i, st, err)
		}
	}
	if len(groups) != 4 {
		t.Errorf("%d groups for 4 pods", len(groups))
	}
}

// Without a group, and on a device that has gone, OpenWide says so and leaves nothing.
func TestOpenWideErrors(t *testing.T) {
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	b.do(func() {
		files := openFiles(t)
		plain, err := OpenPacket(PacketConfig{Device: "vb", Ring: RingV2})
		must(t, err)
		if _, err := plain.OpenWide(slotsWide(256, 0)); err == nil || !strings.Contains(err.Error(), "wide ring (v2) of 256 slots") {
			t.Errorf("without a group: %v", err)
		}
		must(t, plain.Close())
		grouped, err := OpenPacket(PacketConfig{Device: "vb", Ring: RingV2, Widen: true})
		must(t, err)
		for _, cfg := range []PacketConfig{slotsWide(3, 0), {Ring: RingV3, SlotSize: 4096}, {Ring: RecvMMsg}} {
			if _, err := grouped.OpenWide(cfg); err == nil {
				t.Errorf("a wide ring opened: %+v", cfg)
			}
		}
		l, err := b.h.LinkByName("vb")
		must(t, err)
		must(t, b.h.LinkDel(l))
		if _, err := grouped.OpenWide(slotsWide(256, 0)); err == nil {
			t.Error("a wide ring on a device that has gone opened")
		}
		must(t, grouped.Close())
		if n := openFiles(t); n != files {
			t.Errorf("%d descriptors are open, %d were", n, files)
		}
	})
}

func TestWidenAllocs(t *testing.T) {
	for _, cfg := range []PacketConfig{slotsWide(1024, 4<<20), blocksWide(4)} {
		testWidenAllocs(t, cfg)
	}
}

func testWidenAllocs(t *testing.T, cfg PacketConfig) {
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	var tx, rx *PacketSocket
	a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
	b.do(func() {
		rx = openPacket(t, PacketConfig{Device: "vb", Ring: RingV2, Widen: true})
		wide, err := rx.OpenWide(cfg)
		must(t, err)
		rx.Adopt(wide)
	})
	must(t, rx.Choose(true))
	slab, fs := NewSlab(17*FrameRoom), make([]Frame, 16)
	p := NewPackets(2, 4)
	p.Begin(Virtio{})
	p.Append(udpFrame(64, 1))
	p.Begin(tcpSuper)
	p.Append(tcpFrame(60000, 1))
	noAllocs(t, "read a wide ring", func() {
		if n, err := tx.Write(p, 0); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := rx.Read(slab, fs); err != nil {
			t.Fatal(err)
		}
		rx.Crowded()
		rx.Release()
		slab.Reset()
	})
}
