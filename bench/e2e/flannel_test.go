package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/docs/pages"
)

// TestFlannelPage: a flannel node knows a node by the MAC that flannel had there, and after the commands of docs/flannel.md by ours. The page
// speaks of node-a as the lab makes it.
func TestFlannelPage(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, program := range []string{"ip", "bridge"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip("the page's commands need iproute2: ", err)
		}
	}
	page, err := os.ReadFile(filepath.Join(pages.Root(t), "docs", "flannel.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "<!-- flannel node -->\n```sh\n")
	block, _, found := strings.Cut(block, "```\n<!-- /flannel node -->")
	if !found {
		t.Fatal("docs/flannel.md lacks the commands for a flannel node")
	}

	l := lab.New(t, lab.Config{Roles: []lab.Role{lab.Penstock, lab.KernelVXLAN}})
	l.Start(t)
	a, b := l.Nodes[0], l.Nodes[1]
	ours, theirs := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Plain)
	run := func(script string) {
		t.Helper()
		var out []byte
		err := b.Do(func() (err error) {
			out, err = exec.Command("sh", "-ec", script).CombinedOutput()
			return err
		})
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	old := strings.ReplaceAll(block, a.Daemon.Status(t).VTEPMAC, "fe:5a:f7:fe:70:ee")
	if old == block {
		t.Fatalf("the page does not give node-a the MAC %s", a.Daemon.Status(t).VTEPMAC)
	}
	run(old)
	if !theirs.Silent(ours.IP4) {
		t.Error("a frame for flannel's MAC was taken")
	}
	if a.Daemon.Metrics(t).Dropped()["wrong_vtep_mac"] == 0 {
		t.Error("no drop wrong_vtep_mac, which the page names")
	}
	run(block)
	pingBoth(t, &ours.Host, &theirs.Host)
	for _, to := range []netip.Addr{ours.IP4, a.HostAddr(false)} {
		if err := b.Ping(to); err != nil {
			t.Error(err)
		}
	}
}
