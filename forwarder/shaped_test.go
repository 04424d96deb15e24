package forwarder

import (
	"bytes"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// shapedRig is a rig whose time stands still until wait moves it.
type shapedRig struct {
	*rig
	now time.Time
}

func newShapedRig(t testing.TB, s Settings) *shapedRig {
	r := &shapedRig{rig: newRig(t, s)}
	r.now = r.f.started
	r.f.env.now = func() time.Time { return r.now }
	return r
}

func (r *shapedRig) wait(d time.Duration) {
	r.now = r.now.Add(d)
	r.turn()
}

func (r *rig) bounded(kind, name string, b Bandwidth, addrs ...netip.Addr) *ring.FakeQueue {
	r.t.Helper()
	spec := PortSpec{Container: name, Interface: "eth0", Attach: kind, Device: name, Addresses: addrs, Bandwidth: b}
	if kind == AttachVeth {
		spec.MAC = macA1.String()
	}
	if _, err := r.f.Attach(spec); err != nil {
		r.t.Fatal(err)
	}
	return r.pods[name]
}

func addr4(s string) netip.Addr { return netip.MustParseAddr(s) }

// counted is a datagram of n bytes with its IP header, which carries its number.
func counted(src, dst netip.Addr, number, n int) []byte {
	return udpPacket(src, dst, 7, uint16(number), n-28)
}

func numbersOf(t testing.TB, ips ...[]byte) (ns []int) {
	for _, ip := range ips {
		ns = append(ns, int(parse(t, ip).DstPort))
		for i, b := range ip[28:] {
			if b != byte(i) {
				t.Fatalf("byte %d of number %d is %d", i, ns[len(ns)-1], b)
			}
		}
	}
	return ns
}

func upTo(from, to int) (ns []int) {
	for i := from; i < to; i++ {
		ns = append(ns, i)
	}
	return ns
}

// TestShapedFromPod: a pod is read at its rate, in order, nothing lost; while
// its bucket is shut its port is not waited for.
func TestShapedFromPod(t *testing.T) {
	for _, kind := range []string{AttachVeth, AttachTUN} {
		t.Run(kind, func(t *testing.T) {
			r := newShapedRig(t, testSettings(encap.KindUDP))
			pod := r.bounded(kind, "a1", Bandwidth{EgressRate: 8e6}, podA1) // 1000 bytes a ms; 10,000 at once
			for i := range 100 {
				p := fromPod(counted(podA1, podB, i, 1000))
				if kind == AttachTUN {
					p.Data = p.Data[14:]
				}
				pod.Inject(p)
			}
			sent := 0
			expect := func(n int) {
				t.Helper()
				if got := numbersOf(t, inner(t, encap.KindUDP, datagrams(t, r.sends()))...); !slices.Equal(got, upTo(sent, sent+n)) {
					t.Fatalf("sent %v, want %d from %d on", got, n, sent)
				}
				sent += n
			}
			waited := func() bool {
				var e [4]ring.Event
				n, _ := r.f.workers[0].poller.Wait(e[:], 0)
				return n > 0
			}
			if !waited() {
				t.Error("the port is not waited for")
			}
			r.turn()
			expect(10)
			if waited() {
				t.Error("the port is waited for although its bucket is shut")
			}
			r.wait(time.Microsecond)
			expect(1) // in debt
			r.wait(900 * time.Microsecond)
			expect(0)
			for range 3 {
				r.wait(5 * time.Millisecond)
				expect(5)
			}
			r.wait(time.Minute)
			expect(10)
			for sent < 100 {
				r.wait(time.Millisecond)
				expect(1)
			}
			r.wait(time.Second)
			expect(0)
			if pod.Inject(ring.FakePacket{Data: []byte{1}}); !waited() {
				t.Error("the port is not waited for any more")
			}
			r.turn()
			r.check(map[Reason]uint64{DropShort: 1})
		})
	}
}

// TestShapedFromPodSuperframe: a superframe passes whole whatever the burst, and
// is paid for afterwards with the headers of its segments.
func TestShapedFromPodSuperframe(t *testing.T) {
	r := newShapedRig(t, testSettings(encap.KindUDP))
	pod := r.bounded(AttachVeth, "a1", Bandwidth{EgressRate: 8e6}, podA1)
	ip := tcpPacket(podA1, podB, 1, 50_000)
	for range 2 {
		pod.Inject(fromVeth(ip, partial(ip, 1000)))
	}
	r.turn()
	bytes := 0
	for _, d := range datagrams(t, r.sends()) {
		bytes += len(d)
	}
	if bytes != 50*1040 {
		t.Fatalf("sent %d bytes", bytes)
	}
	r.wait(41_999 * time.Microsecond) // 52,000 less 10,000 that the bucket held, and one bit
	if n := len(r.sends()); n != 0 {
		t.Error("too early")
	}
	r.wait(2 * time.Microsecond)
	if n := len(r.sends()); n == 0 {
		t.Error("too late")
	}
	r.check(nil)
}

// TestShapedToPod: what a pod receives comes at its rate, in order and as it was
// sent; 25 ms of it wait, the rest is drop shaped.
func TestShapedToPod(t *testing.T) {
	for _, kind := range []string{AttachVeth, AttachTUN} {
		t.Run(kind, func(t *testing.T) {
			s := testSettings(encap.KindUDP)
			s.Offload.MergeWrites = false
			r := newShapedRig(t, s)
			pod := r.bounded(kind, "a1", Bandwidth{IngressRate: 8e6}, podA1)
			link := 0
			if kind == AttachVeth {
				link = 14
			}
			got := func(want []int) {
				t.Helper()
				var ips [][]byte
				for _, p := range pod.Sent() {
					ips = append(ips, p.Data[link:])
				}
				if ns := numbersOf(t, ips...); !slices.Equal(ns, want) {
					t.Fatalf("got %v, want %v", ns, want)
				}
			}
			for i := range 50 {
				r.receive(encap.KindUDP, 0, counted(podB, podA1, i, 1000))
			}
			r.turn()
			got(upTo(0, 10)) // then 25 wait, 15 are too many
			r.check2(25, map[Reason]uint64{DropShaped: 15})
			r.wait(time.Millisecond + time.Microsecond)
			got([]int{10, 11})
			r.receive(encap.KindUDP, 0, counted(podB, podA1, 99, 1000)) // does not overtake
			r.turn()
			got(nil)
			r.wait(10 * time.Millisecond)
			got(upTo(12, 22))
			r.wait(10 * time.Millisecond)
			got(upTo(22, 32))
			r.wait(10 * time.Millisecond)
			got([]int{32, 33, 34, 99})
			r.check(map[Reason]uint64{DropShaped: 15})
			// Straight through again, and a hole in time is worth no more than the burst.
			r.wait(time.Hour)
			for i := range 12 {
				r.receive(encap.KindUDP, 0, counted(podB, podA1, i, 1000))
			}
			r.turn()
			got(upTo(0, 10))
			r.wait(time.Second)
			got([]int{10, 11})
			r.check(map[Reason]uint64{DropShaped: 15})
			if c := r.f.Counters().Ports[0]; c.Got.Packets != 35+12+1 || c.Dropped != 15 {
				t.Errorf("%+v", c)
			}
			if len(r.f.workers[0].alarms) != 0 {
				t.Error("an alarm is left")
			}
		})
	}
}

// check2 is check while frames wait in queues.
func (r *rig) check2(waiting uint64, drops map[Reason]uint64) {
	r.t.Helper()
	c := r.f.Counters()
	in, out := balance(c)
	for reason, v := range c.Dropped {
		for want, k := range drops {
			if want.String() == reason && k != v {
				r.t.Errorf("dropped as %s: %d, want %d", reason, v, k)
			}
		}
	}
	if in != out+waiting {
		r.t.Errorf("%d frames are nowhere, want %d in the queue", int64(in-out), waiting)
	}
}

// TestShapedSuperframe: a superframe waits whole, with its metadata; a port for
// which it is too long gets packets instead.
func TestShapedSuperframe(t *testing.T) {
	r := newShapedRig(t, testSettings(encap.KindUDP))
	from, pod := r.veth("a2", podA2), r.bounded(AttachVeth, "a1", Bandwidth{IngressRate: 30e6}, podA1)
	ip := tcpPacket(podA2, podA1, 1, 50_000) // 52,000 bytes in segments
	for range 4 {
		from.Inject(fromVeth(ip, partial(ip, 1000)))
	}
	r.turn() // one passes, two wait, the fourth finds more than 25 ms
	first := pod.Sent()
	r.check2(2, map[Reason]uint64{DropShaped: 1})
	r.wait(3800 * time.Microsecond)
	if n := len(pod.Sent()); n != 0 || len(first) != 1 {
		t.Fatalf("%d, then %d too early", len(first), n)
	}
	r.wait(100 * time.Microsecond)
	second := pod.Sent()
	if len(second) != 1 || first[0].Virtio != second[0].Virtio || !bytes.Equal(first[0].Data, second[0].Data) || second[0].Virtio.GSOSize != 1000 {
		t.Errorf("the one that waited differs: %d, %+v", len(second), second[0].Virtio)
	}
	r.wait(time.Second)
	r.check(map[Reason]uint64{DropShaped: 1})

	slow := r.bounded(AttachVeth, "a4", Bandwidth{IngressRate: 20e6}, addr4("10.244.1.9"))
	ip = tcpPacket(podA2, addr4("10.244.1.9"), 1, 50_000)
	from.Inject(fromVeth(ip, partial(ip, 1000)))
	for range 50 {
		r.wait(time.Millisecond)
	}
	packets := slow.Sent()
	for _, p := range packets {
		decode(t, p.Data[14:]) // verifies checksums
		if p.Virtio != (ring.Virtio{}) || len(p.Data) != 14+1040 {
			t.Errorf("%d bytes, %+v", len(p.Data), p.Virtio)
		}
	}
	if len(packets) != 50 {
		t.Errorf("%d packets", len(packets))
	}
	r.check(map[Reason]uint64{DropShaped: 1})
}

// TestShapedDetach: what waits for a pod that goes is dropped, and counted once,
// on whichever worker; the slot serves the next pod, which has no alarm of the old.
func TestShapedDetach(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.Workers = 3
	s.Offload.MergeWrites = false
	r := newShapedRig(t, s)
	r.bounded(AttachTUN, "a1", Bandwidth{IngressRate: 8e6, EgressRate: 8e3}, podA1)
	pod := r.pods["a1"]
	for w := range 3 {
		for i := range 12 {
			r.udp[w].Inject(ring.FakeDatagram{Data: counted(podB, podA1, i, 1000), Addr: netip.AddrPortFrom(nodeB, 8285)})
		}
	}
	pod.Inject(ring.FakePacket{Data: counted(podA1, podB, 0, 1000)}, ring.FakePacket{Data: counted(podA1, podB, 1, 1000)})
	r.turn()
	r.check2(25, map[Reason]uint64{DropShaped: 1})
	if err := r.f.Detach("a1", "eth0"); err != nil {
		t.Fatal(err)
	}
	r.check(map[Reason]uint64{DropShaped: 1, DropPortDown: 25})
	for _, w := range r.f.workers {
		if len(w.alarms) != 0 {
			t.Errorf("worker %d has %d alarms", w.index, len(w.alarms))
		}
	}
	next := r.attach(AttachTUN, "a3", podA1)
	r.wait(time.Minute)
	r.receive(encap.KindUDP, 0, counted(podB, podA1, 1, 1000))
	r.turn()
	if n := len(next.Sent()); n != 1 {
		t.Errorf("the next pod got %d", n)
	}
	r.check(map[Reason]uint64{DropShaped: 1, DropPortDown: 25})
}

// TestShapedStop: the law holds to the end.
func TestShapedStop(t *testing.T) {
	r := newShapedRig(t, testSettings(encap.KindUDP))
	r.bounded(AttachTUN, "a1", Bandwidth{IngressRate: 8}, podA1)
	for i := range 14 {
		r.receive(encap.KindUDP, 0, counted(podB, podA1, i, 1000))
	}
	r.turn()
	r.f.Start()
	if err := r.f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.check(map[Reason]uint64{DropPortDown: 12, DropShaped: 1})
}

// TestShapedPieces: a superframe that is cut for the pod ends once, whichever of
// its pieces is lost, in the queue or on the way out of it.
func TestShapedPieces(t *testing.T) {
	for name, c := range map[string]struct {
		rate  uint64
		fail  int // which write fails; -1: none
		after time.Duration
		drops map[Reason]uint64
	}{
		"none lost":          {8e6, -1, time.Second, nil},
		"one fails at once":  {8e6, 3, time.Second, map[Reason]uint64{DropPortFull: 1}},
		"one fails later":    {8e6, 15, time.Second, map[Reason]uint64{DropPortFull: 1}},
		"the last fails":     {8e6, 19, time.Second, map[Reason]uint64{DropPortFull: 1}},
		"no room for some":   {2e6, -1, time.Second, map[Reason]uint64{DropShaped: 1}},
		"no room, one fails": {2e6, 4, time.Second, map[Reason]uint64{DropShaped: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s := testSettings(encap.KindUDP)
			s.Offload.TUNOffload = false
			r := newShapedRig(t, s)
			from, pod := r.veth("a2", podA2), r.bounded(AttachTUN, "a1", Bandwidth{IngressRate: c.rate}, podA1)
			ip := tcpPacket(podA2, podA1, 1, 20_000)
			if c.fail >= 0 {
				pod.Fail(c.fail, syscall.ENOBUFS)
			}
			from.Inject(fromVeth(ip, partial(ip, 1000)))
			r.turn()
			r.wait(c.after)
			r.check(c.drops)
			from.Inject(fromVeth(udpPacket(podA2, podA1, 1, 2, 3), ring.Virtio{}))
			for range 10 {
				r.wait(c.after)
			}
			r.check(c.drops) // the next is whole
		})
	}
}

// TestAlarms: the earliest comes first, whatever was set, taken and forgotten.
func TestAlarms(t *testing.T) {
	ports := []*port{{}, {}, {}, {}}
	rapid.Check(t, func(t *rapid.T) {
		var a alarms
		var model []alarm
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			default:
				x := alarm{due: rapid.Int64Range(0, 50).Draw(t, "due"), port: rapid.SampledFrom(ports).Draw(t, "port")}
				a.set(x)
				model = append(model, x)
			case 1, 2:
				if len(model) == 0 {
					continue
				}
				x := a.take()
				i := slices.Index(model, x)
				for _, m := range model {
					if i < 0 || m.due < x.due {
						t.Fatalf("%d came before %d", x.due, m.due)
					}
				}
				model = slices.Delete(model, i, i+1)
			case 0:
				p := rapid.SampledFrom(ports).Draw(t, "port")
				a.forget(p)
				model = slices.DeleteFunc(model, func(x alarm) bool { return x.port == p })
			}
			if len(a) != len(model) {
				t.Fatalf("%d alarms, want %d", len(a), len(model))
			}
		}
	})
}
