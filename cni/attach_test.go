package cni

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/cni/ethtool"
	"github.com/penstock-net/penstock/forwarder/control"
)

var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// turn are the versions in which to run the n-th case of a list: one after the other, so that each is met in every run of the
// tests; with E2E_MATRIX=1 (make matrix) all.
func turn(n int) []string {
	switch {
	case os.Getenv("E2E_MATRIX") == "1":
		return versions
	case testing.Short():
		return versions[len(versions)-1:]
	}
	return versions[n%len(versions):][:1]
}

// get walks through a JSON value: get(r, "ips", 0, "address").
func get(v any, path ...any) any {
	for _, p := range path {
		switch key := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[key]
		case int:
			l, _ := v.([]any)
			if key >= len(l) {
				return nil
			}
			v = l[key]
		}
	}
	return v
}

func expect(t *testing.T, r any, want any, path ...any) {
	t.Helper()
	if got := get(r, path...); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("result %v is %v, want %v", path, got, want)
	}
}

// TestLife: ADD, CHECK, DEL, DEL for every version of the specification and both ways in which the plugin makes the interface.
func TestLife(t *testing.T) {
	w := newWorld(t)
	for _, v := range versions {
		for _, attach := range []string{"veth", "tun"} {
			t.Run(v+"/"+attach, func(t *testing.T) {
				w.t = t
				p := w.newPod()
				conf := map[string]any{"attach": attach, "dns": map[string]any{"nameservers": []string{"10.96.0.10"}}}
				r := w.mustAdd(p, v, conf, "IgnoreUnknown=1", "K8S_POD_NAMESPACE=default", "K8S_POD_NAME=web-0")
				w.result(r, p, v, attach)
				w.inside(p, attach)

				var q control.AttachRequest
				w.last("/v1/attach", &q)
				if q.Owner != "default/web-0" || q.Netns != p.path || q.Network != "penstock" || q.Attach != attach {
					t.Errorf("attach asked for %+v", q)
				}
				if v != "0.3.1" {
					checked := maps.Clone(conf)
					checked["prevResult"] = r
					if a := w.run(call{verb: "CHECK", id: p.id, netns: p.path, version: v, conf: checked}); a.code != 0 {
						t.Errorf("CHECK: %d %s", a.code, a.msg)
					}
				}
				for range 2 {
					if a := w.run(call{verb: "DEL", id: p.id, netns: p.path, version: v, conf: conf}); a.code != 0 {
						t.Errorf("DEL: %d %s", a.code, a.msg)
					}
				}
				w.clean(p)
			})
		}
	}
}

// result checks what ADD has answered.
func (w *world) result(r map[string]any, p *pod, version, attach string) {
	t := w.t
	t.Helper()
	expect(t, r, version, "cniVersion")
	i := 0
	if attach == "veth" {
		i = 1
		expect(t, r, control.DeviceName(p.id, "eth0"), "interfaces", 0, "name")
		expect(t, r, "ee:ee:ee:ee:ee:ee", "interfaces", 0, "mac")
		expect(t, r, nil, "interfaces", 0, "sandbox")
		if mac, _ := get(r, "interfaces", 1, "mac").(string); mac == "" {
			t.Error("the pod's interface has no MAC")
		}
	}
	expect(t, r, "eth0", "interfaces", i, "name")
	expect(t, r, p.path, "interfaces", i, "sandbox")
	expect(t, r, nil, "interfaces", i+1)
	if version == "1.1.0" {
		expect(t, r, 1450, "interfaces", i, "mtu")
	} else {
		expect(t, r, nil, "interfaces", i, "mtu")
	}
	for n, gw := range []string{"169.254.1.1", "fe80::1"} {
		a, _ := get(r, "ips", n, "address").(string)
		if prefix, err := netip.ParsePrefix(a); err != nil || !prefix.IsSingleIP() {
			t.Errorf("address %d is %q", n, a)
		}
		expect(t, r, gw, "ips", n, "gateway")
		expect(t, r, i, "ips", n, "interface")
		expect(t, r, gw, "routes", n, "gw")
	}
	if version < "1.0.0" {
		expect(t, r, "4", "ips", 0, "version")
	}
	expect(t, r, "0.0.0.0/0", "routes", 0, "dst")
	expect(t, r, "::/0", "routes", 1, "dst")
	expect(t, r, "10.96.0.10", "dns", "nameservers", 0)
}

// inside checks what ADD has made.
func (w *world) inside(p *pod, attach string) {
	t := w.t
	t.Helper()
	p.Do(func() {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		at := l.Attrs()
		if at.MTU != 1450 || at.Flags&net.FlagUp == 0 || at.GSOMaxSize != maxSuperframe || at.GSOIPv4MaxSize != maxSuperframe {
			t.Errorf("eth0: %+v", at)
		}
		addresses, _ := netlink.AddrList(l, netlink.FAMILY_ALL)
		global := 0
		for _, a := range addresses {
			ones, bits := a.Mask.Size()
			if a.IP.IsLinkLocalUnicast() {
				continue
			}
			if global++; ones != bits || a.Flags&0x40 != 0 { // IFA_F_TENTATIVE
				t.Errorf("address %v, flags %#x", a, a.Flags)
			}
		}
		if global != 2 {
			t.Errorf("addresses %v", addresses)
		}
		for _, gw := range []netip.Addr{control.Gateway4, control.Gateway6} {
			routes, _ := netlink.RouteList(l, family(gw))
			if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return isDefault(r.Dst) && r.Gw.Equal(gw.AsSlice()) }) {
				t.Errorf("no default route by %s: %v", gw, routes)
			}
			if attach == "tun" {
				continue
			}
			neighbours, _ := netlink.NeighList(at.Index, family(gw))
			if !slices.ContainsFunc(neighbours, func(n netlink.Neigh) bool {
				return n.IP.Equal(gw.AsSlice()) && n.State == netlink.NUD_PERMANENT && n.HardwareAddr.String() == hostMAC.String()
			}) {
				t.Errorf("no permanent entry for %s: %v", gw, neighbours)
			}
		}
		for key, want := range map[string]string{"ipv6/conf/eth0/accept_ra": "0", "ipv6/conf/eth0/accept_dad": "0"} {
			if got := readSysctl(key); got != want {
				t.Errorf("%s is %s", key, got)
			}
		}
		if attach == "veth" {
			features(t, "eth0")
			if at.OperState != netlink.OperUp {
				t.Errorf("eth0 is %s", at.OperState)
			}
		}
	})
	if attach == "tun" {
		return
	}
	w.node.Do(func() {
		device := control.DeviceName(p.id, "eth0")
		l, err := netlink.LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		at := l.Attrs()
		if at.MTU != 1450 || at.OperState != netlink.OperUp || at.GSOMaxSize != maxSuperframe || at.GSOIPv4MaxSize != maxSuperframe ||
			at.HardwareAddr.String() != hostMAC.String() || at.Group != control.DeviceGroup {
			t.Errorf("host end: %+v", at)
		}
		if readSysctl("ipv6/conf/"+device+"/disable_ipv6") != "1" {
			t.Error("the host end speaks IPv6")
		}
		if a, _ := netlink.AddrList(l, netlink.FAMILY_ALL); len(a) != 0 {
			t.Errorf("the host end has addresses: %v", a)
		}
		if readSysctl("ipv4/ip_forward") != "1" || readSysctl("ipv6/conf/all/forwarding") != "1" {
			t.Error("the node does not forward")
		}
	})
}

func features(t *testing.T, device string) {
	t.Helper()
	have, err := ethtool.Features(0, device)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range ethtool.PodFeatures {
		if have[f] {
			t.Errorf("%s: %s is on", device, f)
		}
	}
	if !have["tx-tcp-segmentation"] || have[ethtool.USO] != expressesUSO() {
		t.Errorf("%s: %v", device, have)
	}
}

// bridged makes what the bridge plugin would have made, and its result.
func (w *world) bridged(p *pod, version string, addresses ...string) map[string]any {
	w.t.Helper()
	host := "br" + p.id
	w.node.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = host
		v := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.FD())}
		if err := netlink.LinkAdd(v); err != nil {
			w.t.Fatal(err)
		}
		l, err := netlink.LinkByName(host)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		for _, s := range addresses {
			if err == nil {
				err = netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: netOf(netip.MustParsePrefix(s).Masked()), Scope: netlink.SCOPE_LINK})
			}
		}
		if err != nil {
			w.t.Fatal(err)
		}
	})
	ips := []any{}
	for _, s := range addresses {
		ip := map[string]any{"address": s, "interface": 1}
		if version < "1.0.0" {
			ip["version"] = "4"
			if strings.Contains(s, "::") {
				ip["version"] = "6"
			}
		}
		ips = append(ips, ip)
	}
	return map[string]any{"cniVersion": version, "ips": ips, "interfaces": []any{
		map[string]any{"name": host, "mac": "02:00:00:00:00:01"}, map[string]any{"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": p.path},
	}, "dns": map[string]any{"domain": "example.org"}}
}

// TestRouted: behind another plugin only the daemon is told; the result goes through unchanged, and DEL touches nothing.
func TestRouted(t *testing.T) {
	w := newWorld(t)
	for n, v := range versions {
		t.Run(v, func(t *testing.T) {
			w.t = t
			p := w.newPod()
			addresses := []string{fmt.Sprintf("10.244.1.%d/32", 50+n), fmt.Sprintf("fd00:10:244:1::%d/128", 50+n)}
			previous := w.bridged(p, v, addresses...)
			conf := map[string]any{"prevResult": previous}
			r := w.mustAdd(p, v, conf)
			expect(t, r, v, "cniVersion")
			expect(t, r, addresses[0], "ips", 0, "address")
			expect(t, r, addresses[1], "ips", 1, "address")
			expect(t, r, "br"+p.id, "interfaces", 0, "name")
			expect(t, r, "eth0", "interfaces", 1, "name")
			expect(t, r, nil, "interfaces", 2)
			expect(t, r, "example.org", "dns", "domain")
			var q control.AttachRequest
			w.last("/v1/attach", &q)
			if q.Attach != "routed" || q.MTU != 1500 || len(q.Addresses) != 2 || q.Addresses[0].String()+"/32" != addresses[0] {
				t.Errorf("attach asked for %+v", q)
			}
			if v != "0.3.1" {
				if a := w.run(call{verb: "CHECK", id: p.id, netns: p.path, version: v, conf: map[string]any{"prevResult": r}}); a.code != 0 {
					t.Errorf("CHECK: %d %s", a.code, a.msg)
				}
			}
			for range 2 { // the second without prevResult, as from an empty cache
				if a := w.run(call{verb: "DEL", id: p.id, netns: p.path, version: v, conf: conf}); a.code != 0 {
					t.Errorf("DEL: %d %s", a.code, a.msg)
				}
				conf = nil
			}
			p.Do(func() {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					t.Fatalf("DEL took away what another plugin had made: %v", err)
				}
				netlink.LinkDel(l)
			})
			w.clean(p)
		})
	}
}

// TestDelegated: the addresses come from another ipam plugin, whose gateway and prefix length mean nothing here.
func TestDelegated(t *testing.T) {
	w := newWorld(t)
	for _, attach := range []string{"veth", "tun"} {
		t.Run(attach, func(t *testing.T) {
			w.t = t
			log := w.bin + "/ipam.log"
			os.Remove(log)
			p := w.newPod()
			w.env = append(w.env, `FAKE_IPAM={"cniVersion":"1.1.0","ips":[{"address":"10.244.1.77/24","gateway":"10.244.1.1"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.1"},{"dst":"172.16.0.0/12"}],"dns":{"domain":"a.example"}}`)
			conf := map[string]any{"attach": attach, "ipam": map[string]any{"type": "fakeipam"}}
			r := w.mustAdd(p, "1.1.0", conf)
			expect(t, r, "10.244.1.77/32", "ips", 0, "address")
			expect(t, r, "169.254.1.1", "ips", 0, "gateway")
			expect(t, r, nil, "ips", 1)
			expect(t, r, "0.0.0.0/0", "routes", 0, "dst")
			expect(t, r, "172.16.0.0/12", "routes", 1, "dst")
			expect(t, r, "169.254.1.1", "routes", 1, "gw")
			expect(t, r, nil, "routes", 2)
			expect(t, r, "a.example", "dns", "domain")
			var q control.AllocateRequest
			w.last("/v1/allocate", &q)
			if len(q.Addresses) != 1 || len(q.Requested) != 0 {
				t.Errorf("allocate asked for %+v", q)
			}
			w.env[len(w.env)-1] = "FAKE_IPAM="
			conf["prevResult"] = r
			for _, verb := range []string{"CHECK", "GC", "STATUS", "DEL"} {
				if a := w.run(call{verb: verb, id: p.id, netns: p.path, conf: conf}); a.code != 0 {
					t.Errorf("%s: %d %s", verb, a.code, a.msg)
				}
			}
			calls, _ := os.ReadFile(log)
			for _, verb := range []string{"ADD", "CHECK", "GC", "STATUS", "DEL"} {
				if strings.Count(string(calls), verb) != 1 {
					t.Errorf("the ipam plugin was called with\n%s", calls)
				}
			}
			w.clean(p)
		})
	}
}

// TestTwoInterfaces: the first has the default route, answers of the second leave through the second.
func TestTwoInterfaces(t *testing.T) {
	w := newWorld(t)
	for _, attach := range []string{"veth", "tun"} {
		t.Run(attach, func(t *testing.T) {
			w.t = t
			p := w.newPod()
			conf := map[string]any{"attach": attach}
			w.mustAdd(p, "1.1.0", conf)
			second := call{verb: "ADD", id: p.id, netns: p.path, ifname: "net.1", conf: map[string]any{"attach": attach, "routes": []any{map[string]any{"dst": "198.51.100.0/24"}}}}
			a := w.run(second)
			if a.code != 0 {
				t.Fatalf("%d %s", a.code, a.msg)
			}
			r := parseResult(t, a.out)
			expect(t, r, "198.51.100.0/24", "routes", 0, "dst")
			expect(t, r, nil, "routes", 1)
			p.Do(func() {
				for _, s := range []string{fmt.Sprint(get(r, "ips", 0, "address")), fmt.Sprint(get(r, "ips", 1, "address"))} {
					from := netip.MustParsePrefix(s).Addr()
					to := net.ParseIP("10.244.2.2")
					if from.Is6() {
						to = net.ParseIP("fd00:10:244:2::2")
					}
					l, err := netlink.LinkByName("net.1")
					if err != nil {
						t.Fatal(err)
					}
					routes, err := netlink.RouteGetWithOptions(to, &netlink.RouteGetOptions{SrcAddr: from.AsSlice()})
					if err != nil || len(routes) != 1 || routes[0].LinkIndex != l.Attrs().Index {
						t.Errorf("from %s: %v, %v", from, routes, err)
					}
					if routes, err = netlink.RouteGet(to); err != nil || routes[0].LinkIndex == l.Attrs().Index {
						t.Errorf("what has no source leaves by the second interface: %v, %v", routes, err)
					}
				}
			})
			second.verb = "DEL"
			if a := w.run(second); a.code != 0 {
				t.Errorf("DEL: %s", a.msg)
			}
			w.inside(p, attach) // the first is untouched
			if a := w.run(call{verb: "DEL", id: p.id, netns: p.path}); a.code != 0 {
				t.Errorf("DEL: %s", a.msg)
			}
			w.clean(p)
		})
	}
}

// TestAsked: capabilities and arguments.
func TestAsked(t *testing.T) {
	w := newWorld(t)
	p := w.newPod()
	r := w.mustAdd(p, "1.0.0", map[string]any{"mtu": 1400, "runtimeConfig": map[string]any{
		"ips": []string{"10.244.1.99/24", "fd00:10:244:1::99"}, "mac": "02:11:22:33:44:55",
		"bandwidth": map[string]any{"ingressRate": 1000000, "ingressBurst": 2000000},
	}})
	expect(t, r, "10.244.1.99/32", "ips", 0, "address")
	expect(t, r, "fd00:10:244:1::99/128", "ips", 1, "address")
	expect(t, r, "02:11:22:33:44:55", "interfaces", 1, "mac")
	var q control.AttachRequest
	w.last("/v1/attach", &q)
	if q.MAC != "02:11:22:33:44:55" || q.MTU != 1400 || q.Bandwidth == nil || *q.Bandwidth != (control.Bandwidth{IngressRate: 1000000, IngressBurst: 2000000}) {
		t.Errorf("attach asked for %+v", q)
	}
	p = w.newPod()
	r = w.mustAdd(p, "1.0.0", nil, "FOO=1", "IP=10.244.1.98", "K8S_POD_NAME=we\x1b[31mb\n\u202e", "K8S_POD_NAMESPACE=défaut")
	if w.last("/v1/attach", &q); q.Owner != "défaut/we?[31mb??" {
		t.Errorf("owner %q", q.Owner)
	}
	expect(t, r, "10.244.1.98/32", "ips", 0, "address")
	if get(r, "ips", 1, "address") == nil {
		t.Error("the family that was not asked for is missing")
	}
	p = w.newPod()
	r = w.mustAdd(p, "1.0.0", map[string]any{"args": map[string]any{"cni": map[string]any{"ips": []string{"10.244.1.97"}}}})
	expect(t, r, "10.244.1.97/32", "ips", 0, "address")
}

// TestWithoutIPv6: where the kernel has IPv6 off the pod gets IPv4 and nothing of IPv6 is touched or asked for; an IPv6 address that
// somebody wants is refused.
func TestWithoutIPv6(t *testing.T) {
	w := newWorld(t)
	w.env = append(w.env, "TEST_WITHOUT_IPV6=1")
	for _, attach := range []string{"veth", "tun"} {
		p := w.newPod()
		conf := map[string]any{"attach": attach, "routes": []any{map[string]any{"dst": "fd00:1::/64"}, map[string]any{"dst": "172.16.0.0/12"}}}
		r := w.mustAdd(p, "1.1.0", conf)
		expect(t, r, nil, "ips", 1)
		expect(t, r, "169.254.1.1", "ips", 0, "gateway")
		expect(t, r, "172.16.0.0/12", "routes", 1, "dst")
		expect(t, r, nil, "routes", 2)
		var q control.AllocateRequest
		w.last("/v1/allocate", &q)
		if len(q.Families) != 1 || q.Families[0] != 4 {
			t.Errorf("%s: asked for families %v", attach, q.Families)
		}
		conf["prevResult"] = r
		for _, verb := range []string{"CHECK", "DEL"} {
			if a := w.run(call{verb: verb, id: p.id, netns: p.path, conf: conf}); a.code != 0 {
				t.Errorf("%s: %d %s", verb, a.code, a.msg)
			}
		}
		w.clean(p)
		p = w.newPod()
		w.refused(p, w.add(p, "1.1.0", map[string]any{"attach": attach, "runtimeConfig": map[string]any{"ips": []string{"fd00:10:244:1::99"}}}),
			types.ErrInvalidNetworkConfig, "IPv6 off")
	}
	// What an IPAM gives of it is left out.
	p := w.newPod()
	w.env = append(w.env, `FAKE_IPAM={"cniVersion":"1.1.0","ips":[{"address":"fd00:10:244:1::77/64"},{"address":"10.244.1.77/24"}]}`)
	r := w.mustAdd(p, "1.1.0", map[string]any{"ipam": map[string]any{"type": "fakeipam"}})
	expect(t, r, "10.244.1.77/32", "ips", 0, "address")
	expect(t, r, nil, "ips", 1)
}
