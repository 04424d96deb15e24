package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestCNIReach: pods of every kind reach pods of every kind, on their own node and on the other, and the nodes reach them; then
// all go and nothing is left. A node has its addresses from its daemon or from host-local.
func TestCNIReach(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 3})
	l.Start(t)
	var pods []*lab.Pod
	names := map[*lab.Pod]string{}
	for i, list := range [][]string{{"veth", "tun"}, {"bridge"}, {"veth/host-local", "tun/host-local", "ptp"}} {
		for _, kind := range list {
			p := plug(t, l.Nodes[i], kinds(l.Nodes[i])[kind])
			pods = append(pods, p)
			names[p] = kind
		}
	}
	for _, from := range pods {
		for _, to := range pods {
			if from != to {
				t.Run(names[from]+" to "+names[to], func(t *testing.T) { reaches(t, from, to) })
			}
		}
		if err := from.Check(); err != nil {
			t.Errorf("CHECK of %s: %v", names[from], err)
		}
	}
	for _, n := range l.Nodes {
		for _, to := range pods {
			for _, v6 := range []bool{false, true} {
				if err := n.Ping(to.Addr(v6)); err != nil {
					t.Errorf("%s → %s %s: %v", n.Name, names[to], to.Addr(v6), err)
				}
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for _, to := range pods[2:] { // superframes, in both directions
		if _, err := lab.TransferTCP(ctx, &pods[0].Host, &to.Host, false, 16<<20, 16<<20); err != nil {
			t.Errorf("veth ↔ %s: %v", names[to], err)
		}
	}
	for _, n := range l.Nodes {
		n.Daemon.AssertConserved(t)
	}
	for _, p := range pods {
		p.Remove(t)
	}
	for _, n := range l.Nodes {
		nothingLeft(t, n)
		n.Daemon.AssertConserved(t)
	}
}

// TestCNITwoInterfaces: both interfaces of a pod answer, from the other node and from a pod beside it.
func TestCNITwoInterfaces(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	near, far := a.AddPodByPlugin(t, lab.Veth), b.AddPodByPlugin(t, lab.TUN)
	for _, attach := range []string{"veth", "tun"} {
		t.Run(attach, func(t *testing.T) {
			p := a.AddPodByPlugin(t, lab.Veth)
			list := a.List(nil, lab.Conf{"type": "penstock", "attach": attach})
			r, err := p.Plug(list, lab.WithInterface("net1"))
			if err != nil {
				t.Fatal(err)
			}
			for _, ip := range r.IPs {
				second, _ := netip.AddrFromSlice(ip.Address.IP)
				for _, from := range []*lab.Pod{near, far} {
					if err := from.Ping(second.Unmap()); err != nil {
						t.Errorf("%s → net1: %v", from.Name, err)
					}
				}
			}
			reaches(t, far, p)
			reaches(t, p, far)
			p.UnplugInterface(t, list, "net1")
			reaches(t, p, near)
			p.Remove(t)
		})
	}
	near.Remove(t)
	far.Remove(t)
	nothingLeft(t, a)
	nothingLeft(t, b)
	a.Daemon.AssertConserved(t)
}

// TestCNIHairpin: a pod reaches itself through the address of a Service.
func TestCNIHairpin(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 2})
	l.Start(t)
	a := l.Nodes[0]
	for _, attach := range []lab.Attach{lab.Veth, lab.TUN} {
		p := a.AddPodByPlugin(t, attach)
		servers(t, 8080, p)
		var services []lab.Service
		for _, v6 := range []bool{false, true} {
			for _, proto := range []string{"tcp", "udp"} {
				services = append(services, lab.Service{Address: serviceAddress(1, v6), Port: servicePort, Proto: proto, Backends: []netip.AddrPort{netip.AddrPortFrom(p.Addr(v6), 8080)}})
			}
		}
		a.SetServices(t, services...)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		for _, v6 := range []bool{false, true} {
			to := netip.AddrPortFrom(serviceAddress(1, v6), servicePort)
			if _, err := p.TCP(ctx, to, 1<<20, 1<<20); err != nil {
				t.Errorf("%s, TCP to itself by %s: %v", attach, to, err)
			}
			if err := udpService(ctx, &p.Host, to); err != nil {
				t.Errorf("%s, UDP to itself by %s: %v", attach, to, err)
			}
		}
	}
	a.Daemon.AssertConserved(t)
}

// TestCNIDownUp: a pod takes its interface down and up. The kernel forgets its routes and the permanent entries with it; whoever
// took it down brings the routes back, and what is left of the entries the daemon answers for.
func TestCNIDownUp(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	far := b.AddPodByPlugin(t, lab.Veth)
	for _, attach := range []lab.Attach{lab.Veth, lab.TUN} {
		t.Run(string(attach), func(t *testing.T) {
			p := a.AddPodByPlugin(t, attach)
			reaches(t, far, p)
			h := p.Netlink()
			link, err := h.LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			routes := map[int][]netlink.Route{}
			for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				all, err := h.RouteList(link, family)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range all {
					if r.Gw != nil {
						routes[family] = append(routes[family], r)
					}
				}
				if len(routes[family]) != 1 {
					t.Fatalf("routes: %v", all)
				}
			}
			if err := h.LinkSetDown(link); err != nil {
				t.Fatal(err)
			}
			if err := h.LinkSetUp(link); err != nil {
				t.Fatal(err)
			}
			for _, list := range routes {
				for _, r := range list {
					r.Flags |= int(netlink.FLAG_ONLINK)
					if err := h.RouteReplace(&r); err != nil {
						t.Fatalf("%v: %v", r, err)
					}
				}
			}
			for _, v6 := range []bool{false, true} { // one try each, so at once
				awaitLocal(t, p, p.Addr(v6))
				r, err := far.PingWith(p.Addr(v6), lab.Echo{Timeout: patience})
				if err != nil || r.Received != 1 {
					t.Errorf("first echo to %s: %+v, %v", p.Addr(v6), r, err)
				}
			}
			if attach == lab.Veth { // a new MAC, by hand; tuning's is in another test
				mac := append([]byte{}, p.MAC...)
				mac[5]++
				if err := h.LinkSetHardwareAddr(link, mac); err != nil {
					t.Fatal(err)
				}
				for _, v6 := range []bool{false, true} {
					r, err := p.PingWith(far.Addr(v6), lab.Echo{Timeout: patience})
					if err != nil || r.Received != 1 {
						t.Errorf("first echo with the new MAC to %s: %+v, %v", far.Addr(v6), r, err)
					}
				}
			}
			p.Remove(t)
		})
	}
	a.Daemon.AssertConserved(t)
}

// awaitLocal waits until a pod's kernel takes packets for an address: IPv6 makes the local route in a work queue, a few
// milliseconds after the device has come up.
func awaitLocal(t *testing.T, p *lab.Pod, a netip.Addr) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		routes, err := p.Netlink().RouteGet(a.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is not an address of the pod: %v, %v", a, routes, err)
		}
	}
}
