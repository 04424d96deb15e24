package e2e

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/doctor"
	"github.com/vishvananda/netlink"
)

// examine runs penstockctl doctor on a node and returns the worst check of each name.
func examine(t *testing.T, n *lab.Node, wantStatus int, args ...string) map[string]doctor.Check {
	t.Helper()
	out, status, err := n.Ctl(append([]string{"doctor", "-o", "json", "--conf-dir", t.TempDir(), "--config", n.Daemon.Config}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	var r doctor.Report
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&r); err != nil { // behind it is what goes to standard error
		t.Fatalf("%v\n%s", err, out)
	}
	rank := map[doctor.Result]int{doctor.OK: 0, doctor.Skipped: 0, doctor.Warning: 1, doctor.Failure: 2}
	all := map[string]doctor.Check{}
	for _, c := range r.Checks {
		if c.Result != doctor.OK && c.Result != doctor.Skipped {
			t.Logf("%s: %s: %s (%s)", c.Result, c.Name, c.Finding, c.Remedy)
			if c.Remedy == "" {
				t.Errorf("%s has no remedy", c.Name)
			}
		}
		if have, ok := all[c.Name]; !ok || rank[c.Result] > rank[have.Result] {
			all[c.Name] = c
		}
	}
	if status != wantStatus {
		t.Errorf("exit status %d, want %d:\n%s", status, wantStatus, out)
	}
	return all
}

// want says how a check must have ended and what its finding must hold.
func want(t *testing.T, all map[string]doctor.Check, name string, r doctor.Result, text string) {
	t.Helper()
	if c := all[name]; c.Result != r || !strings.Contains(c.Finding, text) {
		t.Errorf("%s: %s %q, want %s with %q", name, c.Result, c.Finding, r, text)
	}
}

// TestDoctorHealthy: two nodes without a fault have no finding.
func TestDoctorHealthy(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Start(t)
	for _, n := range l.Nodes {
		n.AddPod(t, lab.Veth)
	}
	all := examine(t, l.Nodes[0], 0)
	for name, c := range all {
		if c.Result == doctor.Warning || c.Result == doctor.Failure {
			t.Errorf("%s: %+v", name, c)
		}
	}
	want(t, all, "peer node-b", doctor.OK, "1450 bytes pass both ways")
	want(t, all, "duplicate-address", doctor.OK, "nobody else")
	want(t, all, "firewall", doctor.OK, "")
	for _, n := range doctor.Names {
		if _, ok := all[n.Name]; !ok && n.Name != "peer" {
			t.Errorf("check %s is missing", n.Name)
		}
	}
	conserved(t, l)
}

// TestDoctorFindings: one fault after another, each found by its name, with its remedy and exit status.
func TestDoctorFindings(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 3})
	l.Start(t)
	a, c := l.Nodes[0], l.Nodes[2]
	pod := a.AddPod(t, lab.Veth)

	t.Run("peers", func(t *testing.T) {
		link, err := l.Fabric.Netlink().LinkByName("n1") // a bridge that says nothing about what it loses
		if err == nil {
			err = l.Fabric.Netlink().LinkSetMTU(link, 1400)
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Daemon.Kill()
		all := examine(t, a, 1)
		want(t, all, "peer node-b", doctor.Failure, "more than 1350 bytes are lost on the way (to node-b 1350, from node-b 135")
		want(t, all, "peer node-c", doctor.Failure, "node-c answers that nobody holds UDP 8472 there: penstockd is not running on it")
		if err := l.Fabric.Netlink().LinkSetMTU(link, 1500); err != nil {
			t.Fatal(err)
		}
		want(t, examine(t, a, 1, "node-x", "node-b"), "peer node-x", doctor.Failure, "no such peer")
	})

	t.Run("another machine has the address", func(t *testing.T) {
		eth0, err := c.Netlink().LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		twin := &netlink.Addr{IPNet: &net.IPNet{IP: a.IP4.AsSlice(), Mask: net.CIDRMask(32, 32)}}
		if err := c.Netlink().AddrAdd(eth0, twin); err != nil {
			t.Fatal(err)
		}
		want(t, examine(t, a, 1, "node-b"), "duplicate-address", doctor.Failure, eth0.Attrs().HardwareAddr.String())
		if err := c.Netlink().AddrDel(eth0, twin); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("firewall and agents", func(t *testing.T) {
		drop := nftables.ChainPolicyDrop
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "filter"}
		input := &nftables.Chain{Name: "input", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop}
		if err := a.Nftables(func(c *nftables.Conn) error {
			c.AddTable(table)
			c.AddChain(input)
			c.AddChain(&nftables.Chain{Name: "cali-FORWARD", Table: table})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		all := examine(t, a, 1, "node-b")
		want(t, all, "firewall", doctor.Failure, "udp port 8472 from the peers: the policy of chain input of nft table inet filter")
		want(t, all, "policy-agents", doctor.Failure, "Calico")
		if r := all["policy-agents"].Remedy; !strings.Contains(r, "routed") {
			t.Errorf("the remedy is %q", r)
		}
		want(t, all, "peer node-b", doctor.Failure, "a firewall of this node drops the tunnel")
		if err := a.Nftables(func(c *nftables.Conn) error {
			c.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{17}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, &expr.Cmp{Register: 1, Data: []byte{8472 >> 8, 8472 & 255}},
				&expr.Verdict{Kind: expr.VerdictAccept}}})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		all = examine(t, a, 1, "node-b")
		want(t, all, "firewall", doctor.OK, "")
		want(t, all, "peer node-b", doctor.Warning, "packets from it arrive and are accepted")
		if err := a.Nftables(func(c *nftables.Conn) error { c.DelTable(table); return nil }); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("inside pods", func(t *testing.T) { insidePods(t, a) })

	t.Run("drops", func(t *testing.T) {
		stop := spoof(t, pod)
		defer stop()
		all := examine(t, a, 5, "node-b")
		want(t, all, "drops", doctor.Warning, "spoofed: ")
		want(t, all, "drops", doctor.Warning, pod.IP4.String())
	})

	t.Run("configuration", func(t *testing.T) {
		good, err := os.ReadFile(a.Daemon.Config)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(a.Daemon.Config, append(good, "nonsense: 1\n"...), 0o600); err != nil {
			t.Fatal(err)
		}
		want(t, examine(t, a, 5, "node-b"), "configuration", doctor.Warning, "nonsense")
		a.Daemon.Kill()
		all := examine(t, a, 3)
		want(t, all, "daemon", doctor.Failure, "cannot be reached")
		want(t, all, "configuration", doctor.Failure, "nonsense")
		if err := os.WriteFile(a.Daemon.Config, good, 0o600); err != nil {
			t.Fatal(err)
		}
		all = examine(t, a, 3)
		want(t, all, "tunnel-port", doctor.OK, "nobody")
		want(t, all, "firewall", doctor.OK, "")
		want(t, all, "underlay", doctor.OK, "")
		// While it lives the daemon sets it back at once.
		a.Sysctl(t, "net.ipv4.ip_forward", "0")
		want(t, examine(t, a, 3), "forwarding", doctor.Failure, "net.ipv4.ip_forward")
	})
}

// spoof has a pod send packets with another's source address until it is stopped.
func spoof(t *testing.T, p *lab.Pod) (stop func()) {
	t.Helper()
	packet, err := lab.UDPPacket(netip.MustParseAddrPort("10.244.1.77:5000"), netip.MustParseAddrPort("10.244.2.9:5000"), []byte("not mine"), true)
	if err != nil {
		t.Fatal(err)
	}
	return repeatedly(func() { p.InjectIP(packet) })
}
