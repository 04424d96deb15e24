package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// snapshot lists what stands in a namespace: devices, addresses, routes, nft tables with their chains and rules. Two of them
// are compared to see what a daemon has left, or has changed.
func snapshot(t *testing.T, n *lab.NS) []string {
	t.Helper()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	links, err := n.Netlink().LinkList()
	if err != nil {
		t.Fatal(err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		add("link %s: %s, mtu %d, txqueuelen %d, up %v", a.Name, l.Type(), a.MTU, a.TxQLen, a.Flags&1 != 0)
		addresses, err := n.Netlink().AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range addresses {
			add("address %s on %s", x.IPNet, a.Name)
		}
	}
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := n.Netlink().RouteListFiltered(f, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Protocol == unix.RTPROT_KERNEL {
				continue // follows from the addresses, in the kernel's own time
			}
			add("route %s via %s dev %s src %s table %d proto %d metric %d type %d", r.Dst, r.Gw, names[r.LinkIndex], r.Src, r.Table, r.Protocol, r.Priority, r.Type)
		}
		rules, err := n.Netlink().RuleList(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			add("rule %d %s table %d mark %x", f, r, r.Table, r.Mark)
		}
	}
	if err := n.Nftables(func(c *nftables.Conn) error {
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		for _, table := range tables {
			add("nft table %d %s", table.Family, table.Name)
		}
		chains, err := c.ListChains()
		if err != nil {
			return err
		}
		for _, chain := range chains {
			add("nft chain %d %s %s %s", chain.Table.Family, chain.Table.Name, chain.Name, chain.Type)
			rules, err := c.GetRules(chain.Table, chain)
			if err != nil {
				return err
			}
			if chain.Name == "penstock-gso" {
				continue // comes and goes with the neighbours on the uplink
			}
			for i, rule := range rules {
				text := ""
				for _, e := range rule.Exprs {
					if _, counts := e.(*expr.Counter); !counts {
						text += fmt.Sprintf(" %T%+v", e, e)
					}
				}
				add("nft rule %d %s %s %d:%s", chain.Table.Family, chain.Table.Name, chain.Name, i, text)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

// settled is the snapshot of a node whose daemon has done what it does behind its start: it redirects superframes when it
// has looked at the uplink.
func settled(t *testing.T, n *lab.Node) []string {
	t.Helper()
	for _, c := range n.Daemon.Status(t).Capabilities {
		if c.Name == "tunnelGSO" && c.Used {
			await(t, "the chain of penstock-gso", func() bool { return strings.Contains(strings.Join(snapshot(t, n.NS), "\n"), "penstock penstock-gso") })
		}
	}
	// The kernel's own link-local addresses come up to a second behind a device (net/core/link_watch.c).
	last, since := snapshot(t, n.NS), time.Now()
	await(t, n.Name+" is at rest", func() bool {
		if now := snapshot(t, n.NS); !slices.Equal(now, last) {
			last, since = now, time.Now()
		}
		return time.Since(since) > 1200*time.Millisecond
	})
	return last
}

// difference says what two snapshots do not share; empty if they are the same.
func difference(before, after []string) string {
	var b strings.Builder
	for _, l := range before {
		if !slices.Contains(after, l) {
			fmt.Fprintf(&b, "\n  gone: %s", l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			fmt.Fprintf(&b, "\n  new:  %s", l)
		}
	}
	return b.String()
}

// logged are a daemon's log lines, each a JSON object.
func logged(t *testing.T, p *lab.Process) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(p.Output()) {
		var m map[string]any
		if !strings.HasSuffix(line, "\n") {
			continue // being written
		}
		if err := json.Unmarshal([]byte(line), &m); err == nil {
			lines = append(lines, m)
		}
	}
	return lines
}

// saying counts the log lines of at least a level whose message holds a text.
func saying(t *testing.T, p *lab.Process, text string) (n int) {
	t.Helper()
	for _, m := range logged(t, p) {
		if msg, _ := m["msg"].(string); strings.Contains(msg, text) {
			n++
		}
	}
	return n
}

// await waits until a condition holds; the test fails if it does not in time.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// launch starts penstockd on a node with a file and arguments of its own, and waits for nothing.
func launch(t *testing.T, n *lab.Node, config string, arguments ...string) *lab.Process {
	t.Helper()
	program := daemonProgram(t, n)
	p, err := n.NS.Start(exec.Command(program, append([]string{"--config", config}, arguments...)...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// daemonProgram is the program that the lab runs: that of the daemon of some node.
func daemonProgram(t *testing.T, n *lab.Node) string {
	t.Helper()
	for _, o := range n.Lab.Nodes {
		if o.Daemon == nil {
			continue
		}
		if path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", o.Daemon.Process.Pid())); err == nil {
			return strings.TrimSuffix(path, " (deleted)")
		}
	}
	t.Fatal("no node of this lab runs a daemon to take the program from")
	return ""
}

func mustPeers(t *testing.T, d *lab.Daemon) []control.Peer {
	t.Helper()
	peers, err := d.Control().Peers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return peers
}
