package e2e

import (
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/docs/pages"
)

// TestManualOutput does what docs/penstockctl.md shows, in a network of two nodes: every command, and what it prints. The tables'
// heads, the names in them and what is said must be those of the page; UPDATE=1 writes it anew.
func TestManualOutput(t *testing.T) {
	w := newWalk(t, "penstockctl.md")
	l, a, b := twoNodes(t, lab.Config{})
	named := func(n *lab.Node, name, attach string, options ...lab.PlugOption) *lab.Pod {
		options = append(options, lab.WithArg("K8S_POD_NAMESPACE", "default"), lab.WithArg("K8S_POD_NAME", name))
		return plug(t, n, n.List(nil, lab.Conf{"type": "penstock", "attach": attach, "capabilities": lab.Conf{"bandwidth": true}}), options...)
	}
	web := named(a, "web-0", "veth")
	db := named(a, "db-0", "tun", lab.WithCapability("bandwidth", lab.Conf{"egressRate": 100_000_000, "egressBurst": 10_000_000}))
	far := named(b, "web-1", "veth")
	reaches(t, web, far)
	reaches(t, db, far)
	from, to, nowhere := web.IP4.String(), far.IP4.String(), netip.MustParseAddr("10.244.77.7")
	if !web.Silent(nowhere) {
		t.Error("a pod that is nowhere answers")
	}

	w.run("status", a, 0, "status")("ready yes", "on eth0, MTU 1500", "vxlan, port 8472, VNI 1, VTEP MAC 02:", "10.244.1.0/24 fd00:10:244:1::/64, MTU 1450, 2 attached", "frames/s and", "frames received")
	w.run("pods", a, 0, "pods")("default/web-0", "default/db-0", "-/100M", "attached")
	w.run("ipam", a, 0, "ipam")("10.244.1.0/24", "fd00:10:244:1::/64", from)
	w.run("ports", a, 0, "ports")(web.HostDevice, db.HostDevice)
	w.run("peers", a, 0, "peers")("node-b 192.0.2.2", "vxlan:8472 vni 1", "1450")
	w.run("routes", a, 0, "routes")("10.244.2.0/24 peer node-b 192.0.2.2")
	w.run("fdb", a, 0, "fdb")("192.0.2.2 8472 node-b")
	w.run("drops", a, 0, "drops")("no_route", "→")

	stop := repeatedly(func() { web.Ping(far.IP4) })
	w.run("top", a, 0, "top", "-n", "1")("default/web-0/eth0", "default/db-0/eth0", "node-b")
	w.run("capture", a, 0, "capture", "-c", "4", "--pod", "default/web-0", "--peer", "node-b")("from-pod", "to-peer", "4 frames captured")
	stop()
	w.run("trace", a, 0, "trace", "default/web-0", to, "--proto", "tcp")("source "+from+" is an address of that pod", "route 10.244.2.0/24 leads to peer node-b 192.0.2.2", "ttl 64 becomes 63",
		"bytes fit 1450 (underlay 1500 less 50 for vxlan)", "it would be sent to the peer") // its last steps depend on the kernel
	w.run("trace/drop", a, 6, "trace", from, nowhere.String())("it would be dropped: no_route")

	w.run("doctor", a, 0, "doctor")("0 failures, 0 warnings", "answers in")
	w.run("bench", a, 0, "bench", "node-b", "--time", "600ms")("node-b, by its host's address 10.244.2.0", "p50", "datagrams/s", "bit/s")
	w.bundle(a)

	a.Daemon.Rewrite(t, "encap: {mtu: 1400}")
	w.run("reload", a, 0, "reload")("reloaded; changed: encap.mtu")
	a.Daemon.Rewrite(t, "encap: {vni: 7}")
	w.run("reload/refused", a, 4, "reload")("encap.vni", "restart")
	w.run("loglevel", a, 0, "loglevel", "debug")("debug")
	w.run("attach", a, 0, "attach", "by-hand", "eth0", "--attach", "tun", "--device", "tun-by-hand", "--address", "10.244.1.77")("attached by-hand/eth0: tun tun-by-hand, 10.244.1.77, MTU")
	w.run("detach", a, 0, "detach", "by-hand", "eth0")()

	a.Daemon.Rewrite(t)
	w.run("config/check", a, 0, "config", "check")("/etc/penstock/penstock.yaml is valid in itself")
	a.Daemon.Rewrite(t, "encap: {type: gre, mtu: 20}\npears: []")
	w.run("config/wrong", a, 4, "config", "check")("mistakes", "gre", "pears")
	w.run("version", a, 0, "version")("penstockctl", "penstockd")

	w.run("cni/print", a, 0, "cni", "install", "--print")(`"type": "penstock"`, `"socket": "/run/penstock/penstock.sock"`)
	w.run("cni/install", a, 0, "cni", "install")("wrote /opt/cni/bin/penstock", "wrote /etc/cni/net.d/05-penstock.conflist")
	for _, p := range []*lab.Pod{web, db} {
		p.Unplug(t)
	}
	w.run("cni/uninstall", a, 0, "cni", "uninstall")("removed /etc/cni/net.d/05-penstock.conflist", "removed /opt/cni/bin/penstock")

	w.sameNames("status", "ports", "routes", "fdb", "top", "trace/drop", "doctor", "bench", "cni/print")
	w.finish()
	conserved(t, l)
}

// bundle is support-bundle, whose file must not lie in the test's directory.
func (w *walk) bundle(n *lab.Node) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "node-a.tar.gz")
	out, status, err := n.Ctl(located(n, []string{"support-bundle", "-f", file})...)
	if err != nil || status != 0 {
		w.t.Errorf("support-bundle: exit status %d, %v\n%s", status, err, out)
	}
	w.shows("support-bundle", n.Name+"# penstockctl support-bundle -f node-a.tar.gz", strings.ReplaceAll(out, file, "node-a.tar.gz"), "wrote node-a.tar.gz")
}

var number = regexp.MustCompile(`^\d+$`)

// names are what the rows of an output are about: their first cells, or the second ones behind a number or a result.
func names(out string) (all []string) {
	for line := range strings.Lines(out) {
		row := cells(times.ReplaceAllString(line, "T"))
		if len(row) > 1 && (number.MatchString(row[0]) || slices.Contains([]string{"ok", "skipped", "warning", "failure"}, row[0])) {
			row = row[1:]
		}
		if len(row) == 1 {
			row[0] = plain(row[0])
		}
		if row[0] != "" && !strings.HasPrefix(line, "```") && !strings.HasPrefix(line, "   ") {
			all = append(all, row[0])
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// sameNames: what the page's rows are about is what the printed rows are about, and the other way round.
func (w *walk) sameNames(keys ...string) {
	w.t.Helper()
	for _, key := range keys {
		command, out, _ := strings.Cut(w.printed[key], "\n")
		block := strings.TrimPrefix(w.page.Block("out: "+key), "```console\n"+command+"\n")
		passing := func(row string) bool { return strings.HasPrefix(row, "dropping ") } // neighbour discovery, seen by top or not
		is, was := slices.DeleteFunc(names(layOut(out, 120)), passing), slices.DeleteFunc(names(block), passing)
		if !slices.Equal(is, was) {
			w.t.Errorf("%s shows under %s rows of %q, and %s prints %q", w.page.Name, key, was, command, is)
		}
	}
}

// TestManualReadsRows: a page on which a row was renamed, or is too many, is found out.
func TestManualReadsRows(t *testing.T) {
	const out = "HEAD  X\nname one  yes\n 1  from    a pod\n12  to      5.3ms\nok  check   fine\n\nit took 5ms\n"
	if got := strings.Join(names(out), ", "); got != "HEAD, check, from, it took T, name one, to" {
		t.Error(got)
	}
	if pages.Updating() {
		return
	}
	if slices.Equal(names(out), names(strings.Replace(out, "check", "cheque", 1))) {
		t.Error("a renamed check is not seen")
	}
}
