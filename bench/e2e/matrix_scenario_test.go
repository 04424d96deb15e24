package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// coreCase is one combination of everything that must make no difference to what pods see.
type coreCase struct {
	name   string
	config lab.Config
	yaml   []string
	unused []string // capabilities that status must not call used
	used   []string // and those that it must, where the kernel has them
	still  []string // metrics that must stay 0
	moves  []string // and that must not
	swap   bool     // the families of the pairs of pods
	lossy  bool     // frames may find a pod's ring full, see persistently
}

// core is the scenario that every combination must pass: pods on a veth and on a TUN on each of two nodes ping each
// other and are pinged by the nodes, move bytes both ways by TCP, datagrams of many sizes and UDP_SEGMENT messages,
// and reach a Service whose backends are elsewhere; and every frame is accounted for.
//
//	node-a                      node-b
//	veth ──┬─ penstockd ═══ penstockd ─┬── veth
//	tun  ──┘                           └── tun
func core(t *testing.T, c coreCase) {
	l := lab.New(t, c.config)
	l.Start(t, c.yaml...)
	a, b := l.Nodes[0], l.Nodes[1]
	av, at := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)
	bv, bt := b.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN)
	for _, n := range l.Nodes {
		chosen(t, n.Daemon, c)
	}
	pods := []*lab.Pod{av, at, bv, bt}
	for _, v6 := range []bool{false, true} {
		for _, to := range pods {
			for _, from := range []*lab.Host{&av.Host, &at.Host, &bv.Host, &bt.Host, &a.Host, &b.Host} {
				if from == &to.Host {
					continue
				}
				if err := from.Ping(to.Addr(v6)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	if t.Failed() {
		return
	}
	mtu := min(av.MTU, bv.MTU)
	// Across the nodes each way of attachment meets each, half of them in each family; and within a node.
	for i, pair := range [][2]*lab.Pod{{av, bv}, {at, bt}, {av, bt}, {at, bv}, {av, at}, {bv, bt}} {
		coreTraffic(t, pair[0], pair[1], (i%2 == 1) != c.swap, mtu, c.lossy)
	}
	coreServices(t, a, []*lab.Pod{av, at}, []*lab.Pod{bv, bt, at}, c.lossy)
	var all lab.Metrics
	for _, n := range l.Nodes {
		all = append(all, n.Daemon.AssertConserved(t)...)
		n.Daemon.Stop(t)
	}
	for _, name := range append(slices.Clone(c.still), c.moves...) {
		if name == "penstock_send_runs_total" && c.config.Encap == "ipip" && slices.Contains(c.moves, name) {
			continue // a raw socket has no UDP_SEGMENT
		}
		if !slices.ContainsFunc(all, func(s lab.Sample) bool { return s.Name == name }) {
			t.Errorf("there is no metric %s", name)
		} else if v := all.Sum(name); (v == 0) != slices.Contains(c.still, name) {
			t.Errorf("%s is %.0f in the case %q", name, v, c.name)
		}
	}
}

// chosen checks that a switch is heard, or the case proves nothing.
func chosen(t *testing.T, d *lab.Daemon, c coreCase) {
	t.Helper()
	capability := map[string]struct{ found, used bool }{}
	for _, k := range d.Status(t).Capabilities {
		capability[k.Name] = struct{ found, used bool }{k.Found, k.Used}
	}
	for _, name := range c.unused {
		if k, known := capability[name]; !known || k.used {
			t.Errorf("%s: status says of %s: %+v, and it is switched off", d.Node.Name, name, k)
		}
	}
	for _, name := range c.used {
		if k, known := capability[name]; !known || k.found && !k.used {
			t.Errorf("%s: status says of %s: %+v, and it is switched on", d.Node.Name, name, k)
		}
	}
}

// persistently repeats what failed for the one reason that is no fault: with lossy, frames that the kernel had no room
// for, which it counted. A TPACKET_V3 ring has four blocks and the kernel closes one a millisecond, so that pods of a
// daemon that does not get a core for four milliseconds lose what they send.
func persistently(t *testing.T, l *lab.Lab, lossy bool, fn func() error) error {
	t.Helper()
	unread := func() (n float64) {
		for _, node := range l.Nodes {
			n += node.Daemon.Metrics(t).Sum("penstock_port_unread_packets_total")
		}
		return n
	}
	for tries := 1; ; tries++ {
		before := unread()
		err := fn()
		if err == nil || !lossy || tries == 10 || unread() == before {
			return err
		}
		t.Logf("%.0f frames found the ring full; again after: %v", unread()-before, err)
	}
}

func coreTraffic(t *testing.T, a, b *lab.Pod, v6 bool, mtu int, lossy bool) {
	t.Helper()
	what := fmt.Sprintf("%s (%s) ↔ %s (%s) %s", a.Name, a.Attach, b.Name, b.Attach, family(v6))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if _, err := lab.TransferTCP(ctx, &a.Host, &b.Host, v6, 4<<20, 4<<20); err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if err := persistently(t, a.Node.Lab, lossy, func() error { return coreEchoes(ctx, a, b, v6, mtu) }); err != nil {
		t.Errorf("%s: %v", what, err)
		whereLost(t, a.Node.Lab)
	}
	for _, pair := range [][2]*lab.Pod{{a, b}, {b, a}} {
		if err := persistently(t, a.Node.Lab, lossy, func() error { return coreStreams(ctx, pair[0], pair[1], v6, mtu) }); err != nil {
			t.Errorf("%s: %s → %s: %v", what, pair[0].Name, pair[1].Name, err)
			whereLost(t, a.Node.Lab)
		}
	}
}

// whereLost says what every daemon, device and socket knows of packets that it did not pass on.
func whereLost(t *testing.T, l *lab.Lab) {
	t.Helper()
	devices := func(n *lab.NS) {
		for _, name := range n.LinkNames() {
			if s, err := n.LinkStats(name); err == nil && s.RxDropped+s.TxDropped+s.RxErrors+s.TxErrors > 0 {
				t.Logf("%s %s: received %d, dropped %d, errors %d; sent %d, dropped %d, errors %d", n.Name, name,
					s.RxPackets, s.RxDropped, s.RxErrors, s.TxPackets, s.TxDropped, s.TxErrors)
			}
		}
		if s, err := n.Snmp(); err == nil {
			for _, key := range []string{"Udp.RcvbufErrors", "Udp.InErrors", "Udp.NoPorts", "Udp6RcvbufErrors", "Udp6.RcvbufErrors", "Ip.InDiscards", "Ip.OutDiscards", "Ip6.InDiscards", "Ip.ReasmFails", "Ip6.ReasmFails"} {
				if s[key] > 0 {
					t.Logf("%s %s: %d", n.Name, key, s[key])
				}
			}
		}
	}
	devices(l.Fabric)
	for _, n := range l.Nodes {
		m := n.Daemon.Metrics(t)
		t.Logf("%s: drops %v, unread %.0f", n.Name, m.Dropped(), m.Sum("penstock_port_unread_packets_total"))
		devices(n.NS)
		for _, p := range n.Pods {
			devices(p.NS)
		}
	}
}

// coreEchoes: datagrams that are whole, and that travel as fragments, come back as they were.
func coreEchoes(ctx context.Context, a, b *lab.Pod, v6 bool, mtu int) error {
	server, err := b.ServeUDP(0)
	if err != nil {
		return err
	}
	defer server.Close()
	client, err := a.DialUDP(netip.AddrPortFrom(b.Addr(v6), server.Port()))
	if err != nil {
		return err
	}
	defer client.Close()
	limit := 4 * mtu
	if matrix() {
		limit = 20000
	}
	sizes := append([]int{0, 1, 2, 3, 7, 33, 100, 1000}, lab.FragmentBorders(mtu, v6, limit)...)
	e, err := client.EchoSizes(ctx, sizes, 4)
	if err == nil && !e.OK() {
		err = fmt.Errorf("echoes: %+v", e)
	}
	return err
}

// coreStreams: numbered messages arrive each once, whole and in the order of their flow. None needs fragments: those
// have no ports to be kept in line with the whole packets of their flow.
func coreStreams(ctx context.Context, a, b *lab.Pod, v6 bool, mtu int) error {
	sink, err := b.ReceiveStream(0)
	if err != nil {
		return err
	}
	defer sink.Close()
	to, total := netip.AddrPortFrom(b.Addr(v6), sink.Port()), 0
	for _, s := range []lab.Stream{
		{Segment: 500, Burst: 40, Count: 400},
		{Segment: 1200, Burst: 50, Count: 400},
		{Sizes: []int{64, 64, 64, 64, 64, 64, 64, 570, 570, 570, 570, mtu - 50}, Burst: 16, Flows: 4, Count: 400},
	} {
		// A veth port's ring has 128 slots, and those of a batch of 64 come back only after it has left.
		s.Sink, s.Ahead = sink, 60
		n, err := a.SendStream(ctx, to, s)
		if err != nil {
			return err
		}
		total += n
	}
	if c := sink.WaitFor(total, patience); !c.Perfect(total) {
		return fmt.Errorf("sent %d messages, received %+v", total, c)
	}
	return nil
}

// coreServices: clients reach a Service by TCP and UDP, the backends in turn; the answer comes from its address.
func coreServices(t *testing.T, n *lab.Node, clients, backends []*lab.Pod, lossy bool) {
	t.Helper()
	servers(t, 8080, backends...)
	var services []lab.Service
	for _, v6 := range []bool{false, true} {
		for _, proto := range []string{"tcp", "udp"} {
			s := lab.Service{Address: serviceAddress(1, v6), Port: servicePort, Proto: proto}
			for _, p := range backends {
				s.Backends = append(s.Backends, netip.AddrPortFrom(p.Addr(v6), 8080))
			}
			services = append(services, s)
		}
	}
	n.SetServices(t, services...)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for _, v6 := range []bool{false, true} {
		to := netip.AddrPortFrom(serviceAddress(1, v6), servicePort)
		for _, client := range clients {
			seen := map[string]bool{}
			for range backends {
				r, err := client.TCP(ctx, to, 256<<10, 256<<10)
				if err != nil {
					t.Errorf("%s → Service %s: %v", client.Name, to, err)
					break
				}
				seen[r.Server] = true
				if err := persistently(t, n.Lab, lossy, func() error { return udpService(ctx, &client.Host, to) }); err != nil {
					t.Errorf("%s → Service %s: %v", client.Name, to, err)
				}
			}
			if len(seen) != len(backends) {
				t.Errorf("%s → Service %s: answered by %v, want each of %d", client.Name, to, seen, len(backends))
			}
		}
	}
}
