package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/doctor"
)

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
