package forwarder

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/hostflow"
	"github.com/penstock-net/penstock/ring"
)

// service is what a host has made of a pod's packet to a service address: the
// pod (flow's first address) asks a backend through penstock0.
func service(r *rig, ips ...[]byte) {
	for _, ip := range ips {
		r.hosts[0].Inject(ring.FakePacket{Data: ip})
	}
	r.turn()
}

// TestWayBack: the answers to what the host has translated go to the host, from
// the wire and from a pod of this node; everything else goes to the pod.
func TestWayBack(t *testing.T) {
	for family, a := range families {
		for _, from := range []string{"wire", "pod"} {
			for _, proto := range []string{"udp", "tcp"} {
				t.Run(fmt.Sprint(family, from, proto), func(t *testing.T) {
					r := newRig(t, testSettings(encap.KindVXLAN))
					r.f.TrackFlows()
					sink := r.f.HostFlows()
					client := r.attach(AttachTUN, "a1", podA1, podA1v6)
					backend := a.b
					var local *ring.FakeQueue
					if from == "pod" {
						if backend = podA2; family == "v6" {
							backend = podA2v6
						}
						local = r.attach(AttachTUN, "a2", backend)
					}
					packet := func(src, dst netip.Addr, sport, dport uint16) []byte {
						if proto == "udp" {
							return udpPacket(src, dst, sport, dport, 30)
						}
						b := tcpPacket(src, dst, 1, 30)
						l4 := len(b) - 50
						binary.BigEndian.PutUint16(b[l4:], sport)
						binary.BigEndian.PutUint16(b[l4+2:], dport)
						binary.BigEndian.PutUint16(b[l4+16:], 0)
						partial(b, 0)
						binary.BigEndian.PutUint16(b[l4+16:], ^slowSum(b[l4:]))
						return b
					}
					answer := func(sport, dport uint16) {
						if from == "wire" {
							r.receive(encap.KindVXLAN, 0, packet(backend, a.a, sport, dport))
						} else {
							local.Inject(ring.FakePacket{Data: packet(backend, a.a, sport, dport)})
						}
						r.turn()
					}
					count := func() [2]int { return [2]int{len(client.Sent()), len(r.hosts[0].Sent())} }

					answer(8080, 40001)
					if got := count(); got != [2]int{1, 0} {
						t.Fatalf("before: to pod and host %d", got)
					}
					service(r, packet(a.a, backend, 40001, 8080))
					r.sends()
					if local != nil {
						local.Sent()
					}
					answer(8080, 40001)
					if got := count(); got != [2]int{0, 1} {
						t.Errorf("its answer: to pod and host %d", got)
					}
					answer(8080, 40002) // another flow
					answer(8081, 40001)
					if got := count(); got != [2]int{2, 0} {
						t.Errorf("other flows: to pod and host %d", got)
					}
					n := uint8(encap.ProtoUDP)
					if proto == "tcp" {
						n = encap.ProtoTCP
					}
					k := hostflow.Tuple{Proto: n, Src: backend, Dst: a.a, SrcPort: 8080, DstPort: 40001}
					if !sink.Has(k) {
						t.Error("Has does not know it")
					}
					var known []hostflow.Tuple
					sink.Known(func(k hostflow.Tuple) bool { known = append(known, k); return true })
					if len(known) != 1 || known[0] != k {
						t.Errorf("known %+v", known)
					}
					sink.Forget(k)
					answer(8080, 40001)
					if got := count(); got != [2]int{1, 0} || sink.Has(k) {
						t.Errorf("forgotten: to pod and host %d", got)
					}
					r.check(nil)
				})
			}
		}
	}
}

// TestWayBackTwice: a flow that is seen twice is forgotten at once, and one that
// comes from the host with another source than a local pod's is not remembered.
func TestWayBackTwice(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.Workers = 2
	r := newRig(t, s)
	r.attach(AttachTUN, "a1", podA1)
	ip := udpPacket(podA1, podB, 1, 2, 3)
	service(r, ip, ip, udpPacket(podA1, podB, 1, 2, 3))
	if n := r.f.flows.size(); n != 0 {
		t.Errorf("%d flows remembered without conntrack", n)
	}
	r.f.TrackFlows()
	sink := r.f.HostFlows()
	r.hosts[1].Inject(ring.FakePacket{Data: ip})
	service(r, ip, ip, udpPacket(hostAddr, podB, 1, 2, 3), udpPacket(hostAddr, podA1, 1, 2, 3))
	if n := r.f.flows.size(); n != 1 {
		t.Errorf("%d flows remembered", n)
	}
	sink.Forget(hostflow.Tuple{Proto: 17, Src: podB, Dst: podA1, SrcPort: 2, DstPort: 1})
	if n := r.f.flows.size(); n != 0 {
		t.Errorf("%d flows left", n)
	}
	for i := range r.f.flows.tables {
		table := r.f.flows.table(i)
		for i := range table.pairs {
			if table.pairs[i].Load() != 0 {
				t.Error("a pair is left")
			}
		}
	}
}

// TestWayBackFragments: fragments of an answer carry no ports all of them, so
// all go by the pair of addresses.
func TestWayBackFragments(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	r.f.TrackFlows()
	sink := r.f.HostFlows()
	pod := r.attach(AttachTUN, "a1", podA1)
	question := udpPacket(podA1, podB, 40001, 8080, 2000, mayFragment)
	service(r, fragmentOf(question, 0, 1200), fragmentOf(question, 1200, 808))
	k := hostflow.Tuple{Proto: 17, Src: podB, Dst: podA1, SrcPort: 8080, DstPort: 40001}
	if !sink.Has(k) || r.f.flows.size() != 1 {
		t.Fatal("the first fragment is not remembered with its ports, alone")
	}
	whole := udpPacket(podB, podA1, 8080, 40001, 2000, mayFragment)
	r.receive(encap.KindUDP, 0, fragmentOf(whole, 0, 1200), fragmentOf(whole, 1200, 808))
	other := raw4(podB, podA1, 132, make([]byte, 2000), mayFragment)
	r.receive(encap.KindUDP, 0, fragmentOf(other, 0, 1200))
	r.turn()
	if h, p := len(r.hosts[0].Sent()), len(pod.Sent()); h != 2 || p != 1 {
		t.Errorf("%d fragments to the host, %d to the pod", h, p)
	}
	sink.Forget(k)
	r.receive(encap.KindUDP, 0, fragmentOf(whole, 0, 1200), fragmentOf(whole, 1200, 808))
	r.turn()
	if h, p := len(r.hosts[0].Sent()), len(pod.Sent()); h != 0 || p != 2 {
		t.Errorf("forgotten: %d fragments to the host, %d to the pod", h, p)
	}
	r.check(nil)
}

// TestWayBackErrors: an ICMP error about a translated packet has the
// translated addresses inside: the host must see it first. Our own as well.
func TestWayBackErrors(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	r.f.TrackFlows()
	pod := r.attach(AttachTUN, "a1", podA1, podA1v6)
	q4, q6 := udpPacket(podA1, podB, 40001, 8080, 64), udpPacket(podA1v6, podBv6, 40001, 8080, 64)
	service(r, q4, q6)
	unreachable := func(quote []byte) []byte {
		m := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, quote[:28]...)
		c := ^slowSum(m)
		m[2], m[3] = byte(c>>8), byte(c)
		return raw4(podB, podA1, 1, m)
	}
	r.receive(encap.KindUDP, 0, unreachable(q4), icmp6(podBv6, podA1v6, 64, append([]byte{1, 4, 0, 0, 0, 0, 0, 0}, q6...)),
		unreachable(udpPacket(podA1, podB, 40002, 8080, 64)))
	r.turn()
	if h, p := len(r.hosts[0].Sent()), len(pod.Sent()); h != 2 || p != 1 {
		t.Errorf("%d errors to the host, %d to the pod", h, p)
	}
	// What the host sends on in the pod's name and we refuse.
	service(r, udpPacket(podA1, netip.MustParseAddr("10.244.9.9"), 40001, 8080, 64))
	if h, p := len(r.hosts[0].Sent()), len(pod.Sent()); h != 1 || p != 0 {
		t.Errorf("our own error: %d to the host, %d to the pod", h, p)
	}
}

// TestFlowsFull: a full set is a drop with its own name; forgetting makes room.
func TestFlowsFull(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	r.f.TrackFlows()
	sink := r.f.HostFlows()
	r.attach(AttachTUN, "a1", podA1)
	// Fill every way of every set for this worker's table.
	for i := range r.f.flows.table(0).flows {
		r.f.flows.table(0).flows[i].Store(uint64(i) | 1<<63)
	}
	service(r, udpPacket(podA1, podB, 1, 2, 3))
	r.check(map[Reason]uint64{DropFlowsFull: 1})
	for i := range r.f.flows.table(0).flows {
		r.f.flows.table(0).flows[i].Store(0)
	}
	// The same with the address pairs: the flow must not stay behind.
	for i := range r.f.flows.table(0).pairs {
		r.f.flows.table(0).pairs[i].Store(1<<62 | 1)
	}
	service(r, udpPacket(podA1, podB, 1, 2, 3))
	r.check(map[Reason]uint64{DropFlowsFull: 2})
	if sink.Has(hostflow.Tuple{Proto: 17, Src: podB, Dst: podA1, SrcPort: 2, DstPort: 1}) {
		t.Error("remembered all the same")
	}
}

// TestPreload: flows from before the daemon's start.
func TestPreload(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	r.f.TrackFlows()
	sink := r.f.HostFlows()
	before := r.attach(AttachTUN, "a1", podA1)
	k := func(dst netip.Addr) hostflow.Tuple {
		return hostflow.Tuple{Proto: 17, Src: podB, Dst: dst, SrcPort: 8080, DstPort: 40001}
	}
	for _, dst := range []netip.Addr{podA1, podA2, outsideAddr, podB, hostAddr} {
		sink.Preload(k(dst))
	}
	if !sink.Has(k(podA1)) || !sink.Has(k(podA2)) || sink.Has(k(outsideAddr)) || sink.Has(k(podB)) || sink.Has(k(hostAddr)) {
		t.Error("not exactly the flows of our own pods are remembered")
	}
	after := r.attach(AttachTUN, "a2", podA2) // a pod that is attached again
	r.receive(encap.KindUDP, 0, udpPacket(podB, podA1, 8080, 40001, 3), udpPacket(podB, podA2, 8080, 40001, 3))
	r.turn()
	if len(before.Sent())+len(after.Sent()) != 0 || len(r.hosts[0].Sent()) != 2 {
		t.Error("an answer did not go to the host")
	}
	r.check(nil)
}

// TestFlowsShared: a pod that opens flows without end, to one address or to ever new ones, is stopped before it takes the room
// of others, and what it had is free again when its flows are forgotten.
func TestFlowsShared(t *testing.T) {
	for _, c := range []struct{ pods, refused int }{{1, 5}, {3, 100}} { // a set of eight words may be full by chance
		for name, spread := range map[string]bool{"one address": false, "many addresses": true} {
			t.Run(fmt.Sprintf("%d pods, %s", c.pods, name), func(t *testing.T) { testFlowsShared(t, c.pods, c.refused, spread) })
		}
	}
}

func testFlowsShared(t *testing.T, pods, allowed int, spread bool) {
	const workers = 2
	m := newFlowMemory(workers)
	key := func(pod, i int) flowKey {
		k := flowKey{Proto: 6, Src: podB, Dst: netip.AddrFrom4([4]byte{10, 244, 1, byte(pod)}), SrcPort: uint16(i >> 16), DstPort: uint16(i)}
		if spread {
			k.Src = netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		}
		return k
	}
	add := func(pod, i int) bool {
		k := key(pod, i)
		return m.add(i%workers, &k)
	}
	greedy := make([][]int, pods)
	for pod := range greedy {
		for i := range 60_000 {
			if add(pod, i) {
				greedy[pod] = append(greedy[pod], i)
			}
		}
	}
	capacity := workers * flowsATable
	if spread {
		capacity = workers * pairsATable
	}
	for pod, had := range greedy {
		if len(had) < capacity/12 || len(had) > capacity/4 {
			t.Errorf("greedy pod %d has %d of %d", pod, len(had), capacity)
		}
	}
	// A pod whose hash gives it the share of a greedy one gets what that leaves, which is little (flowshare.go).
	unlucky := func(pod int) bool {
		for g := range greedy {
			if m.shareOf(new(key(pod, 0))) == m.shareOf(new(key(g, 0))) {
				return true
			}
		}
		return false
	}
	refused, modest := 0, 0
	for pod := 10; modest < 50; pod++ {
		if unlucky(pod) {
			continue
		}
		modest++
		for i := range 20 {
			if !add(pod, i) {
				refused++
			}
		}
	}
	if refused > allowed {
		t.Errorf("%d of 1,000 flows of modest pods were refused", refused)
	}
	for pod, had := range greedy {
		for _, i := range had {
			k := key(pod, i)
			m.forget(&k)
		}
		if own := m.shareOf(new(key(pod, 0))); own.flows.Load() != 0 || own.pairs.Load() != 0 {
			t.Errorf("greedy pod %d holds %d flows and %d pairs after all were forgotten", pod, own.flows.Load(), own.pairs.Load())
		}
	}
}

// TestFlowsConcurrently: writers of their own tables, forgetters and readers at
// once; no tuple is ever torn, and what is left is exactly what was not forgotten.
func TestFlowsConcurrently(t *testing.T) {
	const workers, flows = 3, 3000
	m := newFlowMemory(workers)
	tuple := func(w, i int) flowKey {
		// Every field is made of the same number: a torn one shows.
		n := uint16(i)
		b := [4]byte{10, byte(w), byte(n >> 8), byte(n)}
		return flowKey{Proto: byte(n), Src: netip.AddrFrom4(b), Dst: netip.AddrFrom4([4]byte{10, 99, byte(n >> 8), byte(n)}), SrcPort: n, DstPort: n ^ 0xffff}
	}
	var wg, readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				m.known(func(k flowKey) bool {
					if w := int(k.Src.As4()[1]); k != tuple(w, int(k.SrcPort)) {
						t.Errorf("torn: %+v", k)
						return false
					}
					return true
				})
			}
		})
	}
	for w := range workers {
		added := make(chan int, 100)
		wg.Go(func() {
			for i := range flows {
				k := tuple(w, i)
				added <- i // forgotten as soon as it stands
				if !m.add(w, &k) {
					t.Errorf("no room for flow %d of %d", i, workers*flows)
				}
			}
			close(added)
		})
		wg.Go(func() {
			for i := range added {
				if i%3 != 0 {
					k := tuple(w, i)
					for flow, _ := flowHashes(m.seed, &k); !m.hasFlow(flow) && !t.Failed(); {
						runtime.Gosched()
					}
					m.forget(&k)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	for w := range workers {
		for i := range flows {
			k := tuple(w, i)
			flow, pair := flowHashes(m.seed, &k)
			if want := i%3 == 0; m.hasFlow(flow) != want || m.hasPair(pair) != want {
				t.Fatalf("flow %d of worker %d: known %t, pair %t", i, w, m.hasFlow(flow), m.hasPair(pair))
			}
		}
	}
	if n := m.size(); n != workers*flows/3 {
		t.Errorf("%d flows left", n)
	}
}
