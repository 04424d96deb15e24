package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/bench/load"
)

// podFlood is one pod that sends small datagrams to another as fast as a thread can.
type podFlood struct {
	from       *lab.Pod
	send, take *load.Agent
	begin, end load.Mark // of the receiver
}

func startPodFlood(t *testing.T, from, to *lab.Pod) *podFlood {
	t.Helper()
	f := &podFlood{from: from}
	var err error
	agent := func(p *lab.Pod) *load.Agent {
		a, err := load.StartAgent([]*lab.Pod{p})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		return a
	}
	f.take, f.send = agent(to), agent(from)
	ports, err := f.take.Start(load.Job{Kind: load.ReceiveDatagrams, Flows: []load.Flow{{At: netip.AddrPortFrom(to.IP4, 0)}}, Sizes: []int{64}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.send.Start(load.Job{Kind: load.SendDatagrams, Flows: []load.Flow{{At: netip.AddrPortFrom(to.IP4, ports[0])}}, Sizes: []int{64}}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *podFlood) mark(t *testing.T, m *load.Mark) {
	t.Helper()
	var err error
	if *m, err = f.take.Mark(); err != nil {
		t.Fatal(err)
	}
}

func (f *podFlood) delivered() float64 { return float64(f.end.Packets - f.begin.Packets) }

func (f *podFlood) stop(t *testing.T) {
	t.Helper()
	for _, a := range []*load.Agent{f.send, f.take} {
		if _, err := a.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestFairness: of two pods of one worker that flood, each has its share; and a modest pod beside a flooding one is read
// to the last datagram.
func TestFairness(t *testing.T) {
	lab.Require(t)
	for _, attach := range []lab.Attach{lab.Veth, lab.TUN} {
		t.Run(string(attach), func(t *testing.T) {
			l := lab.New(t, lab.Config{Nodes: 2, YAML: []string{"workers: 1"}})
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			var from, to []*lab.Pod
			for range 3 {
				from, to = append(from, a.AddPod(t, attach)), append(to, b.AddPod(t, attach))
			}
			for i := range from {
				if err := from[i].Ping(to[i].IP4); err != nil {
					t.Fatal(err)
				}
			}

			floods := []*podFlood{startPodFlood(t, from[0], to[0]), startPodFlood(t, from[1], to[1])}
			time.Sleep(300 * time.Millisecond)
			for _, f := range floods {
				f.mark(t, &f.begin)
			}
			time.Sleep(1500 * time.Millisecond)
			for _, f := range floods {
				f.mark(t, &f.end)
			}
			floods[1].stop(t)
			sum := floods[0].delivered() + floods[1].delivered()
			share := floods[0].delivered() / sum * 100
			t.Logf("%.0f datagrams in 1.5 s, shares %.0f : %.0f %%", sum, share, 100-share)
			if sum < 1000 || share < 20 || share > 80 {
				t.Errorf("of %.0f datagrams one pod has %.0f %%", sum, share)
			}

			// The first one goes on.
			const count = 1000
			modest := from[2]
			before := a.Daemon.Metrics(t)
			sink, err := to[2].ReceiveStream(0)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			n, err := modest.SendStream(within(t), netip.AddrPortFrom(to[2].IP4, sink.Port()), lab.Stream{Rate: 1000, Count: count})
			if err != nil || n != count {
				t.Fatalf("sent %d: %v", n, err)
			}
			got := sink.WaitFor(count, time.Second)
			floods[0].stop(t)
			m := a.Daemon.AtRest(t).Sub(before)
			of := func(name string, labels ...string) int {
				return int(m.Sum(name, append([]string{"container", modest.Container}, labels...)...))
			}
			t.Logf("of %d datagrams of the modest pod %d were delivered", count, got.Received)
			if read, unread, dropped := of("penstock_port_packets_total", "way", "received"), of("penstock_port_unread_packets_total"), of("penstock_port_dropped_packets_total"); read < count || unread+dropped > 0 {
				t.Errorf("of the modest pod's %d datagrams %d were read, %d found its ring full, %d were dropped", count, read, unread, dropped)
			}
			if got.Received < count/2 {
				t.Errorf("of %d datagrams %d were delivered", count, got.Received)
			}
			conserved(t, l)
		})
	}
}
