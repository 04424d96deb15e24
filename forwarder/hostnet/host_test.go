package hostnet

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

func TestApplyTwiceThenCleanup(t *testing.T) {
	host := nstest.New(t)
	host.Sysctl("net/ipv4/ip_forward", "1")
	host.Sysctl("net/ipv6/conf/all/forwarding", "1")
	before := state(t, host)
	host.TUN("penstock0")
	host.TUN(GSODevice)
	cfg := testConfig()
	cfg.Masquerade = true

	first := apply(t, host, cfg)
	for _, want := range []string{
		"mtu 1450 on penstock0 (was 1500)", "penstock0 up",
		"address 10.244.1.0 on penstock0", "address fd00:10:244:1:: on penstock0",
		"route 10.244.0.0/16 dev penstock0 src 10.244.1.0", "route fd00:10:244::/48 dev penstock0 src fd00:10:244:1::",
		"nft table inet penstock (prerouting: 1 rules, output: 2 rules, postrouting: 7 rules)",
	} {
		if !slices.Contains(first.Added, want) {
			t.Errorf("not added: %s\nadded: %q", want, first.Added)
		}
	}
	if len(first.Removed) != 0 {
		t.Errorf("removed at first: %q", first.Removed)
	}
	for _, f := range first.Findings {
		if f.Severity != Info {
			t.Errorf("unexpected finding: %v", f)
		}
	}
	host.Do(func() {
		link, err := netlink.LinkByName("penstock0")
		check(t, err)
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		check(t, err)
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() {
				t.Errorf("penstock0 has the link-local address %s", a.IP)
			}
			if a.Flags&unix.IFA_F_TENTATIVE != 0 {
				t.Errorf("%s is tentative", a.IP)
			}
		}
		for dst, src := range map[string]string{"10.244.7.7": "10.244.1.0", "fd00:10:244:7::7": "fd00:10:244:1::"} {
			rt, err := netlink.RouteGet(netip.MustParseAddr(dst).AsSlice())
			check(t, err)
			if len(rt) != 1 || rt[0].Src.String() != src || rt[0].LinkIndex != link.Attrs().Index {
				t.Errorf("the host reaches %s by %v", dst, rt)
			}
		}
		h, err := New(cfg)
		check(t, err)
		check(t, h.BlockIngress("penstock0"))
	})

	middle := settled(t, host)
	if second := apply(t, host, cfg); second.Changed() {
		t.Errorf("a second Apply changed something: %+v", second)
	}
	if diff := cmp.Diff(middle, state(t, host)); diff != "" {
		t.Errorf("a second Apply changed something:\n%s", diff)
	}

	for i := range 2 {
		host.Do(func() {
			r, err := Cleanup(context.Background(), "penstock0")
			check(t, err)
			if i == 0 {
				for _, want := range []string{"device penstock0", "device penstock-gso", "nft table inet penstock", "nft table netdev penstock",
					"route 10.244.0.0/16", "route fd00:10:244::/48"} {
					if !slices.Contains(r.Removed, want) {
						t.Errorf("not removed: %s\nremoved: %q", want, r.Removed)
					}
				}
			} else if len(r.Removed) != 0 {
				t.Errorf("a second Cleanup removed %q", r.Removed)
			}
		})
		if diff := cmp.Diff(before, state(t, host)); diff != "" {
			t.Errorf("Cleanup %d did not leave the namespace as it was:\n%s", i+1, diff)
		}
	}
}

// What somebody has thrown out of IPv6 by an MTU under 1280 comes back as it was, and says nothing of its own.
func TestBackIntoIPv6(t *testing.T) {
	host := nstest.New(t)
	host.TUN("penstock0")
	apply(t, host, testConfig())
	before := state(t, host)
	host.Do(func() {
		link, err := netlink.LinkByName("penstock0")
		check(t, err)
		check(t, netlink.LinkSetMTU(link, 1200))
	})
	time.Sleep(50 * time.Millisecond)
	apply(t, host, testConfig())
	apply(t, host, testConfig()) // of accept_ra, which is the kernel's again
	time.Sleep(50 * time.Millisecond)
	if diff := cmp.Diff(before, state(t, host)); diff != "" {
		t.Error(diff)
	}
}

func TestReconfigureReplacesInOrder(t *testing.T) {
	host := nstest.New(t)
	host.TUN("penstock0")
	cfg := testConfig()
	apply(t, host, cfg)
	cfg.PodCIDRs = prefixes("10.244.9.0/24", "fd00:10:244:9::/64")
	cfg.Cluster = prefixes("10.244.0.0/16", "10.245.0.0/16", "fd00:10:245::/48")
	r := apply(t, host, cfg)
	for _, want := range []string{
		"address 10.244.9.0 on penstock0", "address fd00:10:244:9:: on penstock0",
		"route 10.244.0.0/16 dev penstock0 src 10.244.9.0", "route 10.245.0.0/16 dev penstock0 src 10.244.9.0",
		"route fd00:10:245::/48 dev penstock0 src fd00:10:244:9::",
		"route fd00:10:244:9::/64 dev penstock0 src fd00:10:244:9::", // not covered by network.cidrs any more
	} {
		if !slices.Contains(r.Added, want) {
			t.Errorf("not added: %s\nadded: %q", want, r.Added)
		}
	}
	want := []string{"address 10.244.1.0 on penstock0", "address fd00:10:244:1:: on penstock0", "route fd00:10:244::/48"}
	if got := slices.Sorted(slices.Values(r.Removed)); !slices.Equal(got, want) {
		t.Errorf("removed %q, want %q", got, want)
	}
	if again := apply(t, host, cfg); again.Changed() {
		t.Errorf("not stable: %+v", again)
	}
	host.Do(func() {
		h, err := New(cfg)
		check(t, err)
		bad := cfg
		bad.MTU = 12
		bad.Tunnels = []Tunnel{{Proto: 6, Port: 1}}
		if _, err := h.Reconfigure(context.Background(), bad); err == nil || !strings.Contains(err.Error(), "MTU of 12") || !strings.Contains(err.Error(), "protocol 6") {
			t.Errorf("a bad Config was not refused with all its faults: %v", err)
		}
	})
}

// What others own stays, and is named where it is in the way.
func TestForeignRoutesStay(t *testing.T) {
	host := nstest.New(t)
	host.TUN("penstock0")
	host.Device("flannel.1")
	host.Up("flannel.1", "10.244.1.1/32")
	host.Device("eth1")
	host.Up("eth1", "192.0.2.1/24")
	route := func(dst string) netlink.Route {
		link, err := netlink.LinkByName("flannel.1")
		check(t, err)
		return netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(dst)), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_BOOT}
	}
	host.Do(func() {
		for _, dst := range []string{"10.244.0.0/16", "10.244.3.0/24", "10.244.4.0/24", "10.99.0.0/16", "10.244.1.0/25"} {
			rt := route(dst)
			check(t, netlink.RouteAdd(&rt))
		}
		eth1, err := netlink.LinkByName("eth1")
		check(t, err)
		for _, dst := range []string{"10.244.200.1/32", "10.244.210.0/24", "10.244.220.0/24"} { // to the gateway and this node's prefix inside the pods' network, and another
			check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth1.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(dst)), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_DHCP}))
		}
		check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: eth1.Attrs().Index, Gw: net.IPv4(10, 244, 200, 1)}))
		c := testConfig()
		c.Address = netip.MustParseAddr("10.244.210.5")
		h, err := New(c)
		check(t, err)
		r, err := h.Apply(context.Background())
		if err == nil || !strings.HasPrefix(err.Error(), "the route 10.244.0.0/16 belongs to somebody else (dev flannel.1, proto 3); remove it, or the host cannot reach pods; if it is left over from flannel: ip link del flannel.1") {
			t.Errorf("the foreign route was not named: %v", err)
		}
		if !slices.Contains(r.Added, "route fd00:10:244::/48 dev penstock0 src fd00:10:244:1::") {
			t.Errorf("the IPv6 route is missing as well: %q", r.Added)
		}
		rt := route("10.244.0.0/16")
		check(t, netlink.RouteDel(&rt))
		r, err = h.Apply(context.Background())
		check(t, err)
		var found []Finding
		for _, f := range r.Findings {
			if strings.HasPrefix(f.Subject, "routes to ") {
				found = append(found, f)
			}
		}
		want := []Finding{{Severity: Warning, Subject: "routes to flannel.1", Remedy: "if it is left over from flannel: ip link del flannel.1, when flanneld has gone",
			Problem: "the host sends 10.244.3.0/24, 10.244.4.0/24 to flannel.1 and not to penstock0: it and routed pods do not reach pods there through Penstock"},
			{Severity: Warning, Subject: "routes to eth1", Remedy: "penstockctl doctor (host-routes) says whether a peer has pods there, and what to do",
				Problem: "the host sends 10.244.220.0/24 to eth1 and not to penstock0: it and routed pods do not reach pods there through Penstock"}}
		if diff := cmp.Diff(want, found); diff != "" {
			t.Errorf("findings about foreign routes:\n%s", diff)
		}
		_, err = Cleanup(context.Background(), "penstock0")
		check(t, err)
		for _, dst := range []string{"10.244.3.0/24", "10.244.4.0/24", "10.99.0.0/16", "10.244.1.0/25"} {
			rt := route(dst)
			if err := netlink.RouteDel(&rt); err != nil {
				t.Errorf("the foreign route %s is gone: %v", dst, err)
			}
		}
	})
}

func TestForeignDeviceIsNotTouched(t *testing.T) {
	host := nstest.New(t)
	host.Device("penstock0")
	host.Do(func() {
		h, err := New(testConfig())
		check(t, err)
		if _, err := h.Apply(context.Background()); err == nil || !strings.Contains(err.Error(), "is a veth and not a TUN") {
			t.Errorf("a veth was taken for ours: %v", err)
		}
		r, err := Cleanup(context.Background(), "penstock0")
		check(t, err)
		if len(r.Findings) != 1 || slices.Contains(r.Removed, "device penstock0") {
			t.Errorf("Cleanup of a foreign device: %+v", r)
		}
		if l, err := netlink.LinkByName("penstock0"); err != nil || l.Attrs().MTU != 1500 {
			t.Errorf("the veth was changed: %v, %v", l, err)
		}
	})
}

// A route, an address and a name that others took away come back, and so do nft rules that were changed by hand.
func TestApplyRepairs(t *testing.T) {
	host := nstest.New(t)
	host.TUN("penstock0")
	cfg := testConfig()
	cfg.Masquerade = true
	h, err := New(cfg)
	check(t, err)
	apply := func() (r Report) {
		host.Do(func() { r, err = h.Apply(context.Background()) })
		check(t, err)
		return r
	}
	apply()
	want := settled(t, host)
	harm := map[string]func(){
		"address removed": func() {
			link, err := netlink.LinkByName("penstock0")
			check(t, err)
			check(t, netlink.AddrDel(link, &netlink.Addr{IPNet: hostNet(netip.MustParseAddr("10.244.1.0"))}))
		},
		"down": func() {
			link, err := netlink.LinkByName("penstock0")
			check(t, err)
			check(t, netlink.LinkSetDown(link))
		},
		"renamed": func() {
			link, err := netlink.LinkByName("penstock0")
			check(t, err)
			check(t, netlink.LinkSetDown(link)) // older kernels rename nothing that is up
			check(t, netlink.LinkSetName(link, "foo0"))
			check(t, netlink.LinkSetUp(link))
		},
		"rule added": func() {
			conn, err := nftables.New()
			check(t, err)
			tb := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
			conn.AddRule(&nftables.Rule{Table: tb, Chain: &nftables.Chain{Name: "output", Table: tb}})
			check(t, conn.Flush())
		},
		"rules flushed": func() {
			conn, err := nftables.New()
			check(t, err)
			tb := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
			conn.FlushTable(tb)
			check(t, conn.Flush())
		},
		"table removed": func() {
			conn, err := nftables.New()
			check(t, err)
			conn.DelTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyINet})
			check(t, conn.Flush())
		},
	}
	for name, do := range harm {
		host.Do(do)
		if r := apply(); !r.Changed() {
			t.Errorf("%s: Apply saw nothing", name)
		}
		// Its local routes come by themselves, as in settled.
		diff := cmp.Diff(want, state(t, host))
		for deadline := time.Now().Add(20 * time.Second); diff != "" && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			diff = cmp.Diff(want, state(t, host))
		}
		if diff != "" {
			t.Errorf("%s: not repaired:\n%s", name, diff)
		}
	}
}
