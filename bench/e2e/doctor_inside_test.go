package e2e

import (
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/doctor"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insidePods breaks pods from within, as somebody or something in them may, and from the node. node-b is a peer.
func insidePods(t *testing.T, a *lab.Node) {
	find := func(r doctor.Result, text string) {
		t.Helper()
		status := 0
		if r == doctor.Failure {
			status = 1
		}
		want(t, examine(t, a, status, "node-b"), "pod-network", r, text)
	}
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	find(doctor.Skipped, "that the plugin has made") // but the lab
	for _, attach := range []string{"veth", "tun"} {
		p := a.BarePod(t)
		t.Cleanup(func() { p.Remove(t) })
		conf := lab.Conf{"type": "penstock", "attach": attach}
		_, err := p.Plug(a.List(nil, conf))
		try(err)
		find(doctor.OK, "looked into 1: interface and addresses are there, and the way to other nodes' pods")

		h := p.Netlink()
		eth0, err := h.LinkByName(p.Interface)
		try(err)
		all, err := h.RouteList(eth0, netlink.FAMILY_ALL)
		try(err)
		var routes []netlink.Route // the default route by IPv4, and by IPv6
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			i := slices.IndexFunc(all, func(r netlink.Route) bool { ones, _ := r.Dst.Mask.Size(); return r.Family == family && ones == 0 })
			if i < 0 {
				t.Fatalf("no default route of family %d in %v", family, all)
			}
			routes = append(routes, all[i])
		}
		if attach == "veth" {
			try(h.LinkSetMTU(eth0, 9000))
			find(doctor.Failure, "eth0 has an MTU of 9000 and its end on the node 1450: larger packets are lost")
			try(h.LinkSetMTU(eth0, 1450))

			device := control.DeviceName(p.Container, p.Interface)
			host, err := a.Netlink().LinkByName(device)
			try(err)
			try(a.Netlink().LinkSetMTU(host, 1000)) // the daemon sets it back
			await(t, "the MTU of the node's end", func() bool { l, err := a.Netlink().LinkByName(device); return err == nil && l.Attrs().MTU == 1450 })
			find(doctor.OK, "looked into 1: ")
			try(a.Netlink().LinkSetDown(host))
			find(doctor.Failure, "its end on the node, "+device+", is down")
			try(a.Netlink().LinkSetUp(host))

			wrong := routes[0]
			wrong.Gw = p.IP4.Next().AsSlice()
			try(h.RouteReplace(&wrong))
			find(doctor.Failure, fmt.Sprintf("goes by %s, where nobody answers", p.IP4.Next()))
			bare := routes[0]
			bare.Gw, bare.Flags, bare.Scope = nil, 0, netlink.SCOPE_LINK
			try(h.RouteReplace(&bare))
			find(doctor.Failure, "has no gateway")
		}
		// A further interface has no default route, but a rule of its own.
		_, err = p.Plug(a.List(nil, conf), lab.WithInterface("net1"))
		try(err)
		if attach == "veth" {
			try(h.RouteReplace(&routes[0]))
		}
		find(doctor.OK, "looked into 2: ")
		rules, err := h.RuleList(netlink.FAMILY_V4)
		try(err)
		for _, r := range rules {
			if r.Src != nil && r.Priority < 32766 {
				try(h.RuleDel(&r))
			}
		}
		find(doctor.Failure, "leaves by eth0, not by net1, and is dropped as spoofed")
		p.UnplugInterface(t, a.List(nil, conf), "net1")

		refuses := netlink.Route{Dst: &net.IPNet{IP: net.IPv4(10, 244, 0, 0), Mask: net.CIDRMask(16, 32)}, Type: unix.RTN_UNREACHABLE}
		try(h.RouteAdd(&refuses))
		find(doctor.Failure, "a route or rule in it refuses what goes to other nodes' pods (10.244.2.1)")
		try(h.RouteDel(&refuses))
		for i, to := range []string{"10.244.2.1", "fd00:10:244:2::1"} {
			try(h.RouteDel(&routes[i]))
			find(doctor.Failure, "no route to other nodes' pods ("+to+")")
			find(doctor.Failure, p.IP4.String())
			try(h.RouteReplace(&routes[i])) // as the remedy has it
			find(doctor.OK, "looked into 1: ")
		}
		addresses, err := h.AddrList(eth0, netlink.FAMILY_V4)
		try(err)
		try(h.AddrDel(eth0, &addresses[0]))
		find(doctor.Failure, "eth0 has lost "+p.IP4.String())
		try(h.LinkSetDown(eth0))
		find(doctor.Failure, "eth0 is down")
		p.Remove(t)
	}
	find(doctor.Skipped, "that the plugin has made")
}
