package forwarder

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
	"github.com/penstock-net/penstock/ring"
)

// breadthRig is a rig whose pods are real veths: each pod's frames are written to
// the other end of its device.
type breadthRig struct {
	*rig
	far, near *nstest.NS
	pods      map[string]*ring.PacketSocket
	ahead     atomic.Int64 // added to the clock, in ns

	mu       sync.Mutex
	expected uint32 // number of the next datagram that leaves
	missing  uint32
}

func newBreadthRig(t *testing.T, s Settings) *breadthRig {
	s.Offload.PacketRing = "auto"
	b := &breadthRig{rig: newRig(t, s), far: nstest.New(t), near: nstest.New(t), pods: map[string]*ring.PacketSocket{}}
	b.f.env.openPacket = func(c ring.PacketConfig) (p ring.Port, stats func() (ring.Stats, error), err error) {
		b.near.Do(func() {
			var s *ring.PacketSocket
			if s, err = ring.OpenPacket(c); err == nil {
				p, stats = s, s.Stats
			}
		})
		return p, stats, err
	}
	b.f.env.openWide = func(s *ring.PacketSocket, c ring.PacketConfig) (w *ring.PacketSocket, err error) {
		b.near.Do(func() { w, err = s.OpenWide(c) })
		return w, err
	}
	b.f.env.now = func() time.Time { return time.Now().Add(time.Duration(b.ahead.Load())) }
	for _, s := range b.udp {
		s.OnSend(b.left)
	}
	return b
}

// left sees what leaves for the peer; the numbers are to rise.
func (b *breadthRig) left(d ring.FakeDatagram) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range datagrams(b.t, []ring.FakeDatagram{d}) {
		number := binary.BigEndian.Uint32(p[28:])
		if number < b.expected {
			b.t.Errorf("number %d leaves behind %d", number, b.expected-1)
		}
		b.missing += number - b.expected
		b.expected = number + 1
	}
}

// pod attaches number i.
func (b *breadthRig) pod(i int) error {
	name := fmt.Sprintf("ve%d", i)
	nstest.Veth(b.t, b.far, "far"+name, nil, b.near, name, nil)
	b.far.Sysctl("net/ipv6/conf/far"+name+"/disable_ipv6", "1")
	b.near.Sysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1")
	b.far.Do(func() {
		s, err := ring.OpenPacket(ring.PacketConfig{Device: "far" + name})
		if err != nil {
			b.t.Fatal(err)
		}
		b.t.Cleanup(func() { s.Close() })
		b.pods[name] = s
	})
	address := podA1
	for range i {
		address = address.Next()
	}
	_, err := b.f.Attach(PortSpec{Container: name, Interface: "eth0", Attach: AttachVeth, Device: name, MAC: macA1.String(), Addresses: addrs(address)})
	return err
}

// send lets a pod send n small datagrams with the numbers from first on, as fast as it can.
func (b *breadthRig) send(pod string, first uint32, n int) {
	b.t.Helper()
	const batch = 64
	p := ring.NewPackets(batch, 2*batch)
	frame := fromPod(udpPacket(podA1, podB, 1, 9, 20)).Data
	frame[14+26], frame[14+27] = 0, 0 // no checksum
	frames := make([][]byte, batch)
	for i := range frames {
		frames[i] = append([]byte{}, frame...)
	}
	for i := 0; i < n; {
		p.Reset()
		for k := 0; k < batch && i < n; k, i = k+1, i+1 {
			binary.BigEndian.PutUint32(frames[k][14+28:], first+uint32(i))
			p.Begin(ring.Virtio{})
			p.Append(frames[k])
		}
		if sent, err := b.pods[pod].Write(p, 0); err != nil {
			b.t.Fatalf("sent %d, %v", sent, err)
		}
	}
}

func (b *breadthRig) eventually(what string, cond func() bool) {
	b.t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("after 10 s still not: %s", what)
		}
	}
}

func (b *breadthRig) wide(pod string) bool {
	b.f.control.Lock()
	defer b.f.control.Unlock()
	p := b.f.findPort(pod, "eth0")
	return p.breadth != nil && p.breadth.wide != nil
}

// rings sums what the kernel says that it has lost.
func (b *breadthRig) lost() (n uint64) {
	for _, p := range b.f.Counters().Ports {
		n += p.RingDrops
	}
	return n
}

// nothingLeft ends a test in which so many datagrams were sent: what is missing is what the kernel counts, and there are as many
// descriptors and bytes of the budget as before.
func (b *breadthRig) nothingLeft(sent uint32, files int, left int64) {
	b.t.Helper()
	b.settleDown()
	b.mu.Lock()
	missing := b.missing + sent - b.expected
	b.mu.Unlock()
	if lost := b.lost(); uint64(missing) != lost {
		b.t.Errorf("%d datagrams are missing, the kernel counts %d", missing, lost)
	}
	if n, l := len(b.f.Descriptors()), b.f.bufferLeft(); n != files || l != left {
		b.t.Errorf("%d descriptors and %d bytes left, at first %d and %d", n, l, files, left)
	}
	b.check(nil)
	b.t.Logf("%d sent, %d lost by the rings, %d wide rings", sent, missing, b.f.widened.Load())
}

func breadthSettings() Settings {
	s := testSettings(encap.KindUDP)
	s.PodBuffer = 8 << 20
	return s
}

// TestBreadth: a pod that floods gets a wide ring, and loses it when it has been
// quiet; what it sends leaves in order, what is missing is what the kernel counts,
// and no descriptor and no byte of the budget is left behind.
func TestBreadth(t *testing.T) {
	b := newBreadthRig(t, breadthSettings())
	if err := b.pod(0); err != nil {
		t.Fatal(err)
	}
	before, left := len(b.f.Descriptors()), b.f.bufferLeft()
	b.f.use.flood = 0 // TestBreadthFlood has rings of blocks
	b.f.Start()
	const burst = 20000
	sent := uint32(0)
	for round := uint64(1); round <= 3; round++ {
		for end := time.Now().Add(10 * time.Second); !b.wide("ve0") && time.Now().Before(end); { // a worker that keeps up with one burst needs no more room
			b.send("ve0", sent, burst)
			sent += burst
		}
		b.eventually("a wide ring", func() bool { return b.wide("ve0") })
		b.send("ve0", sent, burst)
		sent += burst
		if n := len(b.f.Descriptors()); n != before+1 {
			t.Errorf("%d descriptors while the ring is wide, want one more than %d", n, before)
		}
		time.Sleep(20 * time.Millisecond)
		if !b.wide("ve0") {
			t.Error("the wide ring is given back at once")
		}
		b.ahead.Add(int64(quietBreadth + time.Second))
		b.f.keeper.poke()
		b.eventually("a narrow ring", func() bool { return !b.wide("ve0") })
		if n := b.f.widened.Load(); n != round {
			t.Errorf("%d wide rings were opened in %d rounds", n, round)
		}
	}
	b.nothingLeft(sent, before, left)
}

// TestBreadthFlood: a pod that floods gets a ring of blocks, at once or in the place of one of slots, and loses it when the
// flood is over; order and counts are right.
func TestBreadthFlood(t *testing.T) {
	b := newBreadthRig(t, breadthSettings())
	if err := b.pod(0); err != nil {
		t.Fatal(err)
	}
	before, left := len(b.f.Descriptors()), b.f.bufferLeft()
	// What the keeper opens, in order; blocks may be refused.
	var opened []ring.PacketRing
	refuse := false
	open := b.f.env.openWide
	b.f.env.openWide = func(s *ring.PacketSocket, c ring.PacketConfig) (*ring.PacketSocket, error) { // f.control is held
		if refuse && c.Ring == ring.RingV3 {
			return nil, syscall.ENOMEM
		}
		opened = append(opened, c.Ring)
		return open(s, c)
	}
	locked := func(fn func()) {
		b.f.control.Lock()
		defer b.f.control.Unlock()
		fn()
	}
	kind := func() (k string) {
		locked(func() {
			k = "none"
			if w := b.f.findPort("ve0", "eth0").breadth.wide; w != nil {
				k = w.Ring().String()
				taken := map[string]int64{"v2": 6 << 20, "v3": blocksMost}[k]
				if n, l := len(b.f.Descriptors()), b.f.bufferLeft(); n != before+1 || l != left-taken {
					t.Errorf("%s: %d descriptors and %d bytes left, at first %d and %d", k, n, l, before, left)
				}
			}
		})
		return k
	}
	sent := uint32(0)
	until := func(want string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); kind() != want; {
			if time.Now().After(end) {
				t.Fatalf("the wide ring is never %s", want)
			}
			b.send("ve0", sent, 5000)
			sent += 5000
		}
	}
	b.f.use.flood = 1e9 // nothing is one
	b.f.Start()
	until("v2")
	locked(func() { b.f.use.flood = 5000 })
	until("v3") // in the place of the other
	quiet := func() {
		t.Helper()
		b.eventually("a ring of slots for the next wave", func() bool { return kind() == "v2" })
		b.ahead.Add(int64(quietBreadth + time.Second))
		b.f.keeper.poke()
		b.eventually("a narrow ring", func() bool { return kind() == "none" })
	}
	quiet()
	locked(func() { opened = nil })
	until("v3")
	locked(func() {
		if opened[0] != ring.RingV3 {
			t.Errorf("a flood gets %v first", opened[0])
		}
	})
	quiet()
	locked(func() { refuse = true })
	until("v2") // as there is no room for blocks
	b.ahead.Add(int64(quietBreadth + time.Second))
	b.f.keeper.poke()
	b.eventually("a narrow ring", func() bool { return kind() == "none" })
	b.nothingLeft(sent, before, left)
}

// TestBreadthNoPoll: a wide ring that the worker cannot wait for is refused, and
// the pod is heard through its narrow one.
func TestBreadthNoPoll(t *testing.T) {
	b := newBreadthRig(t, breadthSettings())
	if err := b.pod(0); err != nil {
		t.Fatal(err)
	}
	b.f.Start()
	p := b.f.findPort("ve0", "eth0")
	open := b.f.env.openWide
	b.f.env.openWide = func(s *ring.PacketSocket, c ring.PacketConfig) (*ring.PacketSocket, error) {
		w, err := open(s, c)
		if err == nil { // what the worker does will be refused: EEXIST
			b.f.onWorker(0, func(k *worker) error { return k.poller.Add(w.FD(), tokenPort|99) })
		}
		return w, err
	}
	b.f.control.Lock()
	err := b.f.widen(p, ring.RingV2)
	b.f.control.Unlock()
	if err == nil || p.breadth.wide != nil || p.breadth.size != 0 {
		t.Fatalf("widened without a poller: %v", err)
	}
	b.send("ve0", 0, 64)
	b.eventually("64 datagrams", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.expected == 64 && b.missing == 0 })
}

// TestBreadthBounds: wide rings take what limits.podBuffer and limits.totalBuffer
// leave, and give it back to a pod that is being attached.
func TestBreadthBounds(t *testing.T) {
	s := breadthSettings()
	s.TotalBuffer = 12 << 20
	b := newBreadthRig(t, s)
	for i := range 2 {
		if err := b.pod(i); err != nil {
			t.Fatal(err)
		}
	}
	b.f.Start()
	widen := func(i int) error {
		b.f.control.Lock()
		defer b.f.control.Unlock()
		return b.f.widen(b.f.findPort(fmt.Sprintf("ve%d", i), "eth0"), ring.RingV2)
	}
	if err := widen(0); err != nil {
		t.Fatal(err)
	}
	if left := b.f.bufferLeft(); left != 2<<20 {
		t.Errorf("%d bytes left of 12 MiB, with 2 MiB twice and a wide ring of 6 MiB", left)
	}
	if err := widen(1); err != nil {
		t.Fatal(err)
	}
	if left := b.f.bufferLeft(); left != 0 {
		t.Errorf("%d bytes left, the second wide ring should have got all", left)
	}
	if err := b.pod(2); err != nil {
		t.Fatal(err)
	}
	if left := b.f.bufferLeft(); left < 0 || b.wide("ve0") && b.wide("ve1") {
		t.Errorf("%d bytes left after a third pod", left)
	}
	for i := 3; ; i++ {
		if i > 30 {
			t.Fatal("12 MiB never end")
		}
		if err := b.pod(i); err != nil {
			break
		}
	}
	total := int64(0)
	for _, p := range b.f.ports {
		total += p.buffer + p.breadth.size
		if size := p.buffer + p.breadth.size; size > s.PodBuffer || size < minPortBuffer {
			t.Errorf("pod %s has %d bytes", p.spec.Device, size)
		}
	}
	if total > s.TotalBuffer || b.wide("ve0") || b.wide("ve1") {
		t.Errorf("%d bytes are taken of %d", total, s.TotalBuffer)
	}
	if err := widen(0); err == nil {
		t.Error("a wide ring was opened although nothing is left")
	}
	if err := b.f.Detach("ve1", "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := widen(0); err != nil {
		t.Errorf("2 MiB are free again: %v", err)
	}
	b.send("ve0", 0, 100)
	b.eventually("100 datagrams", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.expected == 100 && b.missing == 0 })
}

func TestWideSlots(t *testing.T) {
	for _, c := range []struct {
		size  int64
		slots int
	}{{leastBreadth, 256}, {2 << 20, 512}, {6 << 20, 2048}, {14 << 20, mostSlots}, {1 << 30, mostSlots}} {
		if got := wideSlots(c.size); got != c.slots {
			t.Errorf("%d bytes: %d slots, want %d", c.size, got, c.slots)
		}
	}
}
