package cni

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestAtOnce: a runtime attaches a pod's networks at once (go-cni of containerd); one of them gets the default route, and all come up.
func TestAtOnce(t *testing.T) {
	w := newWorld(t)
	for i, kinds := range [][2]string{{"veth", "veth"}, {"tun", "tun"}, {"veth", "tun"}} {
		for range 4 {
			p := w.newPod()
			var cmds []command
			var results []func(*answer)
			for j, name := range []string{"eth0", "eth1"} {
				cmd, finish := w.command(t.Context(), call{verb: "ADD", id: p.id, netns: p.path, ifname: name, conf: map[string]any{"attach": kinds[j]}})
				if err := cmd.start(); err != nil {
					t.Fatal(err)
				}
				cmds, results = append(cmds, cmd), append(results, finish)
			}
			defaults := 0
			for j, cmd := range cmds {
				err := cmd.Wait()
				var a answer
				results[j](&a)
				if err != nil {
					t.Errorf("%v, %d: %s %s", kinds, i, a.out, a.stderr)
					continue
				}
				defaults += strings.Count(string(a.out), `/0"`)
			}
			if defaults != 2 || len(p.rules(t)) != 2 {
				t.Errorf("%v: %d default routes, rules %v", kinds, defaults, p.rules(t))
			}
		}
	}
}

// TestDefaultTaken: a default route that came behind the look, as one to nowhere does, is another's.
func TestDefaultTaken(t *testing.T) {
	w := newWorld(t)
	p := w.newPod()
	p.Do(func() {
		for _, all := range []string{"0.0.0.0/0", "::/0"} {
			dst, _ := netlink.ParseIPNet(all)
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}); err != nil {
				t.Fatal(err)
			}
		}
	})
	r := w.mustAdd(p, "1.1.0", nil)
	expect(t, r, nil, "routes", 0)
	if rules := p.rules(t); len(rules) != 2 {
		t.Errorf("rules: %v", rules)
	}
}

// TestManyAddresses: an ipam plugin may give several addresses of a family, to the first interface and to a further one.
func TestManyAddresses(t *testing.T) {
	w := newWorld(t)
	for i, attach := range []string{"veth", "tun"} {
		p := w.newPod()
		for j, name := range []string{"eth0", "net1"} {
			var ips, want []string
			for n := range 3 {
				want = append(want, fmt.Sprintf("10.244.1.%d/32", 100+50*i+10*j+n))
				ips = append(ips, fmt.Sprintf(`{"address":"10.244.1.%d/24"}`, 100+50*i+10*j+n))
			}
			w.env = append(w.env, `FAKE_IPAM={"cniVersion":"1.1.0","ips":[`+strings.Join(ips, ",")+`]}`)
			c := call{verb: "ADD", id: p.id, netns: p.path, ifname: name, conf: map[string]any{"attach": attach, "ipam": map[string]any{"type": "fakeipam"}}}
			a := w.run(c)
			if a.code != 0 {
				t.Fatalf("%s %s: %d %s", attach, name, a.code, a.msg)
			}
			if name == "eth0" {
				want = nil
			}
			if rules := p.rules(t); !slices.Equal(rules, want) {
				t.Errorf("%s %s: rules are %v, want %v", attach, name, rules, want)
			}
			w.env[len(w.env)-1] = "FAKE_IPAM="
			c.verb, c.conf["prevResult"] = "CHECK", parseResult(t, a.out)
			if a := w.run(c); a.code != 0 {
				t.Errorf("%s %s: %s", attach, name, a.msg)
			}
		}
	}
}

// TestNoOldRules: neither an ADD that fails nor an interface that goes without DEL has rules in the pod for whoever comes next.
func TestNoOldRules(t *testing.T) {
	w := newWorld(t)
	p := w.newPod()
	w.mustAdd(p, "1.1.0", nil)
	c := call{verb: "ADD", id: p.id, netns: p.path, ifname: "net1", conf: map[string]any{"routes": []any{map[string]any{"dst": "0.0.0.0/0"}}}}
	if a := w.run(c); a.code != types.ErrInvalidNetworkConfig || len(p.rules(t)) != 0 {
		t.Errorf("%d %s, rules %v", a.code, a.msg, p.rules(t))
	}
	for _, address := range []string{"10.244.1.90", "10.244.1.91"} {
		c.conf = map[string]any{"runtimeConfig": map[string]any{"ips": []string{address}}}
		if a := w.run(c); a.code != 0 {
			t.Fatal(a.msg)
		}
		rules := p.rules(t)
		if len(rules) != 2 || rules[0] != address+"/32" {
			t.Errorf("%s: rules %v", address, rules)
		}
		if a := w.run(call{verb: "GC", conf: map[string]any{"cni.dev/valid-attachments": []any{map[string]any{"containerID": p.id, "ifname": "eth0"}}}}); a.code != 0 {
			t.Fatal(a.msg)
		}
		p.Do(func() { // as the daemon does it
			l, err := netlink.LinkByName("net1")
			if err == nil {
				err = netlink.LinkDel(l)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
