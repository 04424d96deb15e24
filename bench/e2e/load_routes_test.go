package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// peerYAML is one entry of peers.
type peerYAML struct {
	name    string
	address netip.Addr
	cidrs   []netip.Prefix
}

func peersYAML(peers ...peerYAML) string {
	var b strings.Builder
	b.WriteString("peers:\n")
	for _, p := range peers {
		fmt.Fprintf(&b, "- name: %s\n  address: %s\n  podCIDRs:\n", p.name, p.address)
		for _, c := range p.cidrs {
			fmt.Fprintf(&b, "  - %s\n", c)
		}
	}
	return b.String()
}

// asPeer is a node as the other nodes' files have it, with more pod CIDRs.
func asPeer(n *lab.Node, more ...netip.Prefix) peerYAML {
	return peerYAML{n.Name, n.Underlay(), append([]netip.Prefix{n.PodCIDR4, n.PodCIDR6}, more...)}
}

// manyRoutes are n prefixes of the cluster that no node of the lab has.
func manyRoutes(n int) []netip.Prefix {
	all := make([]netip.Prefix, n)
	for i := range all {
		all[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(128 + i/128), byte(i % 128 * 2)}), 31)
	}
	return all
}

// swapLoad is numbered traffic between pods for as long as routes are swapped: flow-controlled, so that every loss is a fault.
type swapLoad struct {
	cancel  context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex
	faults  []string
	sent    int
}

// startLoad sends both ways between pairs of pods until stop: small and large messages and runs of UDP_SEGMENT. Between
// other pairs, with sums, goes TCP, which fills every queue that it finds: that is why it has pods of its own. A pod's ring
// has 128 slots, and its streams never have more than that on their way, so not even a worker that has to wait for a CPU
// loses one of their messages.
func startLoad(t *testing.T, pairs, tcp [][2]*lab.Host) *swapLoad {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &swapLoad{cancel: cancel}
	t.Cleanup(func() { s.stop() })
	streams := []lab.Stream{
		{Sizes: []int{64, 570, 1400}, Flows: 4, Burst: 16, Ahead: 48},
		{Segment: 500, Burst: 16, Ahead: 48},
		{Sizes: []int{4000}, Burst: 4, Ahead: 8}, // travels as fragments
	}
	for i, pair := range pairs {
		for way := range 2 {
			from, to := pair[way], pair[1-way]
			stream := streams[(i*2+way)%len(streams)]
			sink, err := to.ReceiveStream(0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(sink.Close)
			stream.Sink, stream.Count = sink, 1<<40
			s.running.Go(func() {
				n, err := from.SendStream(ctx, netip.AddrPortFrom(to.Addr(i%2 == 1), sink.Port()), stream)
				if err != nil && ctx.Err() == nil {
					s.fault("%s → %s: %v", from.Name, to.Name, err)
				}
				if c := sink.WaitFor(n, patience); !c.Perfect(n) {
					s.fault("%s → %s: of %d messages: %+v", from.Name, to.Name, n, c)
				}
				s.mu.Lock()
				s.sent += n
				s.mu.Unlock()
			})
		}
	}
	for i, pair := range tcp {
		server, err := pair[1].ServeTCP(0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Close)
		s.running.Go(func() {
			for ctx.Err() == nil {
				bounded, cancel := context.WithTimeout(context.Background(), patience)
				_, err := pair[0].TCP(bounded, netip.AddrPortFrom(pair[1].Addr(i%2 == 0), server.Port()), 1<<20, 1<<20)
				cancel()
				if err != nil {
					s.fault("%v", err)
					return
				}
			}
		})
	}
	return s
}

func (s *swapLoad) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Sprintf(format, args...))
}

// stop ends the load and returns how many messages were sent, and what was wrong.
func (s *swapLoad) stop() (int, []string) {
	s.cancel()
	s.running.Wait()
	return s.sent, s.faults
}

// onlyOverflows ends a test in which nothing but a full queue may cost a packet, and that only TCP's, as the numbered streams
// have all arrived: no route may have been missing for a moment, no source doubted.
func onlyOverflows(t *testing.T, d *lab.Daemon, before lab.Metrics) {
	t.Helper()
	drops := d.AssertConserved(t).Sub(before).Dropped()
	for _, usual := range []string{"multicast", "answered", // what IPv6 hosts say by themselves
		"port_full", "send_full", "send_no_buffers", "truncated"} {
		delete(drops, usual)
	}
	if len(drops) > 0 {
		t.Errorf("%s dropped %v", d.Node.Name, drops)
	}
}

// overflows are what the kernel could not queue: frames that a daemon never got to read from its pods, and what pods' and
// nodes' own devices and sockets had no room for. They are named by who counts them.
func overflows(t *testing.T, l *lab.Lab) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	add := func(name string, n uint64) {
		if n != 0 {
			all[name] += n
		}
	}
	hosts := []*lab.Host{}
	for _, n := range l.Nodes {
		if n.Daemon != nil && !n.Daemon.Process.Exited() {
			for _, s := range n.Daemon.Metrics(t) {
				if s.Name == "penstock_port_unread_packets_total" {
					add(n.Name+" did not read from "+s.Labels["device"], uint64(s.Value))
				}
			}
		}
		hosts = append(hosts, &n.Host)
		for _, p := range n.Pods {
			hosts = append(hosts, &p.Host)
		}
	}
	for _, h := range hosts {
		for _, device := range h.LinkNames() {
			s, err := h.LinkStats(device)
			if err != nil {
				t.Fatal(err)
			}
			add(h.Name+": "+device+" rx dropped", s.RxDropped)
			add(h.Name+": "+device+" tx dropped", s.TxDropped)
		}
		snmp, err := h.Snmp()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range []string{"Udp.RcvbufErrors", "Udp.InCsumErrors", "Udp6.RcvbufErrors", "Ip.ReasmFails", "Ip6.ReasmFails", "Ip.OutDiscards", "Ip.FragFails"} {
			add(h.Name+": "+k, snmp[k])
		}
	}
	return all
}

func (s *swapLoad) report(t *testing.T, l *lab.Lab, what string) {
	t.Helper()
	sent, faults := s.stop()
	for _, f := range faults {
		t.Errorf("%s: %s", what, f)
	}
	if sent == 0 {
		t.Errorf("%s: nothing was sent", what)
	}
	if len(faults) > 0 {
		t.Logf("%s: what found no room: %v", what, overflows(t, l))
		return
	}
	t.Logf("%s: %d messages, all in order", what, sent)
}

// TestRoutesSwapped: ten thousand routes come and go, and move from one peer to another, while numbered messages cross. The
// messages are flow-controlled, so none may be lost; a control run without swaps comes before.
func TestRoutesSwapped(t *testing.T) {
	lab.Require(t)
	swaps, routes := 12, manyRoutes(10_000)
	if matrix() || loadFull() {
		swaps = 60
	}
	for _, encap := range someEncaps("vxlan") {
		t.Run(encap, func(t *testing.T) {
			l := lab.New(t, lab.Config{Nodes: 3, Encap: encap, YAML: []string{"workers: 2"}})
			l.Start(t)
			a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
			av, at := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)
			bv, ct := b.AddPod(t, lab.Veth), c.AddPod(t, lab.TUN)
			pairs := [][2]*lab.Host{{&av.Host, &bv.Host}, {&at.Host, &ct.Host}, {&av.Host, &at.Host}}
			tcp := [][2]*lab.Host{{&a.AddPod(t, lab.Veth).Host, &b.AddPod(t, lab.TUN).Host}, {&a.AddPod(t, lab.TUN).Host, &c.AddPod(t, lab.Veth).Host}}
			for _, p := range append(pairs, tcp...) {
				pingBoth(t, p[0], p[1])
			}
			before := map[*lab.Node]lab.Metrics{}
			for _, n := range l.Nodes {
				before[n] = n.Daemon.AtRest(t)
			}
			control := startLoad(t, pairs, tcp)
			time.Sleep(time.Second) // as long as it takes to have something to compare with
			control.report(t, l, "control")

			load := startLoad(t, pairs, tcp)
			half := len(routes) / 2
			cycle := [][2][]netip.Prefix{ // what b and c have
				{routes, nil}, {nil, routes}, {nil, nil}, {routes[:half], routes[half:]}, {routes[half:], routes[:half]}, {nil, nil},
			}
			var took []time.Duration
			for i := range swaps {
				has := cycle[i%len(cycle)]
				begin := time.Now()
				a.Daemon.Reload(t, peersYAML(asPeer(b, has[0]...), asPeer(c, has[1]...)))
				took = append(took, time.Since(begin))
				if i%len(cycle) == 4 {
					for j, n := range []*lab.Node{b, c} {
						if got, err := routesOf(a.Daemon, n.Name); err != nil || got != 2+len(has[j]) {
							t.Errorf("after swap %d %s has %d routes, want %d (%v)", i, n.Name, got, 2+len(has[j]), err)
						}
					}
				}
			}
			load.report(t, l, fmt.Sprintf("%d swaps of up to %d routes", swaps, len(routes)))
			t.Logf("a swap took up to %v", slices.Max(took))
			for _, n := range l.Nodes {
				onlyOverflows(t, n.Daemon, before[n])
			}
		})
	}
}

// routesOf counts the routes through a peer.
func routesOf(d *lab.Daemon, peer string) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	routes, err := d.Control().Routes(ctx)
	for _, r := range routes {
		if strings.HasPrefix(r.Via, peer+" ") {
			n++
		}
	}
	return n, err
}
