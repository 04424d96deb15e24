package forwarder

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestHostQueues: what goes to the host goes to one queue a flow, the same for
// both directions and for all workers, and fragments of a packet stay together.
func TestHostQueues(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.Workers = 4
	r := newRig(t, s)
	pod := r.attach(AttachTUN, "a1", podA1)
	queueOf := func() int {
		t.Helper()
		at := -1
		for i, h := range r.hosts {
			if n := len(h.Sent()); n > 0 {
				if at >= 0 {
					t.Error("one flow on two queues")
				}
				at = i
			}
		}
		return at
	}
	used := map[int]bool{}
	for port := range uint16(64) {
		for range 2 {
			pod.Inject(ring.FakePacket{Data: udpPacket(podA1, outsideAddr, 1000+port, 443, 10)})
		}
		r.turn()
		used[queueOf()] = true
	}
	if len(used) != 4 || used[-1] {
		t.Errorf("queues used: %v", used)
	}
	// From the wire, whichever worker's socket it comes by.
	for port := range uint16(20) {
		var seen []int
		for w := range r.udp {
			r.udp[w].Inject(ring.FakeDatagram{Data: udpPacket(podB, hostAddr, 1000+port, 443, 10), Addr: netip.AddrPortFrom(nodeB, 8285)})
			r.turn()
			seen = append(seen, queueOf())
		}
		if slices.Min(seen) != slices.Max(seen) {
			t.Errorf("queues %v for one flow", seen)
		}
	}
	whole := udpPacket(podA1, outsideAddr, 1, 2, 2000, mayFragment)
	pod.Inject(ring.FakePacket{Data: fragmentOf(whole, 0, 1200)}, ring.FakePacket{Data: fragmentOf(whole, 1200, 808)})
	r.turn()
	queueOf()
	r.check(nil)
}

// TestWorkersShareOut: pods are read by the worker that has the fewest, and any
// worker writes to any pod.
func TestWorkersShareOut(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.Workers = 3
	r := newRig(t, s)
	load := map[int]int{}
	var pods []*ring.FakeQueue
	for i := range 6 {
		a := netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)})
		pods = append(pods, r.attach(AttachTUN, fmt.Sprint("p", i), a))
	}
	for _, p := range r.f.Ports() {
		load[p.Worker]++
	}
	if load[0] != 2 || load[1] != 2 || load[2] != 2 {
		t.Errorf("pods by worker: %v", load)
	}
	for i, from := range pods {
		for j := range pods {
			if i != j {
				from.Inject(ring.FakePacket{Data: udpPacket(netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)}), netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + j)}), 1, 2, 3)})
			}
		}
	}
	r.turn()
	for i, p := range pods {
		if n := len(p.Sent()); n != 5 {
			t.Errorf("pod %d got %d", i, n)
		}
	}
	r.check(nil)
}

// TestMACLearning: a pod without a known MAC is written to by broadcast, then by
// what it sends from; groups and spoofers teach nothing.
func TestMACLearning(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	if _, err := r.f.Attach(PortSpec{Container: "a1", Interface: "eth0", Attach: AttachVeth, Device: "a1", Addresses: addrs(podA1, podA1v6)}); err != nil {
		t.Fatal(err)
	}
	pod := r.pods["a1"]
	pod.Sent() // the question for its MAC, see TestUnknownMAC
	to := func() encap.MAC {
		t.Helper()
		r.receive(encap.KindUDP, 0, udpPacket(podB, podA1, 1, 2, 3), udpPacket(podBv6, podA1v6, 1, 2, 3))
		r.turn()
		got := pod.Sent()
		if len(got) != 2 || !bytes.Equal(got[0].Data[:12], got[1].Data[:12]) {
			t.Fatalf("%d frames, or to different MACs", len(got))
		}
		return encap.MAC(got[0].Data[:6])
	}
	from := func(mac encap.MAC, ip []byte) {
		f := fromPod(ip)
		copy(f.Data[6:12], mac[:])
		pod.Inject(f)
		r.turn()
	}
	if m := to(); m != (encap.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("not heard yet: %s", m)
	}
	m1, m2 := encap.MAC{2, 1, 1, 1, 1, 1}, encap.MAC{2, 2, 2, 2, 2, 2}
	from(m1, udpPacket(podA1, podB, 1, 2, 3))
	if m := to(); m != m1 {
		t.Errorf("learned %s", m)
	}
	from(m2, udpPacket(podA1v6, podBv6, 1, 2, 3))
	if m := to(); m != m2 || r.f.Ports()[0].MAC != m2.String() {
		t.Errorf("learned %s, shown %s", m, r.f.Ports()[0].MAC)
	}
	from(encap.MAC{3, 3, 3, 3, 3, 3}, udpPacket(podA1, podB, 1, 2, 3))
	from(encap.MAC{}, udpPacket(podA1, podB, 1, 2, 3))
	from(m1, udpPacket(podA2, podB, 1, 2, 3))
	if m := to(); m != m2 {
		t.Errorf("learned %s from a group, from zeros or from a spoofer", m)
	}
	pod.Inject(ring.FakePacket{Data: arpRequest(podA1, Gateway4)}) // from macA1
	r.turn()
	pod.Sent()
	if m := to(); m != macA1 {
		t.Errorf("learned %s by ARP", m)
	}
}

// TestARP: a pod that asks for the gateway is answered, by a valid frame.
func TestARP(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.veth("a1", podA1)
	pod.Inject(ring.FakePacket{Data: arpRequest(podA1, Gateway4)}, ring.FakePacket{Data: append(arpRequest(netip.IPv4Unspecified(), Gateway4), make([]byte, 18)...)})
	r.turn()
	got := pod.Sent()
	if len(got) != 2 {
		t.Fatalf("%d answers", len(got))
	}
	for _, g := range got {
		p := gopacket.NewPacket(g.Data, layers.LayerTypeEthernet, gopacket.Default)
		eth, arp := p.LinkLayer().(*layers.Ethernet), p.Layer(layers.LayerTypeARP).(*layers.ARP)
		if encap.MAC(eth.DstMAC) != macA1 || encap.MAC(eth.SrcMAC) != GatewayMAC || arp.Operation != 2 ||
			!bytes.Equal(arp.SourceHwAddress, GatewayMAC[:]) || !bytes.Equal(arp.SourceProtAddress, Gateway4.AsSlice()) || g.Virtio != (ring.Virtio{}) {
			t.Errorf("answer %+v %+v", eth, arp)
		}
	}
	r.check(map[Reason]uint64{DropAnswered: 2})
	if n := r.f.Counters().Generated["arp"]; n != 2 {
		t.Errorf("generated %d", n)
	}
	// No answer fits a port that is full.
	pod.Fail(0, syscall.ENOBUFS)
	pod.Inject(ring.FakePacket{Data: arpRequest(podA1, Gateway4)})
	r.turn()
	r.check(map[Reason]uint64{DropAnswered: 3, DropPortFull: 1})
}

// TestND: the same in IPv6, whatever address the pod asks from.
func TestND(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.veth("a1", podA1v6)
	group := netip.MustParseAddr("ff02::1:ff00:1")
	ask := func(src, dst netip.Addr, hops uint8) ring.FakePacket {
		m := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, Gateway6.AsSlice()...)
		if !src.IsUnspecified() {
			m = append(append(m, 1, 1), macA1[:]...)
		}
		return fromPod(icmp6(src, dst, hops, m))
	}
	linkLocal := netip.MustParseAddr("fe80::5")
	pod.Inject(ask(podA1v6, group, 255), ask(linkLocal, Gateway6, 255), ask(linkLocal, group, 254))
	r.turn()
	got := pod.Sent()
	if len(got) != 2 {
		t.Fatalf("%d answers", len(got))
	}
	for i, want := range []netip.Addr{podA1v6, linkLocal} {
		o := decode(t, got[i].Data[14:])
		if _, dst := addresses(got[i].Data[14:]); dst != want || o.icmp6.TypeCode.Type() != 136 || o.ip6.HopLimit != 255 || encap.MAC(got[i].Data[:6]) != macA1 {
			t.Errorf("answer %d to %s: %+v", i, dst, o.icmp6)
		}
	}
	r.check(map[Reason]uint64{DropAnswered: 2, DropMulticast: 1})
	// A TUN has no neighbours.
	tun := r.attach(AttachTUN, "a2", podA2v6)
	tun.Inject(ring.FakePacket{Data: ask(podA2v6, group, 255).Data[14:]})
	r.turn()
	r.check(map[Reason]uint64{DropAnswered: 2, DropMulticast: 2})
}

// goneQueue is a port whose reads fail.
type goneQueue struct {
	*ring.FakeQueue
	err   error
	reads int
}

func (q *goneQueue) Read(s *ring.Slab, fs []ring.Frame) (int, error) {
	q.reads++
	return 0, q.err
}

// TestLostDevice: a device that has gone is not polled any more, one that is
// down is; writes to either are drops, and Detach works.
func TestLostDevice(t *testing.T) {
	for _, c := range []struct {
		err  error
		gone bool
	}{{syscall.ENODEV, true}, {syscall.EBADFD, true}, {syscall.EBADF, true}, {syscall.EIO, false}, {syscall.ENETDOWN, false}} {
		t.Run(c.err.Error(), func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindUDP))
			gone := &goneQueue{FakeQueue: ring.NewFakeQueue(), err: c.err}
			r.f.env.createTUN = func(ring.TUNConfig, bool) (ring.Port, ring.Offload, error) { return gone, 0, nil }
			if _, err := r.f.Attach(PortSpec{Container: "a1", Interface: "eth0", Attach: AttachTUN, Device: "a1", Addresses: addrs(podA1)}); err != nil {
				t.Fatal(err)
			}
			gone.Inject(ring.FakePacket{Data: []byte{1}})
			w, events := r.f.workers[0], make([]ring.Event, 8)
			for range 5 {
				n, err := w.poller.Wait(events, 0)
				if err != nil {
					t.Fatal(err)
				}
				for i := range events[:n] {
					w.serve(&events[i])
				}
			}
			if want := map[bool]int{true: 1, false: 5}[c.gone]; gone.reads != want {
				t.Errorf("read %d times, want %d", gone.reads, want)
			}
			gone.Fail(0, c.err)
			r.receive(encap.KindUDP, 0, udpPacket(podB, podA1, 1, 2, 3))
			r.turn()
			if c.err != syscall.EBADF {
				r.check(map[Reason]uint64{DropPortDown: 1})
			}
			if err := r.f.Detach("a1", "eth0"); err != nil {
				t.Error(err)
			}
			r.turn()
		})
	}
}

// TestDetach: what is on its way to a pod that goes ends by name, and its
// addresses are nobody's.
func TestDetach(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod, other := r.attach(AttachTUN, "a1", podA1, podA1v6), r.attach(AttachTUN, "a2", podA2)
	if err := r.f.Detach("a1", "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := r.f.Detach("a1", "eth0"); err != nil {
		t.Errorf("twice: %v", err)
	}
	other.Inject(ring.FakePacket{Data: udpPacket(podA2, podA1, 1, 2, 3)})
	r.receive(encap.KindUDP, 0, udpPacket(podB, podA1, 1, 2, 3), udpPacket(podBv6, podA1v6, 1, 2, 3))
	r.turn()
	r.check(map[Reason]uint64{DropNoPod: 3})
	if len(pod.Sent()) != 0 || len(r.f.Ports()) != 1 {
		t.Error("the pod is still there")
	}
	// A View from before, as a worker may still hold it.
	w := r.f.workers[0]
	w.begin()
	f := frame{mem: append(make([]byte, ring.Headroom), udpPacket(podB, podA1, 1, 2, 3)...), at: ring.Headroom}
	encap.Parse(f.ip(), &f.p)
	w.tally.received[Wire]++
	w.deliverMerged(&f, w.outboxes[0])
	w.flush()
	w.ledger.publish(&w.tally)
	r.check(map[Reason]uint64{DropNoPod: 3, DropPortDown: 1})
	// The slot serves the next pod.
	again := r.attach(AttachVeth, "a3", podA1)
	r.receive(encap.KindUDP, 0, udpPacket(podB, podA1, 1, 2, 3))
	r.turn()
	if n := len(again.Sent()); n != 1 {
		t.Errorf("the next pod got %d", n)
	}
	names := ""
	for _, d := range r.f.Descriptors() {
		names += d.Name + " "
	}
	if !strings.Contains(names, "pod/a3/eth0") || strings.Contains(names, "pod/a1/eth0") {
		t.Errorf("descriptors: %s", names)
	}
}
