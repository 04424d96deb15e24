package hostnet

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// useIPTables makes iptables and ip6tables the given variant ("nft", "legacy") for this test; without programs of that
// name the test is skipped.
func useIPTables(t *testing.T, variant string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "iptables") // and not t.TempDir, which root alone may enter
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	for _, name := range []string{"iptables", "ip6tables"} {
		path, err := exec.LookPath(name + "-" + variant)
		if err != nil {
			t.Skipf("needs %s-%s: install the package iptables", name, variant)
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			t.Fatal(err)
		}
		check(t, os.Symlink(path, filepath.Join(dir, name)))
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func iptablesRun(t *testing.T, ns *nstest.NS, args ...string) (out string) {
	t.Helper()
	ns.Do(func() {
		b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", args, err, b)
		}
		out = string(b)
	})
	return out
}

func TestForward(t *testing.T) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) { testForward(t, variant) })
	}
}

func testForward(t *testing.T, variant string) {
	useIPTables(t, variant)
	host, outside, tun := node(t)
	outside.Route("10.244.0.0/16", "192.0.2.1")
	host.Do(func() {
		if b, err := exec.Command("iptables", "-P", "FORWARD", "DROP").CombinedOutput(); err != nil {
			t.Skipf("iptables-%s does not work here: %s", variant, b)
		}
		if b, err := exec.Command("ip6tables", "-P", "FORWARD", "DROP").CombinedOutput(); err != nil {
			t.Skipf("ip6tables-%s does not work here: %s", variant, b)
		}
	})
	iptablesRun(t, host, "iptables", "-A", "FORWARD", "-s", "10.244.66.0/24", "-j", "DROP")
	list := func() string {
		return iptablesRun(t, host, "iptables", "-S") + iptablesRun(t, host, "ip6tables", "-S")
	}
	before := list()
	cfg := testConfig()
	r := apply(t, host, cfg)
	warned := slices.ContainsFunc(r.Findings, func(f Finding) bool { return strings.HasSuffix(f.Subject, "tables FORWARD") })
	if warned != (variant == "nft") { // legacy's policy shows to nobody but itself
		t.Errorf("host.forward off, policy drop: findings %v", r.Findings)
	}
	if got := list(); got != before {
		t.Errorf("host.forward off changed iptables:\n%s", cmp.Diff(before, got))
	}
	l := listenUDP(t, outside, "192.0.2.2:9000")
	reaches := func() bool {
		_, err := unix.Write(tun, udpPacket(t, "10.244.1.5", "192.0.2.2", 4444, 9000))
		check(t, err)
		return sender(l, 300*time.Millisecond).Addr() == netip.MustParseAddr("10.244.1.5")
	}
	if reaches() {
		t.Fatal("FORWARD does not drop, so nothing is tested")
	}

	cfg.Forward = true
	r = apply(t, host, cfg)
	if len(r.Added) != 6 || !slices.Contains(r.Added, "iptables rule FORWARD -j PENSTOCK-FWD") || !slices.Contains(r.Added, "ip6tables rule FORWARD -j PENSTOCK-FWD") {
		t.Errorf("added %q", r.Added)
	}
	if !reaches() {
		t.Errorf("still dropped:\n%s", list())
	}
	want := list()
	if r = apply(t, host, cfg); r.Changed() {
		t.Errorf("a second Apply changed something: %+v", r)
	}

	// By hand: a rule too many, one twice, one too few, the jump gone.
	for _, args := range [][]string{
		{"-I", ForwardChain, "-p", "tcp", "-j", "DROP"},
		{"-A", ForwardChain, "-s", "10.244.0.0/16", "-m", "comment", "--comment", "penstock pods", "-j", "ACCEPT"},
		{"-D", ForwardChain, "-d", "10.244.0.0/16", "-m", "comment", "--comment", "penstock pods", "-j", "ACCEPT"},
		{"-D", "FORWARD", "-m", "comment", "--comment", jumpComment, "-j", ForwardChain},
	} {
		iptablesRun(t, host, append([]string{"iptables"}, args...)...)
	}
	apply(t, host, cfg)
	sorted := func(s string) []string { return slices.Sorted(strings.Lines(s)) }
	if diff := cmp.Diff(sorted(want), sorted(list())); diff != "" {
		t.Errorf("not repaired:\n%s", diff)
	}

	cfg.Cluster = prefixes("10.244.0.0/15")
	cfg.PodCIDRs = prefixes("10.244.1.0/24")
	apply(t, host, cfg)
	if got := list(); strings.Contains(got, "10.244.0.0/16") || !strings.Contains(got, "-s 10.244.0.0/15") || strings.Contains(got, "fd00") {
		t.Errorf("after network.cidrs changed:\n%s", got)
	}

	host.Do(func() {
		r, err := Cleanup(context.Background(), "penstock0")
		check(t, err)
		if !slices.Contains(r.Removed, "iptables chain PENSTOCK-FWD") {
			t.Errorf("removed: %q", r.Removed)
		}
	})
	if got := list(); got != before {
		t.Errorf("Cleanup left:\n%s", cmp.Diff(before, got))
	}
}

// Asking iptables about a table that is not there would make it.
func TestForwardOffMakesNoTables(t *testing.T) {
	useIPTables(t, "nft")
	host := nstest.New(t)
	host.TUN("penstock0")
	apply(t, host, testConfig())
	for line := range strings.Lines(state(t, host)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "table ") && !strings.HasSuffix(line, " penstock") {
			t.Errorf("iptables made a %s", line)
		}
	}
}

// Without the program, what matters is whether anything drops.
func TestForwardWithoutProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	host := nstest.New(t)
	host.TUN("penstock0")
	cfg := testConfig()
	cfg.Forward = true
	severities := func() map[string]Severity {
		out := map[string]Severity{}
		for _, f := range apply(t, host, cfg).Findings {
			if strings.HasSuffix(f.Subject, "FORWARD") {
				out[f.Subject] = f.Severity
				t.Log(f)
			}
		}
		return out
	}
	if diff := cmp.Diff(map[string]Severity{"iptables FORWARD": Info, "ip6tables FORWARD": Info}, severities()); diff != "" {
		t.Error(diff)
	}
	host.Do(func() {
		conn, err := nftables.New()
		check(t, err)
		drop := nftables.ChainPolicyDrop
		tb := conn.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
		conn.AddChain(&nftables.Chain{Name: "FORWARD", Table: tb, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		check(t, conn.Flush())
	})
	if diff := cmp.Diff(map[string]Severity{"iptables FORWARD": Failure, "ip6tables FORWARD": Info}, severities()); diff != "" {
		t.Error(diff)
	}
	cfg.Forward = false
	if diff := cmp.Diff(map[string]Severity{"iptables FORWARD": Warning}, severities()); diff != "" {
		t.Error(diff)
	}
}
