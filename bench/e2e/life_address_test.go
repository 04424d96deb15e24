package e2e

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/doctor"
)

// TestDefaultRouteMoves: where node.address is not set and the default route goes to another interface, or away, reloads go on and a
// restart takes the same address, so that pods keep their peers; doctor says what to do.
func TestDefaultRouteMoves(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{YAML: []string{"node: {address: null}"}})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	want(t, examine(t, a, 0, b.Name), "underlay", doctor.OK, "192.0.2.1 on eth0")
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	h := a.Netlink()
	try(h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other0"}}))
	other, err := h.LinkByName("other0")
	try(err)
	try(h.LinkSetUp(other))
	try(h.AddrAdd(other, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(198, 51, 100, 1), Mask: net.CIDRMask(24, 32)}}))
	noRoute := func() {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
			try(err)
			for _, r := range all {
				if ones, _ := r.Dst.Mask.Size(); ones == 0 {
					try(h.RouteDel(&r))
				}
			}
		}
	}
	same := func(yaml, finding string) {
		t.Helper()
		a.Daemon.Reload(t, yaml)
		want(t, examine(t, a, 5, b.Name), "underlay", doctor.Warning, finding)
		a.Daemon.Stop(t)
		want(t, examine(t, a, 3, b.Name), "underlay", doctor.Warning, finding)
		a.Start(t)
		if got := a.Daemon.Status(t).Address; got != a.IP4 {
			t.Fatalf("the address is %s now", got)
		}
		pingBoth(t, &av.Host, &bv.Host)
	}
	noRoute()
	try(h.RouteAdd(&netlink.Route{LinkIndex: other.Attrs().Index, Gw: net.IPv4(198, 51, 100, 254), Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}))
	same("encap: {copyDSCP: true}", "the default route leads by 198.51.100.1")
	noRoute()
	same("encap: {clampMSS: true}", "there is no default route")
	conserved(t, l)
}
