package e2e

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestRouteOfSmallerMTU: the route to a peer moves to a device whose MTU is less than that of the one that holds the node's address, while a
// bulk transfer runs. Pods are told, whether the frames leave whole, in runs, one by one or as the native stream, and the transfer goes on.
func TestRouteOfSmallerMTU(t *testing.T) {
	lab.Require(t)
	for _, c := range []struct {
		name, encap, yaml string
	}{
		{"whole", "vxlan", ""},
		{"runs", "vxlan", "offload: {tunnelGSO: off}"},
		{"one by one", "udp", "offload: {tunnelGSO: off, udpSegment: off}"},
		{"ipip", "ipip", ""},
		{"native", "vxlan", nativeYAML("auto")},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := lab.Config{Encap: c.encap}
			if c.yaml != "" {
				config.YAML = []string{c.yaml}
			}
			l := lab.New(t, config)
			l.Start(t)
			na, nb := l.Nodes[0], l.Nodes[1]
			a, b := na.AddPod(t, lab.Veth), nb.AddPod(t, lab.TUN)
			before := mustPeers(t, na.Daemon)[0].MTU
			wire(t, na, nb, "eth1")
			for _, n := range l.Nodes {
				h := n.Netlink()
				if err := h.LinkSetMTU(must(h.LinkByName("eth1")), 1400); err != nil {
					t.Fatal(err)
				}
			}
			done := make(chan error, 1)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			go func() {
				_, err := lab.TransferTCP(ctx, &a.Host, &b.Host, false, 512<<20, 0)
				done <- err
			}()
			time.Sleep(300 * time.Millisecond)
			route(t, na, nb.Underlay(), "eth1")
			route(t, nb, na.Underlay(), "eth1")
			moved := sent(t, na, "eth1")
			if err := <-done; err != nil {
				t.Fatalf("the transfer does not go on: %v\n%s", err, na.Daemon.Process.Output())
			}
			if n := sent(t, na, "eth1") - moved; n < 1<<20 {
				t.Fatalf("%d bytes went by eth1: the transfer was over before the route moved", n)
			}
			if got := mustPeers(t, na.Daemon)[0].MTU; got != before-100 {
				t.Errorf("the MTU to the peer is %d, want %d", got, before-100)
			}
			for _, n := range l.Nodes {
				n.Daemon.AssertConserved(t)
			}
		})
	}
}

// TestAddressOnLoopback: where the node's address is on lo, as with BGP to the host, the MTU is that of the device by which packets leave.
func TestAddressOnLoopback(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	for _, n := range l.Nodes {
		h := n.Netlink()
		eth0, lo := must(h.LinkByName("eth0")), must(h.LinkByName("lo"))
		host := &net.IPNet{IP: n.IP4.AsSlice(), Mask: net.CIDRMask(32, 32)}
		for _, have := range must(h.AddrList(eth0, netlink.FAMILY_V4)) {
			if err := h.AddrDel(eth0, &have); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.AddrAdd(lo, &netlink.Addr{IPNet: host}); err != nil {
			t.Fatal(err)
		}
		everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if err := h.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: everything, Src: n.IP4.AsSlice()}); err != nil {
			t.Fatal(err)
		}
		n.Sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
		n.Sysctl(t, "net/ipv4/conf/eth0/rp_filter", "0")
	}
	l.Start(t)
	a, b := l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.TUN)
	if got := l.Nodes[0].Daemon.Status(t).MTU; got != 1450 {
		t.Errorf("pods' MTU %d, want that of eth0 less 50", got)
	}
	for _, way := range [][2]*lab.Pod{{a, b}, {b, a}} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := lab.TransferTCP(ctx, &way[0].Host, &way[1].Host, false, 64<<20, 0); err != nil {
			t.Fatalf("%v\n%s", err, l.Nodes[0].Daemon.Process.Output())
		}
	}
	for _, n := range l.Nodes {
		n.Daemon.AssertConserved(t)
	}
}
