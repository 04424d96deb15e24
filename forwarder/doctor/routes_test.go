package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// route is a route of somebody else's in the namespace of this thread, to a prefix or to "PREFIX METRIC".
func route(t *testing.T, device, to string) *netlink.Route {
	t.Helper()
	to, metric, _ := strings.Cut(to, " ")
	dst, err := netlink.ParseIPNet(to)
	if err != nil {
		t.Fatal(err)
	}
	r := &netlink.Route{Dst: dst, Protocol: unix.RTPROT_BOOT}
	r.Priority, _ = strconv.Atoi(metric)
	if device == "blackhole" {
		r.Type = unix.RTN_BLACKHOLE
		return r
	}
	link, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	r.LinkIndex, r.Scope = link.Attrs().Index, netlink.SCOPE_LINK
	if dst.IP.To4() == nil {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	return r
}

// TestHostRoutes: what other pod networks leave behind is found, with those who suffer from it, with and without the daemon's own
// routes; what is none of that is not.
func TestHostRoutes(t *testing.T) {
	ns := nstest.New(t)
	ns.TUN("penstock0")
	for _, d := range []string{"flannel.1", "flannel0", "cni0", "eth1"} {
		ns.Device(d)
		ns.Up(d)
	}
	ns.Up("eth1", "10.244.200.1/24") // an underlay in the pods' network
	own, cluster := prefixes("10.244.1.0/24", "fd00:10:244:1::/64"), prefixes("10.244.0.0/16", "fd00:10:244::/48")
	peers := []control.Peer{{Name: "node-b", PodCIDRs: prefixes("10.244.2.0/24", "fd00:10:244:2::/64")}, {Name: "node-c", PodCIDRs: prefixes("10.244.3.0/24")},
		{Name: "node-d", Address: netip.MustParseAddr("10.244.220.1"), PodCIDRs: prefixes("10.244.221.0/24")}}
	pod := func(attach, a string) control.Pod {
		return control.Pod{Attach: attach, Addresses: []netip.Addr{netip.MustParseAddr(a)}}
	}
	const flannel1 = "if it is left over from flannel: ip link del flannel.1, when flanneld has gone"
	const sends = "ok: the host sends what is for pods to penstock0"
	type to []string // a device and a prefix each
	check := func(up bool, routes to, pods []control.Pod, want ...string) {
		t.Helper()
		ns.Do(func() {
			var made []*netlink.Route
			for i := 0; i < len(routes); i += 2 {
				r := route(t, routes[i], routes[i+1])
				if err := netlink.RouteAdd(r); err != nil {
					t.Fatal(routes, err)
				}
				made = append(made, r)
			}
			x := examination{}
			x.up, x.device, x.podCIDRs, x.cluster, x.peers, x.pods = up, "penstock0", own, cluster, peers, pods
			x.hostRoutes(t.Context())
			var got []string
			for _, c := range x.report.Checks {
				s := fmt.Sprintf("%s: %s", c.Result, c.Finding)
				if c.Remedy != "" {
					s += " → " + c.Remedy
				}
				got = append(got, s)
			}
			if strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%q:\n%s\nwant:\n%s", routes, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			for _, r := range made {
				if err := netlink.RouteDel(r); err != nil {
					t.Fatal(err)
				}
			}
		})
	}

	check(false, nil, nil, "ok: nothing is in the way of the daemon's")
	check(true, nil, nil, "failure: the host has no route for 10.244.0.0/16, fd00:10:244::/48 to penstock0: it and routed pods cannot reach other nodes' pods → the daemon puts its routes back: if this stays, its log says why it cannot (journalctl -u penstockd -n 50)")
	check(false, to{"flannel0", "10.244.0.0/16"}, nil,
		"failure: the daemon cannot start: the route 10.244.0.0/16 belongs to somebody else (dev flannel0, proto 3) → remove it, or the host cannot reach pods; if it is left over from flannel: ip link del flannel0, when flanneld has gone")

	ns.Do(func() {
		h, err := hostnet.New(hostnet.Config{Device: "penstock0", PodCIDRs: own, Cluster: cluster, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err == nil {
			_, err = h.Apply(context.Background())
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	check(true, nil, nil, sends)
	check(true, to{"flannel.1", "10.244.2.0/24"}, nil,
		"failure: the host sends 10.244.2.0/24 to flannel.1 and not to penstock0: the host and routed pods do not reach node-b through Penstock → "+flannel1)
	check(true, to{"flannel.1", "10.244.2.0/24", "flannel.1", "10.244.3.0/25", "flannel.1", "fd00:10:244:2::/64", "eth1", "10.244.9.0/24"}, nil,
		"failure: the host sends 10.244.2.0/24, 10.244.3.0/25, fd00:10:244:2::/64 to flannel.1 and not to penstock0: the host and routed pods do not reach node-b, node-c through Penstock → "+flannel1,
		"warning: the host sends 10.244.9.0/24 to eth1 and not to penstock0: no peer has pods there now, but the host and routed pods would not reach them through Penstock → find out what it is for (ip route show 10.244.9.0/24) before a peer gets pods there")
	check(true, to{"blackhole", "10.244.2.0/23"}, nil,
		"failure: the host sends 10.244.2.0/23 to nowhere (blackhole) and not to penstock0: the host and routed pods do not reach node-b, node-c through Penstock → if nobody needs it any more: ip route del 10.244.2.0/23")
	check(true, to{"eth1", "10.244.2.0/23", "penstock0", "10.244.2.0/24", "penstock0", "10.244.3.0/24"}, nil,
		"warning: the host sends 10.244.2.0/23 to eth1 and not to penstock0: no peer has pods there now, but the host and routed pods would not reach them through Penstock → find out what it is for (ip route show 10.244.2.0/23) before a peer gets pods there")
	check(true, to{"eth1", "10.99.0.0/16", "flannel0", "10.244.0.0/16 100"}, nil, sends) // beside the network, and behind ours
	check(true, to{"flannel0", "fd00:10:244::/48 100"}, nil,
		"failure: the host sends fd00:10:244::/48 to flannel0 and not to penstock0: the host and routed pods do not reach node-b, this node's own pods through Penstock → if it is left over from flannel: ip link del flannel0, when flanneld has gone")

	ns.Do(func() { // the underlay's own ways, in the pods' network
		if err := netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(10, 244, 200, 254)}); err != nil {
			t.Fatal(err)
		}
	})
	check(true, to{"eth1", "10.244.200.254/32", "eth1", "10.244.220.0/24"}, nil, sends)
	check(true, to{"eth1", "10.244.200.254/32", "eth1", "10.244.220.0/23"}, nil,
		"failure: the host sends 10.244.220.0/23 to eth1 and not to penstock0: the host and routed pods do not reach node-d through Penstock → the underlay needs this way: give these pods CIDRs beside it (node.podCIDRs)")
	check(true, to{"eth1", "10.244.2.0/25", "eth1", "10.244.9.0/24"}, nil,
		"failure: the host sends 10.244.2.0/25 to eth1 and not to penstock0: the host and routed pods do not reach node-b through Penstock → if nobody needs it any more: ip route del 10.244.2.0/25")

	const routed = "nothing is to be done if all pods of this CIDR are attached as routed behind it"
	bridge := to{"cni0", "10.244.1.0/24"}
	check(true, bridge, nil, "warning: the host sends 10.244.1.0/24, of this node's own pods, to cni0 and not to penstock0: veth and tun pods are refused there → if it is left over from flannel: ip link del cni0, when its pods are gone; "+routed)
	check(true, bridge, []control.Pod{pod(control.AttachRouted, "10.244.1.7")}, sends)
	check(true, bridge, []control.Pod{pod(control.AttachVeth, "10.244.1.8")},
		"failure: the host sends 10.244.1.0/24, of this node's own pods, to cni0 and not to penstock0: it cannot reach 10.244.1.8, and more veth and tun pods are refused there → if it is left over from flannel: ip link del cni0, when its pods are gone; "+routed)
	check(true, to{"eth1", "10.244.1.7/32"}, []control.Pod{pod(control.AttachRouted, "10.244.1.7"), pod(control.AttachTUN, "10.244.1.8")}, sends) // as ptp makes it
	check(true, to{"eth1", "10.244.1.7/32"}, nil, sends)                                                                                          // and no longer, or not yet, on record
	check(true, to{"eth1", "10.244.1.7/32"}, []control.Pod{pod(control.AttachTUN, "10.244.1.7")},
		"failure: the host sends 10.244.1.7/32, of this node's own pods, to eth1 and not to penstock0: it cannot reach 10.244.1.7, and more veth and tun pods are refused there → give eth1 a CIDR of its own; "+routed)
	ptp := pod(control.AttachRouted, "10.244.1.7")
	ptp.Phase, ptp.Owner = control.PhaseAttached, "default/web"
	check(true, to{"eth1", "10.244.1.7/32"}, []control.Pod{ptp}, sends)
	check(true, nil, []control.Pod{ptp}, "failure: the host has lost the routes by which it reaches these routed pods: default/web 10.244.1.7 → put their routes back (of ptp: ip route add ADDRESS dev VETH), or delete the pods: their runtime makes them anew")
	blocks := to{"blackhole", "10.244.1.0/26", "blackhole", "10.244.1.64/26"} // as Calico and BGP make them
	check(true, blocks, nil, sends)
	check(true, blocks, []control.Pod{pod(control.AttachVeth, "10.244.1.8")},
		"failure: the host sends 10.244.1.0/26, of this node's own pods, to nowhere (blackhole) and not to penstock0: it cannot reach 10.244.1.8 → if nobody needs it any more: ip route del 10.244.1.0/26")

	ns.Do(func() {
		r := netlink.NewRule()
		r.Table, r.Family = 100, unix.AF_INET
		if err := netlink.RuleAdd(r); err != nil {
			t.Fatal(err)
		}
	})
	check(true, nil, nil, sends+"; routing rules (ip rule) lead to further tables, which were not looked at")
}

// TestOtherwise: why the node's address would be another, or could not be told.
func TestOtherwise(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		err  error
		want string
	}{{nil, "the default route leads by 192.0.2.1"}, {hostnet.ErrNoDefaultRoute, "there is no default route"}, {errors.New("cannot list the routes"), "cannot list the routes"}} {
		if got := otherwise(a, c.err); got != c.want {
			t.Errorf("%v: %q", c.err, got)
		}
	}
}

// TestHostRoutesOfMany: a thousand peers with a route left over of each are one finding, in no time.
func TestHostRoutesOfMany(t *testing.T) {
	ns := nstest.New(t)
	ns.TUN("penstock0")
	ns.Device("flannel.1")
	ns.Up("flannel.1")
	ns.Do(func() {
		x := examination{}
		x.device, x.podCIDRs, x.cluster = "penstock0", prefixes("10.1.1.0/24"), prefixes("10.0.0.0/8")
		for i := range 1000 {
			p := fmt.Sprintf("10.%d.%d.0/24", 2+i/256, i%256)
			x.peers = append(x.peers, control.Peer{Name: fmt.Sprint("node-", i), PodCIDRs: prefixes(p)})
			if err := netlink.RouteAdd(route(t, "flannel.1", p)); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		x.hostRoutes(t.Context())
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		} else {
			t.Log(took)
		}
		const want = "the host sends 10.2.0.0/24, 10.2.1.0/24, 10.2.2.0/24 and 997 more to flannel.1 and not to penstock0: the host and routed pods do not reach node-0, node-1, node-2, node-3, node-4 and 995 more through Penstock"
		if c := x.report.Checks; len(c) != 1 || c[0].Finding != want {
			t.Errorf("%+v", c)
		}
	})
}
