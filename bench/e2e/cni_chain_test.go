package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestCNIPortmap: a port of the node reaches a pod, from the world outside, from the other node, from the node itself and from
// the pod itself.
func TestCNIPortmap(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	needs(t, "iptables")
	for _, attach := range []lab.Attach{lab.Veth, lab.TUN} {
		t.Run(string(attach), func(t *testing.T) {
			l := lab.New(t, lab.Config{Outside: true})
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			list := a.List(nil, lab.Conf{"type": "penstock", "attach": string(attach)},
				lab.Conf{"type": "portmap", "snat": true, "backend": "iptables", "capabilities": lab.Conf{"portMappings": true}},
				lab.Conf{"type": "firewall", "backend": "iptables"})
			p := plug(t, a, list, lab.WithCapability("portMappings", []any{
				map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, map[string]any{"hostPort": 8080, "containerPort": 80, "protocol": "udp"},
			}))
			other := a.AddPodByPlugin(t, lab.Veth)
			servers(t, 80, p)
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			for name, from := range map[string]*lab.Host{"outside": l.Outside, "other node": &b.Host, "node": &a.Host, "pod beside it": &other.Host, "pod itself": &p.Host} {
				to := netip.AddrPortFrom(a.IP4, 8080)
				r, err := from.TCP(ctx, to, 1<<20, 1<<20)
				if err != nil {
					t.Errorf("%s → %s: %v", name, to, err)
				} else if r.Server != p.Name {
					t.Errorf("%s → %s: answered by %s", name, to, r.Server)
				}
				if name != "pod itself" {
					if err := udpService(ctx, from, to); err != nil {
						t.Errorf("%s → %s, UDP: %v", name, to, err)
					}
				}
			}
			if err := p.Check(); err != nil {
				t.Error(err)
			}
			p.Remove(t)
			if _, err := l.Outside.TCP(ctx, netip.AddrPortFrom(a.IP4, 8080), 10, 10); err == nil {
				t.Error("the mapping outlived the pod")
			}
			other.Remove(t)
			nothingLeft(t, a)
			a.Daemon.AssertConserved(t)
		})
	}
}

// TestCNITuning: tuning behind penstock changes the MAC and a sysctl; the pod is reachable at once.
func TestCNITuning(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	far := b.AddPodByPlugin(t, lab.Veth)
	p := plug(t, a, a.List(nil, lab.Conf{"type": "penstock"}, lab.Conf{"type": "tuning", "mac": "02:aa:bb:cc:dd:ee", "sysctl": lab.Conf{"net.ipv4.conf.eth0.arp_filter": "1"}}))
	if p.MAC.String() != "02:aa:bb:cc:dd:ee" {
		t.Errorf("the MAC is %s", p.MAC)
	}
	for _, v6 := range []bool{false, true} {
		for _, ends := range [][2]*lab.Pod{{far, p}, {p, far}} {
			r, err := ends[0].PingWith(ends[1].Addr(v6), lab.Echo{Timeout: patience})
			if err != nil || r.Received != 1 {
				t.Errorf("first echo %s → %s: %+v, %v", ends[0].Name, ends[1].Addr(v6), r, err)
			}
		}
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	p.Remove(t)
	nothingLeft(t, a)
	a.Daemon.AssertConserved(t)
}

// TestCNIMixedRefused: a bridge and a veth cannot share a node's CIDR; the second of them says so and leaves nothing.
func TestCNIMixedRefused(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Nodes[0].Start(t)
	a := l.Nodes[0]
	lists := kinds(a)
	bridged := plug(t, a, lists["bridge"])
	for _, kind := range []string{"veth/host-local", "tun/host-local", "veth", "tun"} {
		p := a.BarePod(t)
		if _, err := p.Plug(lists[kind]); err == nil {
			t.Errorf("%s went through beside a bridge", kind)
		} else if strings.HasSuffix(kind, "/host-local") && !strings.Contains(err.Error(), "takes the pod CIDR for itself") {
			t.Errorf("%s: %v", kind, err) // the daemon's own IPAM is refused before the route is looked at
		}
		if names := p.LinkNames(); len(names) != 1 {
			t.Errorf("%s: the pod has %v", kind, names)
		}
	}
	bridged.Remove(t)
	nothingLeft(t, a)
}

// TestCNIBandwidth: the capability that kubelet passes on bounds a pod of the plugin, both ways, within a tenth.
func TestCNIBandwidth(t *testing.T) {
	_, a, b := twoNodes(t, lab.Config{})
	far := b.AddPodByPlugin(t, lab.Veth)
	const rate = 50e6
	tcp := shapeLoad{name: "tcp"}
	for _, attach := range []string{"veth", "tun"} {
		p := plug(t, a, a.List(nil, lab.Conf{"type": "penstock", "attach": attach, "capabilities": lab.Conf{"bandwidth": true}}),
			lab.WithCapability("bandwidth", map[string]any{"ingressRate": uint64(rate), "ingressBurst": uint64(rate / 10), "egressRate": uint64(rate), "egressBurst": uint64(rate / 10)}))
		for way, ends := range map[string][2]*lab.Host{"egress": {&p.Host, &far.Host}, "ingress": {&far.Host, &p.Host}} {
			got := tcp.bounded(t, ends[0], ends[1], a.PodMTU(), rate)
			if got < 0.9*rate || got > 1.1*rate {
				t.Errorf("%s, %s: %.1f Mbit/s, asked for %.1f", attach, way, got/1e6, rate/1e6)
			}
		}
		p.Remove(t)
	}
	nothingLeft(t, a)
	a.Daemon.AssertConserved(t)
}
