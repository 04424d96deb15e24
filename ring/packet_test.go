//go:build linux

package ring

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var allRings = []PacketRing{RecvMMsg, RingV2, RingV3}

// packetPair is a veth with a packet socket on each end: what tx writes, rx
// reads.
func packetPair(t testing.TB, rx PacketConfig) (tx, in *PacketSocket) {
	t.Helper()
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	rx.Device = "vb"
	a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
	b.do(func() { in = openPacket(t, rx) })
	return tx, in
}

func openPacket(t testing.TB, cfg PacketConfig) *PacketSocket {
	t.Helper()
	s, err := OpenPacket(cfg)
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func send(t testing.TB, w Writer, frames ...FakePacket) {
	t.Helper()
	p := NewPackets(len(frames), 4*len(frames))
	for _, f := range frames {
		if !p.Begin(f.Virtio) || !p.Append(f.Data[:14]) || !p.Append(f.Data[14:]) {
			t.Fatal("no room for the frames of a test")
		}
	}
	n, err := w.Write(p, 0)
	if n != len(frames) || err != nil {
		t.Fatalf("Write: %d of %d, %v", n, len(frames), err)
	}
}

// collect reads until n frames are there; they are copied, and released after
// every read of at most batch frames.
func collect(t testing.TB, r Reader, n, batch int) (got []FakePacket) {
	t.Helper()
	slab := NewSlab(max(batch, 1) * FrameRoom)
	fs := make([]Frame, batch)
	eventually(t, fmt.Sprintf("%d frames read", n), func() bool {
		k, err := r.Read(slab, fs)
		must(t, err)
		for _, f := range fs[:k] {
			if f.Start != Headroom && !f.Truncated {
				t.Fatalf("frame starts at %d, want %d", f.Start, Headroom)
			}
			if !f.Truncated {
				// The headroom is ours: writing it must hurt nothing.
				for i := range f.Mem[:f.Start] {
					f.Mem[i] = 0xee
				}
			}
			got = append(got, FakePacket{Data: bytes.Clone(f.Mem[f.Start:]), Virtio: f.Virtio, Truncated: f.Truncated, VLAN: f.VLAN})
		}
		r.Release()
		slab.Reset()
		return len(got) >= n
	})
	return got
}

func same(t *testing.T, got, want []FakePacket) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d frames, want %d", len(got), len(want))
	}
	for i, g := range got {
		w := want[i]
		if !bytes.Equal(g.Data, w.Data) {
			t.Fatalf("frame %d: %d bytes differ from the %d sent", i, len(g.Data), len(w.Data))
		}
		// The kernel gives its own linear length as HdrLen.
		g.Virtio.HdrLen, w.Virtio.HdrLen = 0, 0
		if g.Virtio != w.Virtio || g.Truncated || g.VLAN {
			t.Fatalf("frame %d: %+v truncated %v vlan %v, want %+v", i, g.Virtio, g.Truncated, g.VLAN, w.Virtio)
		}
	}
}

// Small frames and superframes come whole, in order, with their metadata,
// however they are read.
func TestPacketOrder(t *testing.T) {
	for _, ring := range allRings {
		t.Run(ring.String(), func(t *testing.T) {
			tx, rx := packetPair(t, PacketConfig{Ring: ring, RecvBuffer: 8 << 20})
			var sent []FakePacket
			for i := range 48 {
				switch i % 4 {
				case 0, 1:
					sent = append(sent, FakePacket{Data: udpFrame(30+i, byte(i))})
				case 2:
					sent = append(sent, FakePacket{Data: tcpFrame(60000+i, byte(i)), Virtio: tcpSuper})
				case 3:
					sent = append(sent, FakePacket{Data: udpFrame(40000+i, byte(i)), Virtio: udpSuper})
				}
			}
			for i := 0; i < len(sent); i += 12 {
				send(t, tx, sent[i:i+12]...)
				same(t, collect(t, rx, 12, 5), sent[i:i+12])
			}
			st, err := rx.Stats()
			must(t, err)
			if st.Received != 48 || st.Dropped != 0 {
				t.Errorf("statistics %+v, want 48 received", st)
			}
		})
	}
}

// The ring wraps around, many times, with no frame lost or doubled.
func TestPacketWrap(t *testing.T) {
	for _, ring := range allRings {
		t.Run(ring.String(), func(t *testing.T) {
			cfg := PacketConfig{Ring: ring}
			if ring == RingV2 {
				cfg.Slots = 16
			}
			tx, rx := packetPair(t, cfg)
			for i := range 100 {
				var sent []FakePacket
				for j := range 13 {
					sent = append(sent, FakePacket{Data: udpFrame(20+j, byte(i+j))})
				}
				send(t, tx, sent...)
				same(t, collect(t, rx, 13, 7), sent)
			}
		})
	}
}

// A lent slot is not overwritten before Release, and what finds the ring full is
// counted.
func TestV2Full(t *testing.T) {
	tx, rx := packetPair(t, PacketConfig{Ring: RingV2, Slots: 8})
	var sent []FakePacket
	for i := range 12 {
		sent = append(sent, FakePacket{Data: udpFrame(100, byte(i))})
	}
	send(t, tx, sent...)
	fs := make([]Frame, 16)
	slab := NewSlab(FrameRoom)
	var n int
	eventually(t, "8 frames", func() bool {
		k, err := rx.Read(slab, fs[n:])
		must(t, err)
		n += k
		return n == 8
	})
	send(t, tx, sent...)
	if k, err := rx.Read(slab, fs[n:]); k != 0 || err != nil {
		t.Fatalf("Read of a full ring: %d, %v", k, err)
	}
	for i, f := range fs[:8] {
		if !bytes.Equal(f.Bytes(), sent[i].Data) {
			t.Fatalf("lent frame %d was overwritten", i)
		}
	}
	rx.Release()
	st, err := rx.Stats()
	must(t, err)
	if st.Received != 8 || st.Dropped != 16 {
		t.Errorf("statistics %+v, want 8 received and 16 dropped", st)
	}
	send(t, tx, sent[:5]...)
	same(t, collect(t, rx, 5, 8), sent[:5])
}

// A superframe that finds the socket's queue full is cut to its slot, flagged,
// and does not shift those behind it.
func TestV2Truncated(t *testing.T) {
	tx, rx := packetPair(t, PacketConfig{Ring: RingV2, RecvBuffer: 4 << 10})
	sent := []FakePacket{
		{Data: tcpFrame(60000, 1), Virtio: tcpSuper},
		{Data: udpFrame(100, 2)},
		{Data: tcpFrame(50000, 3), Virtio: tcpSuper},
		{Data: udpFrame(100, 4)},
	}
	send(t, tx, sent...)
	got := collect(t, rx, 4, 8)
	if !got[2].Truncated || got[0].Truncated {
		t.Fatalf("truncated: %v %v %v %v, want only the third", got[0].Truncated, got[1].Truncated, got[2].Truncated, got[3].Truncated)
	}
	if !bytes.HasPrefix(sent[2].Data, got[2].Data) || len(got[2].Data) < 1500 {
		t.Errorf("the cut frame holds %d bytes", len(got[2].Data))
	}
	same(t, append(got[:2:2], got[3]), append(sent[:2:2], sent[3]))
	send(t, tx, sent[0])
	same(t, collect(t, rx, 1, 8), sent[:1])
}

// With a full slab nothing is lost: Read stops before the spilled frame.
func TestPacketNoRoom(t *testing.T) {
	for _, ring := range []PacketRing{RecvMMsg, RingV2} {
		tx, rx := packetPair(t, PacketConfig{Ring: ring, RecvBuffer: 8 << 20})
		sent := []FakePacket{{Data: tcpFrame(60000, 1), Virtio: tcpSuper}, {Data: tcpFrame(60001, 2), Virtio: tcpSuper}}
		send(t, tx, sent...)
		slab, fs := NewSlab(FrameRoom), make([]Frame, 4)
		eventually(t, "one frame", func() bool {
			n, err := rx.Read(slab, fs)
			must(t, err)
			return n == 1
		})
		if n, err := rx.Read(slab, fs[1:]); n != 0 || !errors.Is(err, ErrNoRoom) {
			t.Fatalf("%v: Read with a full slab: %d, %v", ring, n, err)
		}
		if !bytes.Equal(fs[0].Bytes(), sent[0].Data) {
			t.Fatalf("%v: the first frame changed", ring)
		}
		rx.Release()
		slab.Reset()
		same(t, collect(t, rx, 1, 4), sent[1:])
	}
}

// We do not read what we write, nor what the host sends out of the device.
func TestPacketIgnoresOutgoing(t *testing.T) {
	for _, ring := range allRings {
		tx, rx := packetPair(t, PacketConfig{Ring: ring})
		send(t, rx, FakePacket{Data: udpFrame(64, 1)})
		send(t, tx, FakePacket{Data: udpFrame(64, 2)})
		got := collect(t, rx, 1, 4)
		if len(got) != 1 || got[0].Data[60] != 2 {
			t.Errorf("%v: read %d frames, want the incoming one alone", ring, len(got))
		}
	}
}

// A frame in the middle that the kernel refuses is named by its index; the
// others go.
func TestPacketWritePartial(t *testing.T) {
	tx, rx := packetPair(t, PacketConfig{Ring: RingV2})
	frames := []FakePacket{{Data: udpFrame(10, 0)}, {Data: udpFrame(2000, 1)}, {Data: udpFrame(10, 2)},
		{Data: udpFrame(10, 3), Virtio: Virtio{HdrLen: 9999}}, {Data: udpFrame(10, 4)}}
	p := NewPackets(8, 32)
	for _, f := range frames {
		p.Begin(f.Virtio)
		p.Append(f.Data)
	}
	n, err := tx.Write(p, 0)
	if n != 1 || !errors.Is(err, unix.EMSGSIZE) {
		t.Fatalf("Write: %d, %v; want 1, EMSGSIZE", n, err)
	}
	n, err = tx.Write(p, 2)
	if n != 1 || !errors.Is(err, unix.EINVAL) {
		t.Fatalf("Write: %d, %v; want 1, EINVAL", n, err)
	}
	n, err = tx.Write(p, 4)
	if n != 1 || err != nil {
		t.Fatalf("Write: %d, %v; want 1", n, err)
	}
	same(t, collect(t, rx, 3, 8), []FakePacket{frames[0], frames[2], frames[4]})
}

// Without TSO on the device the direct path refuses superframes: they are sent
// the other way, cut by the kernel, and none is lost.
func TestPacketBypassFallback(t *testing.T) {
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	a.do(func() { ethtool(t, "va", ethtoolSTSO, 0) })
	var tx, rx *PacketSocket
	a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
	b.do(func() { rx = openPacket(t, PacketConfig{Device: "vb", Ring: RingV2, Slots: 1024}) })
	small := FakePacket{Data: udpFrame(20, 0xff)}
	for i := range keepBypass + 2 {
		send(t, tx, small, FakePacket{Data: tcpFrame(14000, byte(i)), Virtio: tcpSuper}, small)
		got := collect(t, rx, 12, 16)
		same(t, []FakePacket{got[0], got[11]}, []FakePacket{small, small})
		for _, g := range got[1:11] {
			if g.Virtio.GSOType != GSONone || len(g.Data) != 1454 || g.Data[1453] != byte(i) {
				t.Fatalf("superframe %d: a segment of %d bytes, %+v", i, len(g.Data), g.Virtio)
			}
		}
	}
	if tx.bypass.Load() {
		t.Error("the direct path is still tried first")
	}
}

// Any worker writes to a port, also where superframes need the other way: none
// is lost because two of them switch it.
func TestPacketWriters(t *testing.T) {
	a, b := newNS(t), newNS(t)
	veth(t, a, "va", b, "vb", 1500)
	a.do(func() { ethtool(t, "va", ethtoolSTSO, 0) })
	var tx, rx *PacketSocket
	a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
	b.do(func() { rx = openPacket(t, PacketConfig{Device: "vb", Ring: RingV2, Slots: 1024}) })
	const writers, each = 4, 10
	var wait sync.WaitGroup
	for i := range writers {
		wait.Go(func() {
			p := NewPackets(1, 4)
			for range each {
				p.Reset()
				p.Begin(tcpSuper)
				p.Append(tcpFrame(14000, byte(i)))
				if n, err := tx.Write(p, 0); n != 1 || err != nil {
					t.Errorf("writer %d: %d, %v", i, n, err)
				}
			}
		})
	}
	wait.Wait()
	collect(t, rx, writers*each*10, 64)
}

// A port's counters are read while it goes away, by its number: they must not
// be reset in the socket that has got the same number since.
func TestPacketStatsAfterClose(t *testing.T) {
	tx, rx := packetPair(t, PacketConfig{Ring: RingV2})
	send(t, tx, FakePacket{Data: udpFrame(64, 1)})
	collect(t, rx, 1, 8)
	before, err := rx.Stats()
	must(t, err)
	must(t, rx.Close())
	if after, err := rx.Stats(); err != nil || after != before || after.Received != 1 {
		t.Errorf("after Close: %+v, %v; before %+v", after, err, before)
	}
}

func TestPacketVLAN(t *testing.T) {
	for _, ring := range allRings {
		tx, rx := packetPair(t, PacketConfig{Ring: ring})
		f := udpFrame(64, 1)
		tagged := append(append(bytes.Clone(f[:12]), 0x81, 0, 0, 7), f[12:]...)
		send(t, tx, FakePacket{Data: tagged})
		got := collect(t, rx, 1, 4)
		if !got[0].VLAN || !bytes.Equal(got[0].Data, f) {
			t.Errorf("%v: VLAN %v, %d bytes, want the tag noticed and %d bytes", ring, got[0].VLAN, len(got[0].Data), len(f))
		}
	}
}

// A device that goes down or away is told by TakeError, once, and costs no
// frame when it comes up again.
func TestPacketDeviceDown(t *testing.T) {
	for _, ring := range allRings {
		a, b := newNS(t), newNS(t)
		veth(t, a, "va", b, "vb", 1500)
		var tx, rx *PacketSocket
		a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
		b.do(func() { rx = openPacket(t, PacketConfig{Device: "vb", Ring: ring}) })
		p, err := NewPoller()
		must(t, err)
		defer p.Close()
		must(t, p.Add(rx.FD(), 7))
		l, err := b.h.LinkByName("vb")
		must(t, err)
		must(t, b.h.LinkSetDown(l))
		var ev [2]Event
		n, err := p.Wait(ev[:], 1000)
		if n != 1 || err != nil || !ev[0].Error() || ev[0].Token != 7 {
			t.Fatalf("%v: Wait: %d, %v, %+v; want an error event", ring, n, err, ev[0])
		}
		if err := rx.TakeError(); !errors.Is(err, unix.ENETDOWN) {
			t.Fatalf("%v: TakeError: %v, want ENETDOWN", ring, err)
		}
		if err := rx.TakeError(); err != nil {
			t.Fatalf("%v: TakeError again: %v", ring, err)
		}
		if n, _ := p.Wait(ev[:], 0); n != 0 {
			t.Fatalf("%v: the event stays after TakeError", ring)
		}
		must(t, b.h.LinkSetUp(l))
		_ = tx.TakeError()
		a.running("va")
		send(t, tx, FakePacket{Data: udpFrame(64, 1)})
		same(t, collect(t, rx, 1, 4), []FakePacket{{Data: udpFrame(64, 1)}})
	}
}

// What arrives while the socket is being opened is either read from the ring, in
// order, or not at all: never out of order from the plain queue.
func TestPacketOpenUnderLoad(t *testing.T) {
	for _, ring := range allRings {
		a, b := newNS(t), newNS(t)
		veth(t, a, "va", b, "vb", 1500)
		var tx *PacketSocket
		a.do(func() { tx = openPacket(t, PacketConfig{Device: "va"}) })
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			p := NewPackets(1, 2)
			for i := uint16(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				f := udpFrame(64, 0)
				f[50], f[51] = byte(i>>8), byte(i)
				p.Reset()
				p.Begin(Virtio{})
				p.Append(f)
				_, _ = tx.Write(p, 0)
			}
		}()
		for range 20 {
			var rx *PacketSocket
			b.do(func() { rx = openPacket(t, PacketConfig{Device: "vb", Ring: ring}) })
			got := collect(t, rx, 30, 64)
			for i := 1; i < 30; i++ {
				seq := func(f FakePacket) uint16 { return uint16(f.Data[50])<<8 | uint16(f.Data[51]) }
				// A gap is a full ring of a reader that had no core.
				if int16(seq(got[i])-seq(got[i-1])) <= 0 {
					t.Fatalf("%v: frame %d follows frame %d", ring, seq(got[i]), seq(got[i-1]))
				}
			}
			must(t, rx.Close())
		}
		close(stop)
		<-done
	}
}

func TestPacketAllocs(t *testing.T) {
	for _, ring := range allRings {
		t.Run(ring.String(), func(t *testing.T) {
			tx, rx := packetPair(t, PacketConfig{Ring: ring, RecvBuffer: 8 << 20})
			slab, fs := NewSlab(17*FrameRoom), make([]Frame, 16)
			small, super := udpFrame(64, 1), tcpFrame(60000, 2)
			p := NewPackets(8, 32)
			read := 0
			noAllocs(t, "write and read", func() {
				p.Reset()
				for range 3 {
					p.Begin(Virtio{})
					p.Append(small)
					p.Begin(tcpSuper)
					p.Append(super[:54])
					p.Append(super[54:])
				}
				if n, err := tx.Write(p, 0); n != 6 || err != nil {
					t.Fatal(n, err)
				}
				n, err := rx.Read(slab, fs)
				if err != nil {
					t.Fatal(err)
				}
				read += n
				rx.Release()
				slab.Reset()
			})
			if read < 6 {
				t.Errorf("only %d frames were read", read)
			}
		})
	}
}

func TestOpenPacketErrors(t *testing.T) {
	ns := newNS(t)
	ns.do(func() {
		for _, c := range []struct {
			cfg  PacketConfig
			want string
		}{
			{PacketConfig{Device: "nosuch"}, `cannot open a packet socket on "nosuch": no such device; create it first`},
			{PacketConfig{Index: 99}, "cannot open a packet socket on index 99"},
			{PacketConfig{Device: "lo", Ring: RingV2, SlotSize: 1000}, "slots must be a power of two"},
			{PacketConfig{Device: "lo", Ring: RingV3, SlotSize: 4096}, "blocks must be whole pages"},
			{PacketConfig{Device: "lo", Ring: 9}, "PacketRing(9)"},
		} {
			s, err := OpenPacket(c.cfg)
			if err == nil {
				s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "penstock: ") {
				t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
			}
		}
	})
}
