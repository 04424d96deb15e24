package cni

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestRouteFields: a route has in the pod what the configuration says of it, in the result what its version knows, and CHECK finds it.
func TestRouteFields(t *testing.T) {
	w := newWorld(t)
	for _, v := range versions {
		p := w.newPod()
		conf := map[string]any{"attach": "veth", "routes": []any{map[string]any{"dst": "172.16.0.0/12", "mtu": 1400, "advmss": 1300, "priority": 7, "table": 100, "scope": 0}, map[string]any{"dst": "172.15.0.0/16", "table": 0}}}
		r := w.mustAdd(p, v, conf)
		for field, want := range map[string]any{"mtu": 1400, "advmss": 1300, "priority": 7, "table": 100, "scope": 0} {
			if v != "1.1.0" {
				want = nil
			}
			expect(t, r, want, "routes", 2, field)
		}
		expect(t, r, "169.254.1.1", "routes", 2, "gw")
		inTable := func() (found []netlink.Route) {
			p.Do(func() {
				var err error
				if found, err = netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: 100}, netlink.RT_FILTER_TABLE); err != nil {
					t.Fatal(err)
				}
			})
			return found
		}
		if l := inTable(); len(l) != 1 || l[0].MTU != 1400 || l[0].AdvMSS != 1300 || l[0].Priority != 7 || l[0].Scope != unix.RT_SCOPE_UNIVERSE {
			t.Errorf("%s: %v", v, l)
		}
		if v == "0.3.1" {
			continue
		}
		conf["prevResult"] = r
		c := call{verb: "CHECK", id: p.id, netns: p.path, version: v, conf: conf}
		if a := w.run(c); a.code != 0 {
			t.Errorf("%s: %s", v, a.msg)
		}
		p.Do(func() {
			for _, l := range inTable() {
				netlink.RouteDel(&l)
				if v == "1.1.0" { // which tells the tables
					l.Table = unix.RT_TABLE_MAIN
					netlink.RouteAdd(&l)
				}
			}
		})
		if a := w.run(c); a.code == 0 {
			t.Errorf("%s: a route in a table of its own is gone, and CHECK succeeds", v)
		}
	}
}
