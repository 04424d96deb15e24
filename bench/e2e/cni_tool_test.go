package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/penstock-net/penstock/bench/lab"
)

// tool is the CNI project's cnitool on a node, with directories of its own.
type tool struct {
	t       *testing.T
	n       *lab.Node
	program string
	path    string
	dir     string
}

func newTool(t *testing.T, n *lab.Node, plugins ...string) *tool {
	t.Helper()
	dirs, err := lab.PluginPath(plugins...)
	if err != nil {
		t.Fatal(err)
	}
	built, err := lab.ReferencePlugins("cnitool")
	if err != nil {
		t.Fatal(err)
	}
	return &tool{t: t, n: n, program: filepath.Join(built, "cnitool"), path: strings.Join(dirs, ":"), dir: t.TempDir()}
}

// configure writes the list in force.
func (c *tool) configure(list []byte) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, "10-test.conflist"), list, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// run runs cnitool inside the node. Its cache of results is the machine's, under a container id that follows from the namespace's
// path, so each test forgets what another process had under the same path.
func (c *tool) run(verb string, p *lab.Pod, env ...string) (string, error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	netns := "/none"
	if p != nil {
		netns = p.NetnsPath()
	}
	cmd := exec.CommandContext(ctx, c.program, verb, "penstock", netns)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "NETCONFPATH=" + c.dir, "CNI_PATH=" + c.path}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := c.n.Do(cmd.Run); err != nil {
		return out.String(), fmt.Errorf("cnitool %s: %w\n%s%s", verb, err, out.String(), errs.String())
	}
	return out.String(), nil
}

func (c *tool) must(verb string, p *lab.Pod, env ...string) string {
	c.t.Helper()
	out, err := c.run(verb, p, env...)
	if err != nil {
		c.t.Error(err)
	}
	return out
}

// take makes the pod what ADD's result says.
func (c *tool) take(p *lab.Pod, out string) {
	c.t.Helper()
	r, err := create.CreateFromBytes([]byte(out))
	if err != nil {
		c.t.Fatalf("%s: %v", out, err)
	}
	full, err := current.NewResultFromResult(r)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, ip := range full.IPs {
		if a, _ := netip.AddrFromSlice(ip.Address.IP); a.Unmap().Is4() {
			p.IP4 = a.Unmap()
		} else {
			p.IP6 = a
		}
	}
}

// TestCNITool: cnitool's verbs, for every version of the specification and every way to attach.
func TestCNITool(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	far := b.AddPodByPlugin(t, lab.Veth)
	c := newTool(t, a, "ptp", "host-local")
	c.configure(a.List(nil, lab.Conf{"type": "penstock"}))
	c.must("status", nil)
	hostLocal := lab.Conf{"type": "host-local", "dataDir": filepath.Join(t.TempDir(), "host-local"),
		"ranges": []any{[]any{lab.Conf{"subnet": a.PodCIDR4.String()}}, []any{lab.Conf{"subnet": a.PodCIDR6.String()}}},
		"routes": []any{lab.Conf{"dst": "0.0.0.0/0"}, lab.Conf{"dst": "::/0"}}}
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		for name, plugins := range map[string][]lab.Conf{
			"veth": {{"type": "penstock"}},
			"tun":  {{"type": "penstock", "attach": "tun"}},
			// One after the other: a CIDR has one IPAM at a time. The bridge would keep its route to all of it.
			"routed": {{"type": "ptp", "ipam": hostLocal}, {"type": "penstock", "attach": "routed"}},
		} {
			t.Run(version+"/"+name, func(t *testing.T) {
				c.t = t
				c.configure(a.List(lab.Conf{"cniVersion": version}, plugins...))
				p := a.BarePod(t)
				c.take(p, c.must("add", p))
				reaches(t, p, far)
				reaches(t, far, p)
				if version != "0.3.1" {
					c.must("check", p)
				}
				if version == "1.1.0" {
					c.must("status", nil)
				}
				if version == "1.1.0" && name != "routed" { // the reference ipam does not know its pods by network
					c.must("gc", p) // cnitool says that nothing is valid
					if !p.Silent(far.IP4) {
						t.Error("a collected pod still reaches others")
					}
				}
				for range 2 {
					c.must("del", p)
				}
				nothingLeft(t, a)
			})
		}
	}
	a.Daemon.AssertConserved(t)
}

// TestCNIToolRefuses: the errors of the specification arrive where a person reads them.
func TestCNIToolRefuses(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Nodes[0].Start(t)
	a := l.Nodes[0]
	c := newTool(t, a, "host-local", "static")
	first := plug(t, a, a.List(nil, lab.Conf{"type": "penstock", "capabilities": lab.Conf{"ips": true}}), lab.WithCapability("ips", []string{"10.244.1.100"}))
	for _, test := range []struct {
		name string
		conf lab.Conf
		env  []string
		says string
	}{
		{"unknown attach", lab.Conf{"attach": "ipvlan"}, nil, "ipvlan"},
		{"MTU of 20", lab.Conf{"mtu": 20}, nil, "mtu 20"},
		{"MTU above the node's", lab.Conf{"mtu": 9000}, nil, "mtu 9000 is more than"},
		{"MTU under IPv6's", lab.Conf{"mtu": 1200}, nil, "1280"},
		{"dhcp", lab.Conf{"ipam": lab.Conf{"type": "dhcp"}}, nil, "dhcp"},
		{"outside", lab.Conf{"ipam": lab.Conf{"type": "static", "addresses": []any{lab.Conf{"address": "192.168.7.7/24"}}}}, nil, "192.168.7.7"},
		{"two IPAMs", lab.Conf{"ipam": lab.Conf{"type": "static", "addresses": []any{lab.Conf{"address": "10.244.1.90/24"}}}}, nil, "10.244.1.0/24"},
		{"in use", lab.Conf{}, []string{"CNI_ARGS=IgnoreUnknown=1;IP=10.244.1.100"}, "10.244.1.100"},
		{"the host's own", lab.Conf{}, []string{"CNI_ARGS=IgnoreUnknown=1;IP=10.244.1.0"}, "10.244.1.0"},
		{"name too long", lab.Conf{}, []string{"CNI_IFNAME=abcdefghijklmnopq"}, "too long"},
	} {
		for _, attach := range []string{"veth", "tun"} {
			t.Run(test.name+"/"+attach, func(t *testing.T) {
				c.t = t
				conf := lab.Conf{"type": "penstock", "attach": attach}
				for k, v := range test.conf {
					conf[k] = v
				}
				c.configure(a.List(nil, conf))
				p := a.BarePod(t)
				out, err := c.run("add", p, test.env...)
				if err == nil {
					t.Fatalf("it went through: %s", out)
				}
				if !strings.Contains(err.Error(), test.says) {
					t.Errorf("%v", err)
				}
				if names := p.LinkNames(); len(names) != 1 {
					t.Errorf("the pod has %v", names)
				}
			})
		}
	}
	first.Remove(t)
	nothingLeft(t, a)
}

// TestCNIDelegated: addresses from static, on a CIDR that the daemon's own IPAM does not give from.
func TestCNIDelegated(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	far := b.AddPodByPlugin(t, lab.TUN)
	for _, attach := range []string{"veth", "tun"} {
		ipam := lab.Conf{"type": "static", "addresses": []any{lab.Conf{"address": "10.244.1.33/24", "gateway": "10.244.1.1"}, lab.Conf{"address": "fd00:10:244:1::33/64"}}}
		p := plug(t, a, a.List(nil, lab.Conf{"type": "penstock", "attach": attach, "ipam": ipam}))
		if p.IP4.String() != "10.244.1.33" || p.IP6.String() != "fd00:10:244:1::33" {
			t.Errorf("addresses %s and %s", p.IP4, p.IP6)
		}
		reaches(t, p, far)
		reaches(t, far, p)
		if err := p.Check(); err != nil {
			t.Error(err)
		}
		p.Remove(t)
	}
	// By CNI_ARGS static has a gateway, too, and compares it in CHECK.
	p := plug(t, a, a.List(nil, lab.Conf{"type": "penstock", "ipam": lab.Conf{"type": "static"}}), lab.WithArg("IP", "10.244.1.34/24"), lab.WithArg("GATEWAY", "10.244.1.1"))
	if err := p.Check(); err != nil || p.IP4.String() != "10.244.1.34" {
		t.Errorf("%s, %v", p.IP4, err)
	}
	p.Remove(t)
	nothingLeft(t, a)
	p = a.BarePod(t)
	list := a.List(nil, lab.Conf{"type": "penstock", "capabilities": lab.Conf{"ips": true, "mac": true}})
	if _, err := p.Plug(list, lab.WithCapability("ips", []string{"10.244.1.44/24"}), lab.WithCapability("mac", "02:00:00:00:44:44"),
		lab.WithArg("K8S_POD_NAMESPACE", "default"), lab.WithArg("K8S_POD_NAME", "web-0")); err != nil {
		t.Fatal(err)
	}
	if p.IP4.String() != "10.244.1.44" || p.MAC.String() != "02:00:00:00:44:44" {
		t.Errorf("%s, %s", p.IP4, p.MAC)
	}
	reaches(t, far, p)
	pods, err := a.Daemon.Control().Pods(t.Context())
	if err != nil || len(pods) != 1 || pods[0].Owner != "default/web-0" {
		t.Errorf("%+v, %v", pods, err)
	}
	a.Daemon.AssertConserved(t)
}
