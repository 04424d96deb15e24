package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// procStatus is a number of kB, or a plain one, in /proc/PID/status.
func procStatus(t *testing.T, pid int, key string) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.Atoi(strings.Fields(value)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in /proc/%d/status", key, pid)
	return 0
}

// cpuTime is how long the process's threads have run, from the scheduler's nanoseconds.
func cpuTime(t testing.TB, pid int) (sum time.Duration) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, task.Name()))
		if err != nil {
			continue // a thread that has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

// wakeUps is how often the process's threads have waited and been woken.
func wakeUps(t *testing.T, pid int) (sum int) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
		if err != nil {
			continue // a thread that has ended
		}
		for line := range strings.Lines(string(b)) {
			if value, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				n, err := strconv.Atoi(strings.TrimSpace(value))
				if err != nil {
					t.Fatal(err)
				}
				sum += n
			}
		}
	}
	return sum
}

const (
	idleWakeUps = 150  // a second, of all threads: each worker's look at its rings, the looks at the host, and Go's runtime
	idleShare   = 0.02 // of a core, on the slowest machine
)

// TestIdle: a daemon with twenty pods that say nothing is hardly ever woken, and has as many threads as its workers and Go's
// runtime need.
func TestIdle(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1, YAML: []string{"workers: 2"}})
	l.Start(t)
	n := l.Nodes[0]
	for i := range 20 {
		n.AddPod(t, []lab.Attach{lab.Veth, lab.TUN}[i%2])
	}
	watch := 3 * time.Second
	if loadFull() {
		watch = time.Minute
	}
	// IPv6 hosts solicit routers for a while after they come up, which is not idleness: begin when they are through.
	last := n.Daemon.AtRest(t)
	for end := time.Now().Add(patience); ; {
		time.Sleep(time.Second)
		now := n.Daemon.Metrics(t)
		if now.Sum("penstock_received_packets_total") == last.Sum("penstock_received_packets_total") || time.Now().After(end) {
			break
		}
		last = now
	}
	pid := n.Daemon.Process.Pid()
	before, switches, begin := cpuTime(t, pid), wakeUps(t, pid), time.Now()
	time.Sleep(watch)
	took := time.Since(begin)
	used, woken := float64(cpuTime(t, pid)-before)/float64(took), float64(wakeUps(t, pid)-switches)/took.Seconds()
	t.Logf("%.3f %% of a core, %.0f wake-ups a second", used*100, woken)
	// What a wake-up costs is the machine's affair, and the bar of 0.1 % one of make bench; how many there are is ours. A timer on
	// the packet path or a descriptor that stays ready would make hundreds.
	if woken > idleWakeUps || used > idleShare {
		t.Errorf("idle, the daemon is woken %.0f times a second and uses %.3f %% of a core; the limits are %d and %.0f %%", woken, used*100, idleWakeUps, idleShare*100)
	}
	threads := procStatus(t, pid, "Threads")
	t.Logf("%d threads", threads)
	// Two workers; Go's GOMAXPROCS of them, its monitor, and those that sit in blocking system calls or idle.
	if threads > 16 {
		t.Errorf("%d threads for two workers", threads)
	}
	code, body, err := n.Daemon.Get("/metrics")
	if err != nil || code != 200 {
		t.Fatal(code, err)
	}
	for line := range strings.Lines(string(body)) {
		if v, ok := strings.CutPrefix(line, "go_sched_gomaxprocs_threads "); ok && strings.TrimSpace(v) != "3" {
			t.Errorf("GOMAXPROCS is %s, and should be one more than the workers", strings.TrimSpace(v))
		}
	}
	n.Daemon.AssertConserved(t)
}

// idleMemory is the design's bar for a hundred pods and a thousand peers, in KiB, sockets' memory included.
const idleMemory = 64 << 10

// TestIdleMemory: a hundred veth pods and a thousand peers. The packet rings are mapped and so in VmRSS; the buffers of sockets
// hold nothing while nothing is on its way.
func TestIdleMemory(t *testing.T) {
	lab.Require(t)
	if raced() {
		t.Skip("the race detector multiplies memory")
	}
	l := lab.New(t, lab.Config{Nodes: 1, YAML: []string{"workers: 2"}})
	n := l.Nodes[0]
	var peers []peerYAML
	for i := range 1000 {
		peers = append(peers, peerYAML{fmt.Sprintf("node-%04d", i), netip.AddrFrom4([4]byte{192, 0, 3 + byte(i/250), byte(i % 250)}),
			[]netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, 64 + byte(i/16), byte(i % 16 * 16)}), 28)}})
	}
	n.Start(t, peersYAML(peers...))
	for range 100 {
		n.AddPod(t, lab.Veth)
	}
	n.Daemon.AtRest(t)
	pid := n.Daemon.Process.Pid()
	rss := procStatus(t, pid, "VmRSS")
	t.Logf("VmRSS %d KiB (anonymous %d, files and rings %d, shared %d; peak %d), %d threads; the bar is %d KiB",
		rss, procStatus(t, pid, "RssAnon"), procStatus(t, pid, "RssFile"), procStatus(t, pid, "RssShmem"), procStatus(t, pid, "VmHWM"), procStatus(t, pid, "Threads"), idleMemory)
	if rss > idleMemory {
		t.Errorf("VmRSS is %d KiB, the bar is %d", rss, idleMemory)
	}
	n.Daemon.AssertConserved(t)
}
