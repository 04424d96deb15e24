package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/bench/lab"
)

// machineState is what a demo could leave on the machine itself: devices, routes, named namespaces.
func machineState(t *testing.T) (lines []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		lines = append(lines, "link "+l.Attrs().Name)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		lines = append(lines, "route "+r.String())
	}
	for _, dir := range []string{"/run/netns/*", "/var/run/netns/*", "/run/penstock/*", "/var/lib/penstock/*"} {
		files, _ := filepath.Glob(dir)
		lines = append(lines, files...)
	}
	return lines
}

// processesOf are those that have a directory's name in their command line or a file of it open.
func processesOf(dir string) (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		if b, _ := os.ReadFile(f); strings.Contains(string(b), dir) {
			pids = append(pids, f)
		}
	}
	return pids
}

// TestDemoLeavesNothing: neither an interrupted nor a killed demo leaves a process, a device, a route or a namespace; nor does
// one that ended well. What files a killed one leaves, the next laboratory removes.
func TestDemoLeavesNothing(t *testing.T) {
	lab.Require(t)
	program := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", program, "../demo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	signals := []syscall.Signal{syscall.SIGKILL}
	if matrix() || loadFull() {
		signals = append(signals, syscall.SIGINT, 0) // 0: to its end
	}
	for _, signal := range signals {
		t.Run(fmt.Sprint(signal), func(t *testing.T) {
			before := machineState(t)
			cmd := exec.Command(program)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stderr = cmd.Stdout
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			files := filepath.Join(os.TempDir(), fmt.Sprintf("penstock-lab.%d.", cmd.Process.Pid))
			said, sent := "", false
			for lines := bufio.NewScanner(out); lines.Scan(); {
				said += lines.Text() + "\n"
				if signal != 0 && !sent && strings.Contains(lines.Text(), "ping") { // pods are there and the daemons at work
					if len(processesOf(files)) == 0 {
						t.Error("no daemon runs: the test looks for the wrong thing")
					}
					cmd.Process.Signal(signal)
					sent = true
				}
			}
			err = cmd.Wait()
			if signal == 0 && err != nil || signal != 0 && !sent {
				t.Fatalf("%v\n%s", err, said)
			}
			await(t, "all processes of the demo are gone", func() bool { return len(processesOf(files)) == 0 })
			if d := difference(before, machineState(t)); d != "" {
				t.Errorf("the demo left:%s", d)
			}
			if signal == syscall.SIGKILL {
				lab.New(t, lab.Config{Nodes: 1}).Close()
			}
			if left, _ := filepath.Glob(files + "*"); left != nil {
				t.Errorf("the demo left %v", left)
			}
		})
	}
}
