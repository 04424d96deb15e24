package e2e

import (
	"slices"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestDeviceRenamed: a node whose host.device was changed has one device and its address once, and its pods go on.
func TestDeviceRenamed(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	n := lab.New(t, lab.Config{Nodes: 1}).Nodes[0]
	n.Start(t, "host: {device: foo0}")
	p := n.AddPodByPlugin(t, lab.Veth)
	n.Start(t)
	if names := n.LinkNames(); slices.Contains(names, "foo0") || !slices.Contains(names, "penstock0") {
		t.Errorf("after a restart with another host.device there are %v", names)
	}
	if err := n.Ping(p.IP4); err != nil {
		t.Error(err)
	}
	n.Daemon.Stop(t)
	if _, err := n.StartErr("host: {device: foo0}"); err != nil {
		t.Fatal(err)
	}
	n.Daemon.Stop(t)
	n.Daemon.Rewrite(t)
	n.Daemon.Cleanup(t)
	if names := n.LinkNames(); slices.Contains(names, "foo0") || slices.Contains(names, "penstock0") {
		t.Errorf("after --cleanup there are %v", names)
	}
}
