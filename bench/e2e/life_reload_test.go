package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/config"
)

// TestReloads: two hundred reloads, by SIGHUP and by the API in turn, of everything that a reload can change, lose and
// reorder nothing.
func TestReloads(t *testing.T) {
	reloads := 200
	if loadFull() {
		reloads = 2000
	}
	l, a, b := twoNodes(t, lab.Config{YAML: []string{"workers: 2"}})
	av, at, bv, bt := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN)
	pairs := [][2]*lab.Host{{&av.Host, &bv.Host}, {&at.Host, &bt.Host}, {&av.Host, &at.Host}}
	tcp := [][2]*lab.Host{{&a.AddPod(t, lab.Veth).Host, &b.AddPod(t, lab.TUN).Host}, {&a.AddPod(t, lab.TUN).Host, &b.AddPod(t, lab.Veth).Host}}
	for _, p := range append(pairs, tcp...) {
		pingBoth(t, p[0], p[1])
	}
	before := a.Daemon.AtRest(t)
	load := startLoad(t, pairs, tcp)
	more := netip.MustParsePrefix("10.244.99.0/24")
	variants := []string{
		"{}",
		peersYAML(asPeer(b, more)),
		"host: {masquerade: true}",
		"encap: {mtu: 1440}",
		"encap: {clampMSS: true}\n" + peersYAML(asPeer(b), peerYAML{"ghost", netip.MustParseAddr("192.0.2.77"), []netip.Prefix{more}}),
		"network: {cidrs: [10.244.0.0/16, 'fd00:10:244::/48', 10.99.0.0/16]}",
		"encap: {copyDSCP: true}",
		peersYAML(asPeer(b)) + "- name: other\n  address: 192.0.2.78\n  encap: udp\n  podCIDRs: [10.244.98.0/24]\n", // opens and closes sockets
	}
	const done = "configuration reloaded"
	for i := range reloads {
		if i%2 == 0 {
			a.Daemon.Reload(t, variants[i/2%len(variants)])
			continue
		}
		n := saying(t, a.Daemon.Process, done)
		a.Daemon.Rewrite(t, variants[(i/2+3)%len(variants)])
		if err := a.Daemon.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		await(t, "a reload by SIGHUP", func() bool { return saying(t, a.Daemon.Process, done) > n })
	}
	load.report(t, l, fmt.Sprintf("%d reloads", reloads))
	a.Daemon.Reload(t)
	for _, p := range pairs {
		pingBoth(t, p[0], p[1])
	}
	onlyOverflows(t, a.Daemon, before)
	conserved(t, l)
}

// view is all that a reload could have changed.
func view(t *testing.T, d *lab.Daemon) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	lines := snapshot(t, d.Node.NS)
	s := d.Status(t)
	lines = append(lines, fmt.Sprintf("status: mtu %d, peers %d, cluster %v, pods %v", s.MTU, s.Peers, s.ClusterCIDRs, s.PodCIDRs))
	peers, err := d.Control().Peers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range peers {
		lines = append(lines, fmt.Sprintf("peer %s %s %v %s %d %s mtu %d", p.Name, p.Address, p.PodCIDRs, p.Encap, p.Port, p.MAC, p.MTU))
	}
	routes, err := d.Control().Routes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		lines = append(lines, fmt.Sprintf("route %+v", r))
	}
	return lines
}

// TestRejectedFiles: a file with a mistake changes nothing, however much else in it is new and right.
func TestRejectedFiles(t *testing.T) {
	t.Parallel()
	l, a, b := twoNodes(t, lab.Config{})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	spare := []netip.Prefix{netip.MustParsePrefix("10.244.51.0/24")}
	// New and right, in every file: another peer list, masquerade, MTU.
	fresh := "host: {masquerade: true}\nencap: {mtu: 1400, clampMSS: true}\n" +
		peersYAML(asPeer(b, netip.MustParsePrefix("10.244.50.0/24")), peerYAML{"third", netip.MustParseAddr("192.0.2.50"), spare})
	settled(t, a)
	before := view(t, a.Daemon)
	check := func(t *testing.T, err error, want ...string) {
		t.Helper()
		if err == nil {
			t.Fatal("the file was taken")
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("the error does not name %q: %v", w, err)
			}
		}
		if d := difference(before, view(t, a.Daemon)); d != "" {
			t.Errorf("the rejected file changed:%s", d)
		}
	}
	for _, c := range []struct{ name, yaml, want string }{
		{"unknown key", "encap: {mtuu: 1400}", "mtuu"},
		{"MTU beyond the underlay", "encap: {mtu: 1490}", "encap.mtu"},
		{"MTU under IPv6's", "encap: {mtu: 1200}", "1280"},
		{"overlapping peers", peersYAML(asPeer(b), peerYAML{"twin", netip.MustParseAddr("192.0.2.60"), []netip.Prefix{b.PodCIDR4}}), "10.244.2.0/24 overlaps"},
		{"a peer twice", peersYAML(asPeer(b), peerYAML{"twin", b.Underlay(), spare}), "192.0.2.2"},
		{"a peer that is this node", peersYAML(asPeer(b), peerYAML{"me", a.Underlay(), spare}), "192.0.2.1 is our own"},
		{"a peer of the other family", peersYAML(asPeer(b), peerYAML{"six", netip.MustParseAddr("2001:db8::60"), spare}), "2001:db8::60"},
		{"a peer in our own pods", peersYAML(asPeer(b), peerYAML{"thief", netip.MustParseAddr("192.0.2.61"), []netip.Prefix{a.PodCIDR4}}), "10.244.1.0/24 overlaps"},
		{"two encapsulations on one port", peersYAML(asPeer(b)) + "- name: odd\n  address: 192.0.2.62\n  encap: udp\n  port: 8472\n  podCIDRs: [10.244.52.0/24]\n", "8472"},
		{"pods' own CIDR taken away", "node: {podCIDRs: [10.244.200.0/24]}", "node.podCIDRs"},
		{"no cluster network", "network: {cidrs: []}", "network.cidrs"},
	} {
		t.Run(c.name, func(t *testing.T) { check(t, a.Daemon.ReloadErr(fresh, c.yaml), c.want) })
	}
	t.Run("no YAML", func(t *testing.T) {
		if err := os.WriteFile(a.Daemon.Config, []byte("node: [\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := a.Daemon.Control().Reload(t.Context())
		check(t, err, "YAML", "penstock.yaml:1")
	})
	t.Run("no file", func(t *testing.T) {
		if err := os.Remove(a.Daemon.Config); err != nil {
			t.Fatal(err)
		}
		_, err := a.Daemon.Control().Reload(t.Context())
		check(t, err, a.Daemon.Config)
	})
	t.Run("by SIGHUP", func(t *testing.T) {
		const refused = "the configuration was not reloaded"
		n := saying(t, a.Daemon.Process, refused)
		a.Daemon.Rewrite(t, fresh, "encap: {mtuu: 1400}")
		if err := a.Daemon.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		await(t, "the log says that the file was refused", func() bool { return saying(t, a.Daemon.Process, refused) > n })
		check(t, fmt.Errorf("%s", a.Daemon.Process.Output()), "mtuu")
	})

	// Keys that only a restart can change are named, each and all of them, and nothing else of the file is taken.
	restart := map[string]string{
		"node.name": "node: {name: renamed}", "node.address": "node: {address: 2001:db8::1}", "encap.type": "encap: {type: udp}", "encap.port": "encap: {port: 4789}",
		"encap.vni": "encap: {vni: 7}", "encap.sourcePorts": "encap: {sourcePorts: 4}", "host.device": "host: {device: other0}",
		"limits.podBuffer": "limits: {podBuffer: 4MiB}", "limits.totalBuffer": "limits: {totalBuffer: 1GiB}", "workers": "workers: 3",
		"native.carrier": "native: {carrier: udp}", "native.port": "native: {port: 7472}", "offload.tunnelGSO": "offload: {tunnelGSO: 'off'}",
		"offload.udpSegment": "offload: {udpSegment: 'off'}", "offload.udpGRO": "offload: {udpGRO: 'off'}", "offload.tunOffload": "offload: {tunOffload: 'off'}",
		"priority": "priority: 'off'", "polling": "polling: 'off'", "offload.tunBatch": "offload: {tunBatch: 'off'}", "offload.mergeWrites": "offload: {mergeWrites: 'off'}", "offload.packetRing": "offload: {packetRing: v3}", "control.socket": "control: {socket: /tmp/other.sock}",
		"debug.listen": "debug: {listen: '127.0.0.1:9999'}", "debug.allowRemote": "debug: {allowRemote: true}", "metrics.listen": "metrics: {listen: '127.0.0.1:9998'}", "state": "state: /tmp/other",
	}
	for _, key := range config.RestartKeys() {
		t.Run(key, func(t *testing.T) {
			y, ok := restart[key]
			if !ok {
				t.Fatalf("this test does not know the key %s", key)
			}
			if key == "node.address" { // peers and address of one family, or the file alone is wrong
				y += "\n" + peersYAML(peerYAML{b.Name, b.IP6, []netip.Prefix{b.PodCIDR4}})
			}
			check(t, a.Daemon.ReloadErr(fresh, y), key+":", "restart")
		})
	}
	t.Run("many at once", func(t *testing.T) {
		some := []string{"workers", "encap.vni", "offload.udpGRO", "state"}
		yamls := []string{fresh}
		for _, k := range some {
			yamls = append(yamls, restart[k])
		}
		check(t, a.Daemon.ReloadErr(yamls...), some...)
	})

	pingBoth(t, &av.Host, &bv.Host)
	a.Daemon.Reload(t, fresh) // without a mistake it is taken
	for _, want := range []string{"status: mtu 1400, peers 2", "peer third 192.0.2.50"} {
		if !slices.ContainsFunc(view(t, a.Daemon), func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("the file without a mistake was not taken: %s is missing", want)
		}
	}
	a.Daemon.Reload(t)
	if d := difference(before, view(t, a.Daemon)); d != "" {
		t.Errorf("the first file again did not bring back what was first:%s", d)
	}
	pingBoth(t, &av.Host, &bv.Host)
	conserved(t, l)
}

// TestReloadAnswer: the API says which keys a reload has changed, and refuses methods and bodies that it does not know.
func TestReloadAnswer(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	d := l.Nodes[0].Daemon
	d.Rewrite(t, "host: {masquerade: true}\nencap: {copyDSCP: true}")
	r, err := d.Control().Reload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := slices.Sorted(slices.Values(r.Changed)); !slices.Equal(got, []string{"encap.copyDSCP", "host.masquerade"}) {
		t.Errorf("changed: %v", got)
	}
	if r, err = d.Control().Reload(t.Context()); err != nil || len(r.Changed) != 0 {
		t.Errorf("the same file again: changed %v, %v", r.Changed, err)
	}
	var answer struct {
		Error struct{ Code, Message string }
	}
	d.Rewrite(t, "nonsense: true")
	if code, err := d.CallControl("POST", "/v1/reload", nil, &answer); err != nil || code < 400 || code > 499 || answer.Error.Code == "" || !strings.Contains(answer.Error.Message, "nonsense") {
		t.Errorf("status %d, %v, %+v", code, err, answer)
	}
	if code, err := d.CallControl("GET", "/v1/reload", nil, nil); err != nil || code != 405 {
		t.Errorf("GET /v1/reload: status %d, %v", code, err)
	}
	if code, err := d.CallControl("GET", "/v1/nothing", nil, nil); err != nil || code != 404 {
		t.Errorf("GET /v1/nothing: status %d, %v", code, err)
	}
	if code, err := d.CallControl("POST", "/v1/attach", bytes.Repeat([]byte("x"), 10<<20), nil); err != nil || code < 400 || code > 499 {
		t.Errorf("ten MiB of nonsense: status %d, %v", code, err)
	}
}

// TestReloadMovesTheNetwork: a file that widens the pods' network and names a peer in the new part is taken whole, and so is the way
// back, which takes both away.
func TestReloadMovesTheNetwork(t *testing.T) {
	t.Parallel()
	l, a, b := twoNodes(t, lab.Config{})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	settled(t, a)
	before := view(t, a.Daemon)
	for range 2 {
		a.Daemon.Reload(t, "network: {cidrs: [10.244.0.0/16, 'fd00:10:244::/48', 10.245.0.0/16]}\n"+
			peersYAML(asPeer(b), peerYAML{"node-c", netip.MustParseAddr("192.0.2.60"), []netip.Prefix{netip.MustParsePrefix("10.245.1.0/24")}}))
		for _, want := range []string{"peer node-c 192.0.2.60", "route {Prefix:10.245.1.0/24 Kind:peer"} {
			if !slices.ContainsFunc(view(t, a.Daemon), func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Errorf("%s is missing", want)
			}
		}
		a.Daemon.Reload(t)
		if d := difference(before, view(t, a.Daemon)); d != "" {
			t.Errorf("the first file again did not bring back what was first:%s", d)
		}
	}
	pingBoth(t, &av.Host, &bv.Host)
	conserved(t, l)
}
