//go:build linux

package ring

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func createTUN(t testing.TB, ns *testNS, cfg TUNConfig) []*Queue {
	t.Helper()
	var qs []*Queue
	ns.do(func() {
		var err error
		qs, err = CreateTUN(cfg)
		must(t, err)
	})
	t.Cleanup(func() {
		for _, q := range qs {
			q.Close()
		}
	})
	return qs
}

func (ns *testNS) has(name string) bool {
	_, err := ns.h.LinkByName(name)
	return err == nil
}

func TestTUNLifetime(t *testing.T) {
	ns := newNS(t)
	qs := createTUN(t, ns, TUNConfig{Name: "tp0", Queues: 3, MTU: 1400})
	l, err := ns.h.LinkByName("tp0")
	must(t, err)
	tun := l.(*netlink.Tuntap)
	if l.Attrs().MTU != 1400 || l.Attrs().NumTxQueues < 3 || tun.Mode != netlink.TUNTAP_MODE_TUN || tun.NonPersist != true {
		t.Errorf("MTU %d, %d queues, %v, not persistent %v", l.Attrs().MTU, l.Attrs().NumTxQueues, tun.Mode, tun.NonPersist)
	}
	for _, q := range qs {
		if q.Name() != "tp0" || q.TAP() {
			t.Errorf("queue of %q, TAP %v", q.Name(), q.TAP())
		}
		must(t, q.Close())
	}
	eventually(t, "the device gone with its last queue", func() bool { return !ns.has("tp0") })

	// Persistent: it stays, a successor finds it with its queues free.
	for range 2 {
		ns.do(func() {
			qs, err = CreateTUN(TUNConfig{Name: "tp1", Queues: 2, Persistent: true})
			must(t, err)
			more, err := OpenQueue("tp1", false, true)
			must(t, err)
			must(t, more.Close())
		})
		for _, q := range qs {
			must(t, q.Close())
		}
		if !ns.has("tp1") {
			t.Fatal("a persistent device is gone")
		}
	}
	ns.do(func() {
		q, err := OpenQueue("tp1", false, true)
		must(t, err)
		must(t, q.SetPersist(false))
		must(t, q.Close())
		if _, err := OpenQueue("nosuch", false, true); !errors.Is(err, unix.ENODEV) || ns.has("nosuch") {
			t.Errorf("OpenQueue of a device that is not there: %v", err)
		}
		qs, err := CreateTUN(TUNConfig{Name: "auto%d", TAP: true})
		must(t, err)
		if qs[0].Name() != "auto0" || !qs[0].TAP() {
			t.Errorf("numbered device: %q", qs[0].Name())
		}
		if _, err = CreateTUN(TUNConfig{Name: "auto0"}); err == nil || !strings.Contains(err.Error(), "another type") {
			t.Errorf("a TUN of the name of a TAP: %v", err)
		}
		if _, err = CreateTUN(TUNConfig{Name: "much-too-long-name"}); !errors.Is(err, unix.ENAMETOOLONG) {
			t.Errorf("a long name: %v", err)
		}
		if _, err = CreateTUN(TUNConfig{Name: "badmtu", MTU: 1 << 20}); err == nil || ns.has("badmtu") {
			t.Errorf("a bad MTU: %v, device left %v", err, ns.has("badmtu"))
		}
		must(t, qs[0].Close())
	})
}

func TestAdoptQueue(t *testing.T) {
	ns := newNS(t)
	q := createTUN(t, ns, TUNConfig{Name: "tp0"})[0]
	fd, err := unix.FcntlInt(uintptr(q.FD()), unix.F_DUPFD_CLOEXEC, 3)
	must(t, err)
	a, err := AdoptQueue(fd)
	must(t, err)
	if a.Name() != "tp0" || a.TAP() {
		t.Errorf("adopted %q, TAP %v", a.Name(), a.TAP())
	}
	must(t, a.Close())
	r, w, err := os.Pipe()
	must(t, err)
	defer w.Close()
	fd, err = unix.FcntlInt(r.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	must(t, err)
	r.Close()
	if _, err := AdoptQueue(fd); err == nil {
		t.Error("a pipe was adopted as a TUN queue")
	}
	if err := unix.Close(fd); !errors.Is(err, unix.EBADF) {
		t.Error("the descriptor was not closed on failure")
	}
}

func TestTUNOffload(t *testing.T) {
	ns := newNS(t)
	q := createTUN(t, ns, TUNConfig{Name: "tp0"})[0]
	o, err := q.NegotiateOffload()
	must(t, err)
	t.Log("negotiated:", o)
	if o&(OffloadCSUM|OffloadTSO4|OffloadTSO6|OffloadTSOECN) == 0 {
		t.Errorf("negotiated %v, want TSO at least", o)
	}
	if err := q.SetOffload(1 << 20); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an unknown offload: %v", err)
	}
	if s := (OffloadCSUM | OffloadUSO6).String(); s != "csum+uso6" {
		t.Errorf("String: %q", s)
	}
}

// The kernel's own TCP crosses between two devices as superframes, both ways,
// whole: TUN to TUN, and veth to veth by each kind of ring.
func TestRelayTCP(t *testing.T) {
	t.Run("tun", func(t *testing.T) {
		a, b := newNS(t), newNS(t)
		qa := createTUN(t, a, TUNConfig{Name: "tp0"})[0]
		qb := createTUN(t, b, TUNConfig{Name: "tp0"})[0]
		for _, q := range []*Queue{qa, qb} {
			_, err := q.NegotiateOffload()
			must(t, err)
		}
		for _, ns := range []*testNS{a, b} {
			ns.up("tp0")
		}
		relayTCP(t, qa, qb, a, b, "tp0")
	})
	for _, ring := range allRings {
		t.Run("veth "+ring.String(), func(t *testing.T) {
			a, b, host := newNS(t), newNS(t), newNS(t)
			veth(t, host, "ha", a, "eth0", 1500)
			veth(t, host, "hb", b, "eth0", 1500)
			var sa, sb *PacketSocket
			host.do(func() {
				sa = openPacket(t, PacketConfig{Device: "ha", Ring: ring, RecvBuffer: 4 << 20})
				sb = openPacket(t, PacketConfig{Device: "hb", Ring: ring, RecvBuffer: 4 << 20})
			})
			relayTCP(t, sa, sb, a, b, "eth0")
		})
	}
}

// relayTCP sends 16 MiB each way between two namespaces whose devices pa and pb
// are joined here, over IPv4 and IPv6.
func relayTCP(t *testing.T, pa, pb Port, a, b *testNS, dev string) {
	a.address(dev, "10.9.0.1/24")
	b.address(dev, "10.9.0.2/24")
	a.address(dev, "fd09::1/64")
	b.address(dev, "fd09::2/64")
	poller, err := NewPoller()
	must(t, err)
	defer poller.Close()
	ports := []Port{pa, pb}
	for i, p := range ports {
		must(t, poller.Add(p.FD(), uint64(i)))
	}
	var stop atomic.Bool
	done := make(chan struct{})
	var longest, frames atomic.Int64
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		slab, fs, out := NewSlab(32*FrameRoom), make([]Frame, 32), NewPackets(32, 64)
		var events [4]Event
		for !stop.Load() {
			n, err := poller.Wait(events[:], 100)
			if err != nil {
				t.Error(err)
				return
			}
			for _, e := range events[:n] {
				from, to := ports[e.Token], ports[1-e.Token]
				k, err := from.Read(slab, fs)
				if err != nil {
					t.Error(err)
					return
				}
				out.Reset()
				for _, f := range fs[:k] {
					if f.Truncated {
						t.Error("a truncated frame")
						continue
					}
					longest.Store(max(longest.Load(), int64(len(f.Bytes()))))
					frames.Add(1)
					out.Begin(f.Virtio)
					out.Append(f.Bytes())
				}
				for at := 0; at < out.Len(); {
					k, err := to.Write(out, at)
					at += k
					if err != nil {
						at++ // TCP sends it again
					}
				}
				from.Release()
				slab.Reset()
			}
		}
	}()
	defer func() { stop.Store(true); poller.Wake(); <-done }()

	for _, addr := range []string{"10.9.0.2:7000", "[fd09::2]:7000"} {
		var l net.Listener
		b.do(func() { l, err = net.Listen("tcp", addr); must(t, err) })
		var conn net.Conn
		a.do(func() { conn, err = net.DialTimeout("tcp", addr, 20*time.Second); must(t, err) })
		peer, err := l.Accept()
		must(t, err)
		l.Close()
		longest.Store(0)
		errs := make(chan error, 2)
		for i, c := range [][2]net.Conn{{conn, peer}, {peer, conn}} {
			go func() { errs <- transfer(c[0], c[1], uint64(i), 16<<20) }()
		}
		for range 2 {
			must(t, <-errs)
		}
		conn.Close()
		peer.Close()
		if longest.Load() < 30000 {
			t.Errorf("%s: the longest frame had %d bytes: no superframes", addr, longest.Load())
		}
		t.Logf("%s: %d frames, longest %d", addr, frames.Load(), longest.Load())
	}
}

func transfer(from, to net.Conn, seed uint64, size int64) error {
	deadline := time.Now().Add(60 * time.Second)
	from.SetDeadline(deadline)
	to.SetDeadline(deadline)
	sent, got := sha256.New(), sha256.New()
	errc := make(chan error, 1)
	go func() {
		src := rand.NewChaCha8([32]byte{byte(seed)})
		_, err := io.CopyBuffer(io.MultiWriter(from, sent), io.LimitReader(src, size), make([]byte, 256<<10))
		errc <- err
	}()
	if _, err := io.CopyN(got, to, size); err != nil {
		return err
	}
	if err := <-errc; err != nil {
		return err
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("SHA-256 differs")
	}
	return nil
}

// A superframe written to a TUN reaches a socket as the datagrams it stands for.
func TestTUNWriteUSO(t *testing.T) {
	q, conn := tunSink(t)
	frame := udpFrame(3000, 7)[14:]
	p := NewPackets(4, 8)
	p.Begin(Virtio{Flags: NeedsCsum, GSOType: GSOUDPL4, HdrLen: 28, GSOSize: 1200, CsumStart: 20, CsumOffset: 6})
	p.Append(frame[:28])
	p.Append(frame[28:])
	if n, err := q.Write(p, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	for _, want := range []int{1200, 1200, 600} {
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := conn.Read(make([]byte, 2000))
		if n != want || err != nil {
			t.Errorf("a datagram of %d bytes, %v; want %d", n, err, want)
		}
	}
	// The kernel refuses nonsense at its index, and takes what follows.
	p.Reset()
	p.Begin(Virtio{Flags: NeedsCsum, GSOType: 99, GSOSize: 1, CsumStart: 20, CsumOffset: 6})
	p.Append(frame)
	p.Begin(Virtio{})
	p.Append(udpFrame(5, 1)[14:])
	if n, err := q.Write(p, 0); n != 0 || !errors.Is(err, unix.EINVAL) {
		t.Errorf("nonsense: %d, %v; want EINVAL", n, err)
	}
	if n, err := q.Write(p, 1); n != 1 || err != nil {
		t.Errorf("the next: %d, %v", n, err)
	}
	if n, err := conn.Read(make([]byte, 2000)); n != 5 || err != nil {
		t.Errorf("the next datagram: %d bytes, %v", n, err)
	}
}

// A socket's USO send is read whole from the TUN, and a deleted device shows.
func TestTUNReadUSO(t *testing.T) {
	ns := newNS(t)
	q := createTUN(t, ns, TUNConfig{Name: "tp0", TAP: false})[0]
	o, err := q.NegotiateOffload()
	must(t, err)
	if o&OffloadUSO4 == 0 {
		t.Skip("needs kernel 6.2: USO on TUN")
	}
	ns.up("tp0")
	ns.address("tp0", "10.9.0.1/24")
	u := openUDP(t, ns, UDPConfig{Local: netip.MustParseAddrPort("10.9.0.1:0")})
	d := NewDatagrams(1, 2)
	to := NewSockaddr(netip.MustParseAddrPort("10.9.0.9:9"))
	d.Begin(&to, 0, 1000)
	d.Append(bytes.Repeat([]byte{5}, 20500))
	if n, err := u.Send(d, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	got := collect(t, q, 1, 4)
	got = slices.DeleteFunc(got, func(f FakePacket) bool { return f.Data[0]>>4 != 4 }) // IPv6 chatter
	v := got[0].Virtio
	if len(got[0].Data) != 20528 || v.GSOType != GSOUDPL4 || v.GSOSize != 1000 || v.Flags&NeedsCsum == 0 || v.CsumStart != 20 || v.CsumOffset != 6 {
		t.Errorf("%d bytes, %+v", len(got[0].Data), v)
	}
	l, err := ns.h.LinkByName("tp0")
	must(t, err)
	must(t, ns.h.LinkDel(l))
	fs := make([]Frame, 1)
	if n, err := q.Read(NewSlab(FrameRoom), fs); n != 0 || !errors.Is(err, unix.EBADFD) {
		t.Errorf("Read after the device's end: %d, %v; want EBADFD", n, err)
	}
}

func TestTUNAllocs(t *testing.T) {
	ns := newNS(t)
	q := createTUN(t, ns, TUNConfig{Name: "tp0"})[0]
	if _, err := q.NegotiateOffload(); err != nil {
		t.Fatal(err)
	}
	ns.up("tp0")
	ns.address("tp0", "10.9.0.1/24")
	u := openUDP(t, ns, UDPConfig{Local: netip.MustParseAddrPort("10.9.0.1:0")})
	d, to := NewDatagrams(4, 4), NewSockaddr(netip.MustParseAddrPort("10.9.0.9:9"))
	payload := make([]byte, 20000)
	slab, fs, p := NewSlab(8*FrameRoom), make([]Frame, 8), NewPackets(8, 16)
	frame := udpFrame(3000, 7)[14:]
	read := 0
	noAllocs(t, "TUN read and write", func() {
		d.Reset()
		for range 4 {
			d.Begin(&to, 0, 1000)
			d.Append(payload)
		}
		if _, err := u.Send(d, 0); err != nil {
			t.Fatal(err)
		}
		n, err := q.Read(slab, fs)
		if err != nil {
			t.Fatal(err)
		}
		read += n
		p.Reset()
		p.Begin(Virtio{Flags: NeedsCsum, GSOType: GSOUDPL4, HdrLen: 28, GSOSize: 1200, CsumStart: 20, CsumOffset: 6})
		p.Append(frame)
		if _, err := q.Write(p, 0); err != nil {
			t.Fatal(err)
		}
		q.Release()
		slab.Reset()
	})
	if read < 50 {
		t.Errorf("only %d frames were read", read)
	}
}

// A frame that no virtio header can express blocks a V2 ring of this kernel;
// Unblock notices and repairs, and never touches a ring that is well.
// A superframe that no virtio header can express is dropped by a ring of blocks when its place was made already. What stood
// there before is not read a second time.
func TestBlocksForget(t *testing.T) {
	ns := newNS(t)
	q := createTUN(t, ns, TUNConfig{Name: "tp0", TAP: true})[0]
	ns.up("tp0")
	var rx *PacketSocket
	ns.do(func() { rx = openPacket(t, PacketConfig{Device: "tp0", Ring: RingV3, Slots: 2}) })
	a, b := FakePacket{Data: udpFrame(64, 1)}, FakePacket{Data: udpFrame(64, 2)}
	ufo := FakePacket{Data: udpFrame(20000, 1), Virtio: Virtio{Flags: NeedsCsum, GSOType: GSOUDP, GSOSize: 1400, HdrLen: 42, CsumStart: 34, CsumOffset: 6}}
	for range 2 { // through both blocks
		send(t, q, a)
		same(t, collect(t, rx, 1, 8), []FakePacket{a})
	}
	send(t, q, ufo)
	slab, fs := NewSlab(FrameRoom), make([]Frame, 4)
	for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if n, err := rx.Read(slab, fs); n != 0 || err != nil {
			t.Fatalf("%d frames of none, %v: % x", n, err, fs[0].Bytes())
		}
		rx.Release()
	}
	send(t, q, b)
	same(t, collect(t, rx, 1, 8), []FakePacket{b})
	if st, err := rx.Stats(); err != nil || st != (Stats{Received: 3, Dropped: 1}) {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestUnblock(t *testing.T) {
	ns := newNS(t)
	q := createTUN(t, ns, TUNConfig{Name: "tp0", TAP: true})[0]
	ns.up("tp0")
	var rx *PacketSocket
	ns.do(func() { rx = openPacket(t, PacketConfig{Device: "tp0", Ring: RingV2, Slots: 8}) })
	unblock := func(want bool) {
		t.Helper()
		got, err := rx.Unblock()
		if got != want || err != nil {
			t.Fatalf("Unblock: %v, %v; want %v", got, err, want)
		}
	}
	small := FakePacket{Data: udpFrame(64, 1)}
	unblock(false)
	// Overflow is not blocking, whenever Unblock is called.
	send(t, q, slices.Repeat([]FakePacket{small}, 12)...)
	unblock(false)
	collect(t, rx, 8, 8)
	unblock(false)
	unblock(false)
	send(t, q, slices.Repeat([]FakePacket{small}, 12)...)
	collect(t, rx, 8, 8)
	unblock(false)

	ufo := FakePacket{Data: udpFrame(20000, 1), Virtio: Virtio{Flags: NeedsCsum, GSOType: GSOUDP, GSOSize: 1400, HdrLen: 42, CsumStart: 34, CsumOffset: 6}}
	send(t, q, ufo, small)
	n, err := rx.Read(NewSlab(FrameRoom), make([]Frame, 4))
	must(t, err)
	if n == 1 {
		t.Skip("this kernel does not block the ring")
	}
	unblock(true)
	unblock(false)
	send(t, q, small, small)
	same(t, collect(t, rx, 2, 8), []FakePacket{small, small})

	// A repair that failed has left no ring.
	must(t, unix.Munmap(rx.mapped))
	rx.mapped = nil
	unblock(false)
}
