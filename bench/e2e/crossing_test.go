package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestCrossing is the smallest proof that pod traffic crosses: each encapsulation, each way to attach a pod, both
// families, and afterwards every frame is accounted for.
func TestCrossing(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, c := range []struct {
		name string
		lab.Config
	}{
		{"udp", lab.Config{Encap: "udp"}},
		{"vxlan", lab.Config{Encap: "vxlan"}},
		{"ipip", lab.Config{Encap: "ipip"}},
		{"udp over IPv6", lab.Config{Encap: "udp", Outer6: true}},
		{"vxlan over IPv6", lab.Config{Encap: "vxlan", Outer6: true}},
		{"vxlan routed", lab.Config{Encap: "vxlan", Wiring: lab.Routed}},
		{"vxlan cut", lab.Config{Encap: "vxlan", Kind: lab.Cut}},
		{"vxlan tso", lab.Config{Encap: "vxlan", Kind: lab.TSO}},
		{"ipip cut", lab.Config{Encap: "ipip", Kind: lab.Cut}},
		{"udp cut", lab.Config{Encap: "udp", Kind: lab.Cut}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := lab.New(t, c.Config)
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			av, at := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)
			bv, bt := b.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN)
			hosts := []*lab.Host{&av.Host, &at.Host, &bv.Host, &bt.Host}
			for _, v6 := range []bool{false, true} {
				for _, from := range hosts {
					for _, to := range hosts {
						if from == to {
							continue
						}
						if err := from.Ping(to.Addr(v6)); err != nil {
							t.Error(err)
						}
					}
				}
				for _, n := range l.Nodes {
					for _, to := range hosts {
						if err := n.Ping(to.Addr(v6)); err != nil {
							t.Error(err)
						}
					}
				}
				for _, pair := range [][2]*lab.Host{{hosts[0], hosts[2]}, {hosts[1], hosts[3]}, {hosts[0], hosts[1]}, {hosts[1], hosts[2]}} {
					exchange(t, pair[0], pair[1], v6, av.MTU)
				}
			}
			for _, n := range l.Nodes {
				m := n.Daemon.AssertConserved(t)
				t.Logf("%s\n%s", n.Name, m.Account())
				n.Daemon.Stop(t)
			}
		})
	}
}

// exchange sends bulk both ways, and datagrams across every fragment border.
func exchange(t *testing.T, a, b *lab.Host, v6 bool, mtu int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := lab.TransferTCP(ctx, a, b, v6, 8<<20, 8<<20)
	if err != nil {
		t.Error(err)
		return
	}
	t.Logf("%s ↔ %s IPv6 %v: %.1f Gbit/s", a.Name, b.Name, v6, r.Rate()/1e9)
	echoes(t, a, b, v6, lab.FragmentBorders(mtu, v6, 20000))
	// Messages of sockets with UDP_SEGMENT keep their borders, flows their order.
	sink, err := b.ReceiveStream(0)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to, sent := netip.AddrPortFrom(b.Addr(v6), sink.Port()), 0
	for _, stream := range []lab.Stream{
		{Segment: 500, Count: 1500, Burst: 60, Sink: sink},
		{Segment: 1200, Count: 1500, Burst: 40, Sink: sink},
		{Sizes: []int{64, 570, 1300}, Count: 3000, Burst: 16, Flows: 4, Sink: sink},
	} {
		n, err := a.SendStream(ctx, to, stream)
		if err != nil {
			t.Error(err)
		}
		sent += n
	}
	if got := sink.WaitFor(sent, patience); !got.Perfect(sent) {
		t.Errorf("%d messages %s → %s IPv6 %v arrived as %+v", sent, a.Name, b.Name, v6, got)
	}
}
