package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// needs skips a test where a program that a reference plugin calls is not there.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs the program %s, which a reference plugin calls", p)
		}
	}
}

// plug makes a pod through a list of plugins.
func plug(t *testing.T, n *lab.Node, list []byte, options ...lab.PlugOption) *lab.Pod {
	t.Helper()
	p := n.BarePod(t)
	if _, err := p.Plug(list, options...); err != nil {
		t.Fatal(err)
	}
	return p
}

// kinds are the lists by which a pod of each kind is made on a node.
func kinds(n *lab.Node) map[string][]byte {
	hostLocal := func() lab.Conf {
		return lab.Conf{"type": "host-local", "dataDir": filepath.Join(filepath.Dir(n.Daemon.Config), "host-local"),
			"ranges": []any{[]any{lab.Conf{"subnet": n.PodCIDR4.String()}}, []any{lab.Conf{"subnet": n.PodCIDR6.String()}}},
			"routes": []any{lab.Conf{"dst": "0.0.0.0/0"}, lab.Conf{"dst": "::/0"}}}
	}
	return map[string][]byte{
		"veth": n.List(nil, lab.Conf{"type": "penstock"}),
		"tun":  n.List(nil, lab.Conf{"type": "penstock", "attach": "tun"}),
		// On nodes of their own: two IPAMs cannot share a CIDR, and a bridge's pods look for all of it on their own link.
		"bridge":          n.List(nil, lab.Conf{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": hostLocal()}, lab.Conf{"type": "penstock"}),
		"ptp":             n.List(nil, lab.Conf{"type": "ptp", "ipam": hostLocal()}, lab.Conf{"type": "penstock"}),
		"veth/host-local": n.List(nil, lab.Conf{"type": "penstock", "ipam": hostLocal()}),
		"tun/host-local":  n.List(nil, lab.Conf{"type": "penstock", "attach": "tun", "ipam": hostLocal()}),
	}
}

// reaches checks both families, from one to the other and back.
func reaches(t *testing.T, from, to *lab.Pod) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		if !from.Addr(v6).IsValid() || !to.Addr(v6).IsValid() {
			continue
		}
		if err := from.Ping(to.Addr(v6)); err != nil {
			t.Errorf("%s (%s) → %s: %v", from.Name, from.Addr(v6), to.Addr(v6), err)
		}
	}
}

var deviceOfPod = regexp.MustCompile(`^ps[0-9a-f]{11}$`)

// nothingLeft checks that a node whose pods are all gone has no trace of them.
func nothingLeft(t *testing.T, n *lab.Node) {
	t.Helper()
	for _, name := range n.LinkNames() {
		if deviceOfPod.MatchString(name) {
			t.Errorf("%s: device %s is left", n.Name, name)
		}
	}
	if n.Daemon.Process.Exited() {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	pods, err := n.Daemon.Control().Pods(ctx)
	if err != nil || len(pods) != 0 {
		t.Errorf("%s: the daemon still has %+v, %v", n.Name, pods, err)
	}
	ports, err := n.Daemon.Control().Ports(ctx)
	if err != nil || len(ports) != 0 {
		t.Errorf("%s: the daemon still reads %+v, %v", n.Name, ports, err)
	}
	ipam, err := n.Daemon.Control().IPAM(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, a := range ipam.Addresses {
		if a.State != "waiting" {
			t.Errorf("%s: address %+v is left", n.Name, a)
		}
	}
	for _, dir := range []string{filepath.Join(filepath.Dir(n.Daemon.Config), "state", "pods"), control.PendingDir(n.Daemon.Socket)} {
		entries, _ := os.ReadDir(dir)
		if i := slices.IndexFunc(entries, func(e os.DirEntry) bool { return strings.HasSuffix(e.Name(), ".json") }); i >= 0 {
			t.Errorf("%s: %s is left in %s", n.Name, entries[i].Name(), dir)
		}
	}
}
