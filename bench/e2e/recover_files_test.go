package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/doctor"
)

// cannotAdd checks that those who ask whether a pod can be added hear why not and what to do, while the node is ready for the others.
func cannotAdd(t *testing.T, n *lab.Node, finding, remedy string) {
	t.Helper()
	list := n.List(nil, lab.Conf{"type": "penstock"})
	var e *types.Error
	if err := n.PluginStatus(list); !errors.As(err, &e) || e.Code != types.ErrPluginNotAvailable || !strings.Contains(e.Msg, finding) || !strings.Contains(e.Msg, remedy) {
		t.Errorf("STATUS: %v", err)
	}
	all := examine(t, n, 1, n.Lab.Nodes[1].Name)
	want(t, all, "state", doctor.Failure, finding)
	if r := all["state"].Remedy; !strings.Contains(r, remedy) {
		t.Errorf("the remedy is %q", r)
	}
	want(t, all, "daemon", doctor.OK, "")
}

// TestControlSocketRemoved: the control socket is put back in seconds, once in the log, and pods are added as before. While it hangs a
// daemon is not taken for one that has ended, nor is one that cannot put its socket back.
func TestControlSocketRemoved(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{})
	av, bv := a.AddPodByPlugin(t, lab.Veth), b.AddPod(t, lab.Veth)
	talk := converse(t, &av.Host, &bv.Host, false)
	talk.goesOn(t, "before")
	answers := func() bool { _, err := a.Daemon.Control().Status(t.Context()); return err == nil }
	for range 2 {
		heals(t, "rm penstock.sock", func() error { return os.Remove(a.Daemon.Socket) }, answers)
	}
	heals(t, "rm penstock.sock.lock", func() error { return os.Remove(a.Daemon.Socket + ".lock") }, func() bool {
		_, err := os.Stat(a.Daemon.Socket + ".lock")
		return err == nil
	})
	says(t, a.Daemon, "a removed socket", "somebody had removed the control socket", 3)
	a.AddPodByPlugin(t, lab.Veth).Remove(t)

	// Something else stands in its place.
	if err := errors.Join(os.Remove(a.Daemon.Socket), os.Mkdir(a.Daemon.Socket, 0o700)); err != nil {
		t.Fatal(err)
	}
	says(t, a.Daemon, "a directory in the way", "somebody has removed the control socket", 1)
	heals(t, "a directory in the way", func() error { return os.Remove(a.Daemon.Socket) }, answers)

	if err := os.Remove(a.Daemon.Socket); err != nil {
		t.Fatal(err)
	}
	if err := a.Daemon.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if !answers() { // it was quicker, or else cannot be
		want(t, examine(t, a, 3), "daemon", doctor.Failure, "runs and forwards, but its control socket")
	}
	if err := a.Daemon.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	heals(t, "SIGSTOP without a socket", func() error { return nil }, answers)
	if err := a.Daemon.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	all := examine(t, a, 3)
	want(t, all, "daemon", doctor.Failure, "hangs")
	want(t, all, "tunnel-port", doctor.OK, "the daemon holds it")
	if r := all["daemon"].Remedy; !strings.Contains(r, "kill -CONT") {
		t.Errorf("the remedy is %q", r)
	}
	if err := a.Daemon.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	talk.goesOn(t, "after all")
	talk.close()
	conserved(t, l)
}

// TestStateRemoved: records that somebody has removed are written again, by the next look or the next ADD, and a restart then knows all
// pods. Where they could not be, doctor prescribes no restart for devices of pods that live.
func TestStateRemoved(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	n := l.Nodes[0]
	state := filepath.Join(filepath.Dir(n.Daemon.Config), "state")
	p := n.AddPodByPlugin(t, lab.Veth)
	file := filepath.Join(state, "pods", p.HostDevice+".json")
	there := func() bool { _, err := os.Stat(file); return err == nil }
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	second := n.AddPodByPlugin(t, lab.Veth)
	await(t, "the first pod's record is back", there)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	n.AddPodByPlugin(t, lab.Veth).Remove(t) // something moves, so that it looks
	await(t, "the record is back", there)
	says(t, n.Daemon, "removed records", "somebody had removed pods' records", 2)
	second.Remove(t)
	n.Start(t)
	if err := n.Ping(p.IP4); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	n.Daemon.Stop(t)
	aside := filepath.Join(t.TempDir(), "aside")
	if err := os.Rename(state, aside); err != nil {
		t.Fatal(err)
	}
	n.Start(t)
	all := examine(t, n, 1)
	want(t, all, "leftovers", doctor.Failure, p.HostDevice)
	if r := all["leftovers"].Remedy; !strings.Contains(r, "move the files of these pods back") {
		t.Errorf("the remedy is %q", r)
	}
	n.Daemon.Stop(t)
	if err := errors.Join(os.RemoveAll(state), os.Rename(aside, state)); err != nil {
		t.Fatal(err)
	}
	n.Start(t)
	if err := n.Ping(p.IP4); err != nil {
		t.Errorf("with the records back: %v", err)
	}
	p.Remove(t)
	nothingLeft(t, n)
}
