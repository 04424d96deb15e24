package e2e

import (
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestForgottenState: a restart with another, empty state directory costs the pods their network and not their devices; with the old
// directory they have it again.
func TestForgottenState(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	n := l.Nodes[0]
	old := "state: " + t.TempDir()
	n.Start(t, old)
	p := n.AddPodByPlugin(t, lab.Veth)
	if err := n.Ping(p.IP4); err != nil {
		t.Fatal(err)
	}
	n.Daemon.Stop(t)
	if _, err := n.StartErr("state: " + t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if got := saying(t, n.Daemon.Process, "the state directory is new"); got != 1 {
		t.Errorf("warned %d times", got)
	}
	if pods, err := n.Daemon.Control().Pods(t.Context()); err != nil || len(pods) != 0 {
		t.Errorf("%+v, %v", pods, err)
	}
	n.Start(t, old)
	if err := n.Ping(p.IP4); err != nil {
		t.Error(err)
	}
	p.Remove(t)
	nothingLeft(t, n)
	n.Daemon.Stop(t) // or it puts back what goes with the test's directories
}

// TestLostDelete: a pod whose namespace goes without a DEL gives its address back while the daemon runs.
func TestLostDelete(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	n := l.Nodes[0]
	stays, lost := n.AddPodByPlugin(t, lab.Veth), n.AddPodByPlugin(t, lab.Veth)
	lost.NS.Close()
	await(t, "the pod is collected", func() bool {
		n.AddPodByPlugin(t, lab.Veth).Remove(t) // something moves, so that it looks
		pods, err := n.Daemon.Control().Pods(t.Context())
		return err == nil && len(pods) == 1
	})
	if err := n.Ping(stays.IP4); err != nil {
		t.Error(err)
	}
	stays.Remove(t)
	nothingLeft(t, n)
}
