package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/forwarder/control"
)

// refused checks an error: its code, what it says, that it is one line, and that nothing is left.
func (w *world) refused(p *pod, a answer, code uint, says string) {
	w.t.Helper()
	if a.code != code || !strings.Contains(a.msg, says) || strings.Contains(a.msg, "\n") || len(a.msg) < 15 {
		w.t.Errorf("got %d %q, want %d …%s…", a.code, a.msg, code, says)
	}
	if strings.Contains(a.stderr, "not wholly undone") {
		w.t.Error(a.stderr)
	}
	w.clean(p)
}

// TestRefused: what cannot work ends in its error, for every way to attach, and leaves nothing.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	ips := func(s ...string) map[string]any { return map[string]any{"runtimeConfig": map[string]any{"ips": s}} }
	mac := func(s string) map[string]any { return map[string]any{"runtimeConfig": map[string]any{"mac": s}} }
	ipam := func(s string) map[string]any { return map[string]any{"ipam": map[string]any{"type": s}} }
	shape := func(m map[string]any) map[string]any {
		return map[string]any{"runtimeConfig": map[string]any{"bandwidth": m}}
	}
	const config = types.ErrInvalidNetworkConfig
	taken := w.newPod()
	w.mustAdd(taken, "1.1.0", ips("10.244.1.200"))
	w.lives = map[string]bool{control.DeviceName(taken.id, "eth0"): true}
	for i, test := range []struct {
		name string
		conf map[string]any
		args string
		code uint
		says string
		ipam string // answered by the ipam plugin
		only string // way to attach
	}{
		{name: "unknown attach", conf: map[string]any{"attach": "macvlan"}, code: config, says: `attach "macvlan" is not one of veth, tun and routed`, only: "veth"},
		{name: "attach misspelt", conf: map[string]any{"atach": "tun"}, code: config, says: `penstock has no key "atach" (did you mean "attach"?)`},
		{name: "two misspelt", conf: map[string]any{"ipma": map[string]any{"type": "host-local"}, "route": []any{}}, code: config, says: `no key "ipma" (did you mean "ipam"?), and no key "route" (did you mean "routes"?)`, only: "tun"},
		{name: "a list", conf: map[string]any{"plugins": []any{map[string]any{"type": "penstock"}}}, code: config, says: "a list of plugins", only: "veth"},
		{name: "routed alone", conf: map[string]any{"attach": "routed"}, code: config, says: "no prevResult", only: "veth"},
		{name: "MTU in quotes", conf: map[string]any{"mtu": "1400"}, code: types.ErrDecodingFailure, says: "mtu is a string and must be a whole number", only: "veth"},
		{name: "attach of a number", conf: map[string]any{"attach": 5}, code: types.ErrDecodingFailure, says: "attach is a number and must be a string", only: "veth"},
		{name: "ipam of a list", conf: map[string]any{"ipam": []any{}}, code: types.ErrDecodingFailure, says: ": ipam is a list and must be an object", only: "veth"},
		{name: "negative rate", conf: shape(map[string]any{"ingressRate": -1}), code: types.ErrDecodingFailure, says: "runtimeConfig.bandwidth.ingressRate is -1 and must be a whole number that is not negative", only: "veth"},
		{name: "socket that is none", conf: map[string]any{"socket": "/tmp"}, code: config, says: "socket /tmp is there and is no socket", only: "veth"},
		{name: "MTU of 20", conf: map[string]any{"mtu": 20}, code: config, says: "mtu 20 is not between 68 and 65535"},
		{name: "negative MTU", conf: map[string]any{"mtu": -1}, code: config, says: "mtu -1"},
		{name: "huge MTU", conf: map[string]any{"mtu": 70000}, code: config, says: "mtu 70000"},
		{name: "MTU above the node's", conf: map[string]any{"mtu": 1451}, code: config, says: "mtu 1451 is more than 1450"},
		{name: "MTU under IPv6's", conf: map[string]any{"mtu": 1279}, code: config, says: "1280"},
		{name: "dhcp", conf: ipam("dhcp"), code: config, says: "ipam dhcp cannot work"},
		{name: "no such ipam", conf: ipam("nonsense"), code: types.ErrInternal, says: "nonsense"},
		{name: "ipam refuses", conf: ipam("fakeipam"), code: 101, says: "ipam fakeipam: all taken", ipam: `{"cniVersion":"1.0.0","code":101,"msg":"all taken"}`},
		{name: "ipam without an address", conf: ipam("fakeipam"), code: config, says: "has given no address", ipam: `{"cniVersion":"VERSION"}`},
		{name: "ipam outside", conf: ipam("fakeipam"), code: config, says: "192.168.0.5 lies in none of this node's podCIDRs", ipam: `{"cniVersion":"1.0.0","ips":[{"address":"192.168.0.5/24"}]}`},
		{name: "address in use", conf: ips("10.244.1.200"), code: config, says: "10.244.1.200 is in use"},
		{name: "address outside", conf: ips("10.9.9.9"), code: config, says: "10.9.9.9"},
		{name: "address in CNI_ARGS in use", args: "IP=10.244.1.200", code: config, says: "10.244.1.200 is in use"},
		{name: "no address", conf: ips("ten"), code: config, says: `"ten" is not an IP address`},
		{name: "two of a family", conf: ips("10.244.1.9", "10.244.1.10"), code: config, says: "of one family"},
		{name: "no MAC", conf: mac("xx"), code: config, says: `mac "xx"`, only: "veth"},
		{name: "multicast MAC", conf: mac("01:00:5e:00:00:01"), code: config, says: "mac", only: "veth"},
		{name: "MAC for a tun", conf: mac("02:00:00:00:00:09"), code: config, says: "cannot be given to a tun", only: "tun"},
		{name: "rate without burst", conf: shape(map[string]any{"ingressRate": 5}), code: config, says: "ingressBurst"},
		{name: "burst without rate", conf: shape(map[string]any{"egressBurst": 5}), code: config, says: "egressRate"},
		{name: "route without dst", conf: map[string]any{"routes": []any{nil}}, code: config, says: "no dst"},
		{name: "route by a stranger", conf: map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "gw": "10.244.1.1"}}}, code: config, says: "10.244.1.1 cannot work"},
		{name: "table below zero", conf: map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "table": -1}}}, code: config, says: "routes: table -1 of 10.0.0.0/8 is not between 0 and 4294967295"},
		{name: "table too large", conf: map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "table": 1 << 32}}}, code: config, says: "table 4294967296", only: "veth"},
		{name: "route's MTU", conf: map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "mtu": -5}}}, code: config, says: "mtu -5", only: "tun"},
		{name: "route's priority", conf: map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "priority": -1}}}, code: config, says: "priority -1", only: "veth"},
		{name: "route's scope", conf: map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "scope": 253}}}, code: config, says: "scope 253 of 10.0.0.0/8 cannot be", only: "tun"},
		{name: "ipam's route", conf: ipam("fakeipam"), code: config, says: "advmss -1 of 10.0.0.0/8", ipam: `{"cniVersion":"1.1.0","ips":[{"address":"10.244.1.77/24"}],"routes":[{"dst":"10.0.0.0/8","advmss":-1}]}`},
		{name: "route twice", conf: map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8"}, map[string]any{"dst": "10.0.0.0/8"}}}, code: config, says: "a route to 10.0.0.0/8 in the pod already"},
		{name: "relative socket", conf: map[string]any{"socket": "p.sock"}, code: config, says: "socket"},
		{name: "wrong type", conf: map[string]any{"mtu": "big"}, code: types.ErrDecodingFailure, says: "mtu"},
	} {
		for j, attach := range []string{"veth", "tun"} {
			if test.only != "" && test.only != attach {
				continue
			}
			for _, v := range turn(i + j) {
				t.Run(test.name+"/"+attach+"/"+v, func(t *testing.T) {
					w.t = t
					p := w.newPod()
					conf := map[string]any{"attach": attach}
					for k, x := range test.conf {
						conf[k] = x
					}
					old := w.env
					answer := strings.ReplaceAll(test.ipam, "VERSION", v)
					if v < "1.0.0" {
						answer = strings.ReplaceAll(answer, `"cniVersion":"1.0.0","ips":[{`, `"cniVersion":"`+v+`","ips":[{"version":"4",`)
					}
					w.env = append(w.env, "FAKE_IPAM="+answer)
					w.refused(p, w.add(p, v, conf, test.args), test.code, test.says)
					w.env = old
				})
			}
		}
	}
}

// TestOwnKeys: whoever gives the plugin a key says whether a slip in it is looked for.
func TestOwnKeys(t *testing.T) {
	other := []string{"mtu", "args", "cni.dev/attachments"}
	for f := range reflect.TypeFor[netConf]().Fields() {
		key := f.Tag.Get("json")
		if key == "" || slices.Contains(ownKeys[:], key) || slices.Contains(other, key) {
			continue
		}
		t.Errorf("%s is in neither list", key)
	}
}

// TestRefusedEnvironment: what CNI_NETNS, CNI_IFNAME and CNI_CONTAINERID cannot be.
func TestRefusedEnvironment(t *testing.T) {
	w := newWorld(t)
	p := w.newPod()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const env = types.ErrInvalidEnvironmentVariables
	for _, test := range []struct {
		name string
		c    call
		says string
	}{
		{"file", call{netns: file}, "is not a network namespace"},
		{"directory", call{netns: dir}, "is not a network namespace"},
		{"device", call{netns: "/dev/null"}, "is not a network namespace"},
		{"proc", call{netns: "/proc/self/status"}, "is not a network namespace"},
		{"another kind", call{netns: "/proc/self/ns/mnt"}, "is not a network namespace"},
		{"missing", call{netns: filepath.Join(dir, "none")}, "does not exist"},
		{"relative", call{netns: "self/ns/net"}, "CNI_NETNS self/ns/net is not an absolute path"},
		{"the host's", call{netns: "/proc/self/ns/net"}, "the host's own"},
		{"name too long", call{ifname: "abcdefghijklmnop"}, "too long"},
		{"name with a slash", call{ifname: "a/b"}, "/"},
		{"name beyond ASCII", call{ifname: "é"}, `CNI_IFNAME "é" is no device name`},
		{"name with a control character", call{ifname: "a\x1bb"}, `CNI_IFNAME "a\x1bb" is no device name`},
		{"container", call{id: "a b"}, "containerID"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			c := test.c
			c.verb = "ADD"
			if c.netns == "" {
				c.netns = p.path
			}
			if c.id == "" {
				c.id = p.id
			}
			w.refused(p, w.run(c), env, test.says)
		})
	}
}

// TestNameTaken: an interface that is there stays as it is, and so does a pod that is attached.
func TestNameTaken(t *testing.T) {
	w := newWorld(t)
	for _, attach := range []string{"veth", "tun"} {
		p := w.newPod()
		conf := map[string]any{"attach": attach, "dns": map[string]any{"nameservers": []string{"10.96.0.10"}}}
		w.mustAdd(p, "1.1.0", conf)
		if a := w.add(p, "1.1.0", conf); a.code != types.ErrInvalidNetworkConfig || !strings.Contains(a.msg, "exists already") {
			t.Errorf("a second ADD: %d %s", a.code, a.msg)
		}
		w.inside(p, attach)
		if w.pods[control.PodKey{Container: p.id, Interface: "eth0"}] == nil {
			t.Error("the second ADD has detached what the first had attached")
		}
	}
}

// TestRoutedRefused: where penstock is not the first plugin.
func TestRoutedRefused(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name string
		conf func(p *pod) map[string]any
		says string
	}{
		{"veth behind another", func(p *pod) map[string]any {
			return map[string]any{"attach": "veth", "prevResult": w.bridged(p, "1.1.0", "10.244.1.60/32")}
		}, "cannot follow another plugin"},
		{"ipam too", func(p *pod) map[string]any {
			return map[string]any{"ipam": map[string]any{"type": "fakeipam"}, "prevResult": w.bridged(p, "1.1.0", "10.244.1.60/32")}
		}, "ipam fakeipam cannot be used with attach routed"},
		{"routes too", func(p *pod) map[string]any {
			return map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8"}}, "prevResult": w.bridged(p, "1.1.0", "10.244.1.60/32")}
		}, "routes cannot be used"},
		{"bandwidth", func(p *pod) map[string]any {
			return map[string]any{"prevResult": w.bridged(p, "1.1.0", "10.244.1.60/32"),
				"runtimeConfig": map[string]any{"bandwidth": map[string]any{"ingressRate": 1000, "ingressBurst": 1000}}}
		}, "bandwidth cannot be bounded with attach routed"},
		{"MTU above the node's", func(p *pod) map[string]any {
			return map[string]any{"mtu": 9000, "prevResult": w.bridged(p, "1.1.0", "10.244.1.60/32")}
		}, "mtu 9000 is more than 1450"},
		{"outside", func(p *pod) map[string]any {
			return map[string]any{"prevResult": w.bridged(p, "1.1.0", "172.16.0.9/32")}
		}, "172.16.0.9 lies in none"},
		{"no address", func(p *pod) map[string]any { return map[string]any{"prevResult": w.bridged(p, "1.1.0")} }, "no address"},
		{"no interface", func(p *pod) map[string]any {
			return map[string]any{"prevResult": map[string]any{"cniVersion": "1.1.0", "ips": []any{map[string]any{"address": "10.244.1.60/32"}}}}
		}, "there is no eth0"},
		{"no way", func(p *pod) map[string]any {
			r := w.bridged(p, "1.1.0")
			r["ips"] = []any{map[string]any{"address": "10.244.1.60/32", "interface": 1}}
			return map[string]any{"prevResult": r}
		}, "the host has no route to 10.244.1.60"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			p := w.newPod()
			a := w.add(p, "1.1.0", test.conf(p))
			p.Do(func() { // what the plugin before had made
				if l, err := netlink.LinkByName("eth0"); err == nil {
					netlink.LinkDel(l)
				}
			})
			w.refused(p, a, types.ErrInvalidNetworkConfig, test.says)
		})
	}
}

// TestDaemonSays: every error of the daemon gets its code, at whichever step it comes, and the ADD is undone.
func TestDaemonSays(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/v1/allocate", "/v1/attach"} {
		for code, want := range map[control.Code]uint{
			control.Unsupported: 7, control.Conflict: 7, control.BadRequest: 7, control.Exhausted: 100, control.NoSpace: 5, control.Internal: 999,
		} {
			for _, attach := range []string{"veth", "tun", "routed"} {
				t.Run(fmt.Sprint(path, "/", code, "/", attach), func(t *testing.T) {
					w.t = t
					w.set(func() { w.errs[path] = control.Errorf(code, "this is what the daemon says") })
					defer w.set(func() { delete(w.errs, path) })
					p := w.newPod()
					conf := map[string]any{"attach": attach}
					if attach == "routed" {
						conf["prevResult"] = w.bridged(p, "1.1.0", "10.244.1.61/32")
					}
					a := w.add(p, "1.1.0", conf)
					if attach == "routed" {
						p.Do(func() {
							l, err := netlink.LinkByName("eth0")
							if err != nil {
								t.Fatal("undoing took what another plugin had made")
							}
							netlink.LinkDel(l)
						})
					}
					w.refused(p, a, want, "this is what the daemon says")
				})
			}
		}
	}
}

// TestWaits: ADD waits for a daemon that starts, and gives up with "try again later".
func TestWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	t.Run("not there, then there", func(t *testing.T) {
		w.t = t
		w.stop()
		p := w.newPod()
		time.AfterFunc(700*time.Millisecond, w.start)
		w.mustAdd(p, "1.1.0", nil)
		w.lives = map[string]bool{control.DeviceName(p.id, "eth0"): true}
	})
	t.Run("not ready, then ready", func(t *testing.T) {
		w.t = t
		w.set(func() { w.errs["/v1/allocate"] = control.Errorf(control.NotReady, "starting") })
		time.AfterFunc(500*time.Millisecond, func() { w.set(func() { delete(w.errs, "/v1/allocate") }) })
		p := w.newPod()
		w.mustAdd(p, "1.1.0", nil)
		w.lives[control.DeviceName(p.id, "eth0")] = true
	})
	for name, spoil := range map[string]func(){
		"dead":              w.stop,
		"hangs in allocate": func() { w.set(func() { w.hang["/v1/allocate"] = true }) },
		"hangs in attach":   func() { w.set(func() { w.hang["/v1/attach"] = true }) },
		"never ready": func() {
			w.set(func() { w.errs["/v1/allocate"] = control.Errorf(control.NotReady, "penstockd is starting") })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			w.patience("1s")
			if name == "dead" && !testing.Short() {
				w.patience("") // as it is outside tests
			}
			spoil()
			defer func() { w.stop(); w.start() }()
			p := w.newPod()
			a := w.add(p, "1.1.0", nil)
			for try := 0; try < 3 && a.took > 10*time.Second; try++ { // the machine may be slow to start a process
				a = w.add(p, "1.1.0", nil)
			}
			w.refused(p, a, types.ErrTryAgainLater, "penstockd")
			if waiting, err := control.Pending(w.socket); err != nil || name == "dead" && len(waiting) > 0 {
				t.Errorf("of what no daemon has heard %v is queued, %v", waiting, err)
			}
			if a.took > 10*time.Second { // the daemon is waited for eight
				t.Errorf("it took %v", a.took)
			}
		})
	}
}

// TestStatus: ready, not ready, dead, and hanging: each answered in under a second.
func TestStatus(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name  string
		spoil func()
		code  uint
		says  string
	}{
		{"ready", func() {}, 0, ""},
		{"not ready", func() { w.set(func() { w.notReady = "2 pods wait for adopt" }) }, types.ErrPluginNotAvailable, "2 pods wait for adopt"},
		{"full", func() {
			w.set(func() {
				w.notReady, w.state = "", &control.StateTrouble{Finding: "the state directory /s cannot be written (no space left on device)", Remedy: "make room there"}
			})
		}, types.ErrPluginNotAvailable, "penstockd can add no pod: the state directory /s cannot be written (no space left on device): make room there"},
		{"hangs", func() { w.set(func() { w.hang["/v1/status"] = true }) }, types.ErrPluginNotAvailable, "in time"},
		{"dead", w.stop, types.ErrPluginNotAvailable, "no control socket"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			test.spoil()
			a := w.run(call{verb: "STATUS"})
			for try := 0; try < 10 && a.took > time.Second; try++ { // the machine may be slow to start a process, the plugin may not
				a = w.run(call{verb: "STATUS"})
			}
			if a.code != test.code || !strings.Contains(a.msg, test.says) || a.took > time.Second {
				t.Errorf("%d %q after %v", a.code, a.msg, a.took)
			}
		})
	}
}

// TestStatusOfConfiguration: what no ADD could succeed with STATUS says once.
func TestStatusOfConfiguration(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		conf map[string]any
		code uint
		says string
	}{
		{map[string]any{"attach": "vteh"}, types.ErrInvalidNetworkConfig, `attach "vteh"`},
		{map[string]any{"mtu": 20}, types.ErrInvalidNetworkConfig, "mtu 20"},
		{map[string]any{"mtu": 1451}, 0, ""}, // above the node's, which shrinks at run time
		{map[string]any{"routes": []any{map[string]any{"dst": "10.0.0.0/8", "gw": "10.1.1.1"}}}, types.ErrInvalidNetworkConfig, "leave gw out"},
		{map[string]any{"ipam": map[string]any{"type": "dhcp"}}, types.ErrInvalidNetworkConfig, "ipam dhcp cannot work behind attach veth"},
		{map[string]any{"attach": "routed", "ipam": map[string]any{"type": "host-local"}}, types.ErrInvalidNetworkConfig, "with attach routed"},
		{map[string]any{"plugins": []any{1}}, types.ErrInvalidNetworkConfig, "a list of plugins"},
		{map[string]any{"attach": "routed"}, 0, ""}, // STATUS has no prevResult
		{map[string]any{"attatch": "tun"}, types.ErrInvalidNetworkConfig, `did you mean "attach"?`},
		{map[string]any{"Runtimeconfigs": map[string]any{}}, types.ErrInvalidNetworkConfig, `did you mean "runtimeConfig"?`},
		{map[string]any{"Attach": "tun", "MTU": 1400}, 0, ""}, // as encoding/json reads them
		// What is another's, or put out of use by a mark.
		{map[string]any{"ipMasq": true, "bridge": "cni0", "mode": "l2", "master": "eth0", "isGateway": true, "mru": 5, "mtu6": 5, "rules": 1, "notes": "x", "docker": 1,
			"_mtu": 1, "//attach": "tun", "_routes": 1, "#socket": "x", "": 1, "é": 1, strings.Repeat("attach", 9): 1}, 0, ""},
	} {
		if a := w.run(call{verb: "STATUS", conf: test.conf}); a.code != test.code || !strings.Contains(a.msg, test.says) {
			t.Errorf("%v: %d %s", test.conf, a.code, a.msg)
		}
	}
}

// TestVersions: what the specification says of verbs that a version has not.
func TestVersions(t *testing.T) {
	w := newWorld(t)
	for verb, since := range map[string]string{"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"} {
		for _, v := range versions {
			a := w.run(call{verb: verb, id: "c", netns: "/x", version: v})
			if refused := a.code == types.ErrIncompatibleCNIVersion; refused != (v < since) {
				t.Errorf("%s of %s: %d %s", verb, v, a.code, a.msg)
			}
		}
	}
	for _, v := range []string{"0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0"} {
		if a := w.add(w.newPod(), v, nil); a.code != types.ErrIncompatibleCNIVersion {
			t.Errorf("ADD of %s: %d %s", v, a.code, a.msg)
		}
	}
	a := w.run(call{verb: "VERSION"})
	var s struct{ SupportedVersions []string }
	if json.Unmarshal(a.out, &s) != nil || strings.Join(s.SupportedVersions, " ") != strings.Join(versions, " ") {
		t.Errorf("VERSION: %s", a.out)
	}
}

// TestMixed: pods on a bridge and pods on the daemon cannot share a network on one node. Where the bridge comes first the daemon
// refuses (forwarder/daemon).
func TestMixed(t *testing.T) {
	w := newWorld(t)
	first := w.newPod()
	w.mustAdd(first, "1.1.0", nil)
	device := control.DeviceName(first.id, "eth0")
	w.lives = map[string]bool{device: true}

	p := w.newPod()
	r := w.bridged(p, "1.1.0", "10.244.1.80/24") // the address is not on the interface yet
	p.Do(func() {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		if err == nil {
			err = netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 244, 1, 80).To4(), Mask: net.CIDRMask(24, 32)}})
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	a := w.add(p, "1.1.0", map[string]any{"prevResult": r})
	p.Do(func() {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		netlink.LinkDel(l)
	})
	w.refused(p, a, types.ErrInvalidNetworkConfig, "on its own link")
}
