package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

const unitFile = "cmd/penstockd/penstockd.service"

// TestUnderServiceManager: what a service manager sees of a real daemon. It is ready, feeds the watchdog as long as it runs and not
// a moment longer, frames its reloads, and gets its TUNs' queues back from the descriptor store, without penstock adopt.
func TestUnderServiceManager(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	n := l.Nodes[0]
	const watchdog = 900 * time.Millisecond
	m := lab.NewManager(t, l, watchdog)
	n.Wrap = m.Wrap
	d := n.Start(t)
	wait := func(mark int, key, part string) {
		t.Helper()
		if _, err := m.Wait(mark, key, part, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	wait(0, "READY", "1")
	wait(0, "STATUS", "Forwarding: vxlan")

	// Stopped it feeds nothing; let go it feeds again.
	wait(m.Mark(), "WATCHDOG", "1")
	if err := d.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(watchdog / 3) // one may be on its way
	mark := m.Mark()
	if notice, err := m.Wait(mark, "WATCHDOG", "1", 2*watchdog); err == nil {
		t.Errorf("a stopped daemon feeds its watchdog: %v", notice)
	}
	d.Process.Signal(syscall.SIGCONT)
	wait(mark, "WATCHDOG", "1")

	mark = m.Mark()
	if err := d.ReloadErr("encap: {type: gre}\n"); err == nil {
		t.Error("a file with a mistake was taken")
	}
	wait(mark, "RELOADING", "1")
	wait(mark, "STATUS", "the last reload was rejected")
	wait(mark, "READY", "1")
	mark = m.Mark()
	d.Rewrite(t)
	d.Process.Signal(syscall.SIGHUP)
	wait(mark, "MONOTONIC_USEC", "")
	wait(mark, "READY", "1")

	pod := n.AddPodByPlugin(t, lab.TUN)
	if stored := m.Stored(); len(stored) != 1 {
		t.Fatalf("in the descriptor store: %q", stored)
	}
	d.Kill()
	mark = m.Mark()
	d = n.Start(t)
	wait(mark, "READY", "1")
	if err := n.Ping(pod.IP4); err != nil {
		t.Error(err)
	}
	if out := d.Process.Output(); strings.Contains(out, `"adopted"`) || strings.Contains(out, "wait for penstock adopt") {
		t.Errorf("the queue did not come from the descriptor store:\n%s", out)
	}
	pod.Remove(t)
	if stored := m.Stored(); len(stored) != 0 {
		t.Errorf("a pod's queue is kept though it has gone: %q", stored)
	}
	mark = m.Mark()
	d.Stop(t)
	wait(mark, "STOPPING", "1")
}

// TestUnderTheUnitsHardening: the daemons run with what the unit leaves them, and pods of every kind connect, over a reload and a
// restart.
func TestUnderTheUnitsHardening(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Masquerade: true})
	u, err := lab.ReadUnit(l, unitFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes {
		n.Wrap = u.Wrap
	}
	l.Start(t, "host: {forward: true}\n")
	a, b := l.Nodes[0], l.Nodes[1]
	confined(t, a.Daemon)
	pods := []*lab.Pod{a.AddPodByPlugin(t, lab.Veth), a.AddPodByPlugin(t, lab.TUN), b.AddPodByPlugin(t, lab.Veth), b.AddPodByPlugin(t, lab.TUN)}
	connected := func() {
		t.Helper()
		for _, from := range pods {
			for _, to := range pods {
				for _, v6 := range []bool{false, true} {
					if err := from.Ping(to.Addr(v6)); err != nil && from != to {
						t.Errorf("%s → %s: %v", from.Name, to.Name, err)
					}
				}
			}
		}
	}
	connected()
	a.Daemon.Reload(t, "encap: {copyDSCP: true}\n", "host: {forward: false}\n")
	a.Daemon.Stop(t)
	a.Start(t)
	confined(t, a.Daemon)
	connected()
	for _, p := range pods {
		p.Remove(t)
	}
	nothingLeft(t, a)
	nothingLeft(t, b)
	for _, n := range l.Nodes {
		if out := n.Daemon.Process.Output(); strings.Contains(out, "left writable") || strings.Contains(out, "read-only file system") || strings.Contains(out, "not permitted") {
			t.Errorf("penstockd on %s met a wall:\n%s", n.Name, out)
		}
	}
}

// confined looks at what the process really has.
func confined(t *testing.T, d *lab.Daemon) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", d.Process.Pid())
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000003000\n", "CapPrm:\t0000000000003000\n", "CapBnd:\t0000000000003000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("the daemon does not have %q:\n%s", want, status)
		}
	}
	for _, path := range []string{"/", "/etc/", "/run/", "/var/lib/", "/proc/sys/kernel/core_pattern"} {
		if err := syscall.Access(proc+"root"+strings.TrimSuffix(path, "/"), 2 /* W_OK */); err != syscall.EROFS {
			t.Errorf("%s is not read-only for the daemon: %v", path, err)
		}
	}
	if devices, err := os.ReadDir(proc + "root/dev"); err != nil || len(devices) > 7 {
		t.Errorf("the daemon sees %d devices, %v", len(devices), err)
	}
}
