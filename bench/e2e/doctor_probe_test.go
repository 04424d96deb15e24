package e2e

import (
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

func mustProbe(t *testing.T, n *lab.Node, peer string) control.Probe {
	t.Helper()
	start := time.Now()
	p, err := n.Daemon.Control().Probe(t.Context(), control.ProbeRequest{Peer: peer})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s asked %s for %v: %+v", n.Name, peer, time.Since(start).Round(time.Millisecond), p)
	return p
}

// TestDoctorProbes: real packets tell a peer that answers from one whose daemon is dead and one whose node is gone, and find the
// size that passes, whoever the peer is.
func TestDoctorProbes(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 3, Roles: []lab.Role{lab.Penstock, lab.Penstock, lab.KernelVXLAN}, Wiring: lab.Routed})
	l.Start(t)
	a, b, kernel := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	mtu := a.PodMTU()
	if p := mustProbe(t, a, b.Name); !p.Node || p.AnsweredBy != control.AnsweredByPenstock || p.MTU != mtu || p.Passes != mtu || p.Back != mtu || p.Clock < -1000 || p.Clock > 1000 {
		t.Errorf("a healthy peer: %+v", p)
	}
	if p := mustProbe(t, a, kernel.Underlay().String()); !p.Node || p.AnsweredBy != control.AnsweredByHost || p.Passes != mtu {
		t.Errorf("a kernel's vxlan device: %+v", p)
	}
	// A link in the middle that is smaller: the router says so, and what it said is believed for ten minutes.
	link, err := l.Fabric.Netlink().LinkByName("n1")
	if err != nil {
		t.Fatal(err)
	}
	for _, outer := range []int{1301} {
		if err := l.Fabric.Netlink().LinkSetMTU(link, outer); err != nil {
			t.Fatal(err)
		}
		if p := mustProbe(t, a, b.Name); p.AnsweredBy != control.AnsweredByPenstock || p.Passes != outer-50 {
			t.Errorf("a path of %d: %+v", outer, p)
		}
	}
	b.Daemon.Kill()
	if p := mustProbe(t, a, b.Name); !p.Node || p.AnsweredBy != "" || p.Refused {
		t.Errorf("a peer whose daemon is dead: %+v", p)
	}
	uplink, err := b.Netlink().LinkByName("eth0")
	if err == nil {
		err = b.Netlink().LinkSetDown(uplink)
	}
	if err != nil {
		t.Fatal(err)
	}
	if p := mustProbe(t, a, b.Name); p.Node || p.AnsweredBy != "" {
		t.Errorf("a peer that is gone: %+v", p)
	}
	a.Daemon.AssertConserved(t)
}

// TestDoctorBench: what one daemon sends the other counts, both directions at once.
func TestDoctorBench(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Start(t)
	for i, n := range l.Nodes {
		b, err := n.Daemon.Control().Bench(t.Context(), control.BenchRequest{Peer: l.Nodes[1-i].Name, Milliseconds: 1500})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %+v", n.Name, b)
		if b.Latency.Sent < 10 || b.Latency.Lost*10 > b.Latency.Sent || b.Latency.P50 <= 0 || b.Latency.P99 < b.Latency.P50 || b.Latency.Max < b.Latency.P99 {
			t.Errorf("latency %+v", b.Latency)
		}
		for _, f := range []control.BenchFlow{b.Datagrams, b.Bulk} {
			if f.Sent < 100 || f.Delivered > f.Sent || f.Delivered < f.Sent/2 || f.Seconds < 0.4 {
				t.Errorf("flow %+v", f)
			}
		}
		if b.Bulk.Size != n.PodMTU() || b.Bulk.BitsSecond < b.Datagrams.BitsSecond {
			t.Errorf("bulk %+v, small %+v", b.Bulk, b.Datagrams)
		}
	}
	if _, err := l.Nodes[0].Daemon.Control().Bench(t.Context(), control.BenchRequest{Peer: "nobody"}); control.CodeOf(err) != control.NotFound {
		t.Error(err)
	}
	conserved(t, l)
}
