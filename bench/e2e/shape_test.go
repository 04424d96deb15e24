package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// shapeBurst is how long a load runs before it is measured: the burst is gone after half a tenth of a second of a load that
// sends three times as much as it may, and a sender is slow to begin.
const shapeBurst = 200 * time.Millisecond

// shapeLoad is a way to send more than a bound allows.
type shapeLoad struct {
	name string
	size int // of a datagram; 0: TCP
	gso  bool
	most float64 // rates above it are not asked for: the senders do not get there on two shared cores
}

// TestShape: a pod with a bandwidth gets it, within a tenth, both ways, however it is attached and whatever it sends: TCP
// and datagrams, small ones, full ones and superframes. What is measured at the receiver is counted as IP packets. Nothing
// but what the bound does is dropped.
func TestShape(t *testing.T) {
	lab.Require(t)
	// In full with E2E_MATRIX=1.
	loads := []shapeLoad{{name: "tcp", most: 1e9}, {name: "udp 64", size: 64, most: 20e6}, {name: "udp 1400", size: 1400, most: 1e9}, {name: "udp superframes", size: 1400, gso: true, most: 1e9}}
	for _, attach := range []lab.Attach{lab.Veth, lab.TUN} {
		t.Run(string(attach), func(t *testing.T) {
			l := lab.New(t, lab.Config{})
			l.Start(t)
			pod, beside, far := l.Nodes[0].AddPod(t, attach), l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
			for _, rate := range []float64{10e6, 100e6, 1e9} {
				for _, way := range []string{"egress", "ingress"} {
					pod.Detach(t)
					bound := uint64(rate)
					pod.Bandwidth = &control.Bandwidth{EgressRate: bound, EgressBurst: bound / 10}
					if way == "ingress" {
						pod.Bandwidth = &control.Bandwidth{IngressRate: bound, IngressBurst: bound / 10}
					}
					pod.AttachAgain(t)
					for i, load := range loads {
						if !matrix() && load.size == 64 && way == "ingress" {
							continue
						}
						if rate > load.most || raced() && rate > 100e6 || i > 0 && !matrix() && (rate != 100e6 && load.size != 64 || testing.Short()) {
							continue
						}
						t.Run(fmt.Sprintf("%s %.0fM %s", way, rate/1e6, load.name), func(t *testing.T) {
							// From another node, and from a pod beside it: superframes that were never cut.
							for name, other := range map[string]*lab.Host{"far": &far.Host, "beside": &beside.Host} {
								if !matrix() && (name == "far") == load.gso {
									continue
								}
								from, to := &pod.Host, other
								if way == "ingress" {
									from, to = other, &pod.Host
								}
								got := load.bounded(t, from, to, pod.MTU, rate)
								if got > 1.1*rate {
									t.Errorf("%s: %.1f Mbit/s", name, got/1e6)
								}
								if got < 0.9*rate {
									if free := load.measure(t, &beside.Host, &far.Host, pod.MTU, rate, 2*time.Second); free < 2*rate {
										t.Skipf("this machine carries only %.1f Mbit/s of this load just now, without any bound", free/1e6)
									}
									t.Errorf("%s: %.1f Mbit/s", name, got/1e6)
								}
							}
						})
					}
				}
			}
			for _, n := range l.Nodes {
				m := n.Daemon.AssertConserved(t)
				t.Logf("%s drops %v, unread %.0f", n.Name, m.Dropped(), m.Sum("penstock_port_unread_packets_total"))
			}
		})
	}
}

// bounded measures until it is a tenth from the rate at most, eight times if need be. Others use the machine too: a sender, daemon
// or receiver that does not run when it should sends less, or finds what it had not read before the measurement began. So what
// misses in a second is measured for two.
func (c shapeLoad) bounded(t *testing.T, from, to *lab.Host, mtu int, rate float64) (got float64) {
	t.Helper()
	for try := 0; try < 8 && (got < 0.9*rate || got > 1.1*rate); try++ {
		long := 2 * time.Second
		if try == 0 && !matrix() {
			long = time.Second
		}
		got = c.measure(t, from, to, mtu, rate, long)
		t.Logf("%s → %s: %.1f Mbit/s, %+.1f %%", from.Name, to.Name, got/1e6, 100*(got/rate-1))
	}
	return got
}

// measure floods for a while and returns the bits of IP packets delivered a second. The burst, a tenth of a second's, goes before.
func (c shapeLoad) measure(t *testing.T, from, to *lab.Host, mtu int, rate float64, long time.Duration) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if c.size == 0 {
		r, err := lab.Measure(ctx, from, to, lab.Throughput{Duration: long})
		if err != nil {
			t.Error(err)
		}
		return r.Bits * float64(mtu) / float64(mtu-52) // IP and TCP headers, with time stamps
	}
	sink, err := to.ReceiveStream(0)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	s := lab.Stream{Sizes: []int{c.size}, Count: 1 << 40, Rate: int(3 * rate / 8 / float64(c.size+28)), Burst: 16}
	if c.gso {
		s.Segment, s.Burst = c.size, 0
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { from.SendStream(ctx, netip.AddrPortFrom(to.Addr(false), sink.Port()), s) })
	time.Sleep(shapeBurst)
	begin, before := time.Now(), sink.Counts()
	time.Sleep(long)
	after, took := sink.Counts(), time.Since(begin)
	stop()
	running.Wait()
	if after.Reordered+after.Duplicated+after.Corrupt+after.BadBorder+after.Strangers > 0 {
		t.Errorf("arrived as %+v", after)
	}
	sink.WaitFor(1<<62, 100*time.Millisecond) // the queue is empty for the next
	return float64(after.Received-before.Received) * 8 * float64(c.size+28) / took.Seconds()
}

// TestShapeBeside: a pod at its bound, both ways, does not take anything from the pod beside it, which has none.
func TestShapeBeside(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	a := l.Nodes[0]
	l.Start(t)
	bound, beside := a.AddPod(t, lab.Veth), a.AddPod(t, lab.Veth)
	far1, far2 := l.Nodes[1].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
	bound.Detach(t)
	const rate = 10e6
	bound.Bandwidth = &control.Bandwidth{EgressRate: rate, EgressBurst: rate, IngressRate: rate, IngressBurst: rate}
	bound.AttachAgain(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	measure := func() float64 {
		r, err := lab.Measure(ctx, &beside.Host, &far2.Host, lab.Throughput{})
		if err != nil {
			t.Error(err)
		}
		return r.Bits
	}
	best := 0.0
	for try := 0; try < 10 && best < 0.6; try++ { // others use the machine too
		alone := measure()
		load, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		for _, pair := range [][2]*lab.Host{{&bound.Host, &far1.Host}, {&far1.Host, &bound.Host}} {
			running.Go(func() { lab.Measure(load, pair[0], pair[1], lab.Throughput{Duration: time.Minute}) })
		}
		time.Sleep(300 * time.Millisecond)
		with := measure()
		before := a.Daemon.Metrics(t)
		for range 50 {
			if err := beside.Ping(far2.Addr(false)); err != nil {
				t.Error(err)
			}
		}
		drops := a.Daemon.Metrics(t).Sub(before)
		stop()
		running.Wait()
		best = max(best, with/alone)
		t.Logf("%.2f Gbit/s alone, %.2f beside the bounded pod; drops meanwhile %v", alone/1e9, with/1e9, drops.Dropped())
	}
	if best < 0.6 {
		t.Errorf("×%.2f of what it had alone", best)
	}
}
