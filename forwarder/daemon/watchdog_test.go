package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// manager hears what a daemon of this process tells its service manager.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

// listenAsManager makes the environment that of a unit with this watchdog.
func listenAsManager(t *testing.T, watchdog time.Duration) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(watchdog.Microseconds()))
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	return &manager{t, c}
}

// hear waits for a message that contains want, and returns all up to it.
func (m *manager) hear(want string, patience time.Duration) (all []string, ok bool) {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4096)
	for {
		n, err := m.conn.Read(b)
		if err != nil {
			return all, false
		}
		all = append(all, string(b[:n]))
		if strings.Contains(string(b[:n]), want) {
			return all, true
		}
	}
}

func (m *manager) must(want string) []string {
	m.t.Helper()
	all, ok := m.hear(want, 30*time.Second)
	if !ok {
		m.t.Fatalf("the service manager did not hear %q, but %q", want, all)
	}
	return all
}

// TestWatchdog: the service manager hears of the daemon as long as its workers move, and no longer.
func TestWatchdog(t *testing.T) {
	m := listenAsManager(t, 150*time.Millisecond)
	f := newFake()
	r := run(t, f, peerB)
	all := strings.Join(m.must("READY=1"), "\n")
	if !strings.HasPrefix(all, "STATUS=Starting\n") || !strings.Contains(all, "READY=1\nSTATUS=Forwarding: vxlan, MTU 1450, 1 peer, 0 pods") {
		t.Errorf("at the start: %q", all)
	}
	m.must("WATCHDOG=1")
	m.must("WATCHDOG=1")

	f.mu.Lock()
	f.stuck = true
	f.mu.Unlock()
	m.must("STATUS=Not ready: stuck in a packet or a system call: worker 0")
	if all, ok := m.hear("WATCHDOG=1", 400*time.Millisecond); ok {
		t.Errorf("the watchdog is fed though a worker is stuck: %q", all)
	}
	if ok, why := r.health.ready(); ok || !strings.Contains(why, "worker 0") {
		t.Errorf("ready %v: %s", ok, why)
	}

	f.mu.Lock()
	f.stuck = false
	f.mu.Unlock()
	m.must("WATCHDOG=1")
	m.must("STATUS=Forwarding")

	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	m.must("STOPPING=1")
}

// TestReloadIsTold: each reload is framed, also one that is refused, and the status line keeps why.
func TestReloadIsTold(t *testing.T) {
	m := listenAsManager(t, 0)
	r := run(t, newFake(), peerB)
	m.must("READY=1")
	rewrite(t, r.path, "encap: {type: gre}\n")
	if _, err := r.client.Reload(t.Context()); control.CodeOf(err) != control.InvalidConfig {
		t.Fatal(err)
	}
	told := m.must("READY=1")
	var begin string
	for _, s := range told {
		if strings.HasPrefix(s, "RELOADING=1\nMONOTONIC_USEC=") {
			begin = s
		}
	}
	if begin == "" || !strings.Contains(strings.Join(told, "|"), "the last reload was rejected: ") {
		t.Errorf("of a reload that was refused: %q", told)
	}
	rewrite(t, r.path, peerB)
	r.hangup <- syscall.SIGHUP
	m.must("RELOADING=1")
	if told := strings.Join(m.must("READY=1"), "|"); strings.Contains(told[strings.LastIndex(told, "STATUS="):], "rejected") {
		t.Errorf("of the reload after it: %q", told)
	}
}

func TestGait(t *testing.T) {
	var g gait
	now := time.Unix(0, 0)
	for i, step := range []struct {
		turns   []uint64
		waiting []bool
		stuck   string
	}{
		{[]uint64{0, 0}, []bool{false, false}, "[]"}, // nothing to compare with yet
		{[]uint64{0, 1}, []bool{false, false}, "[0]"},
		{[]uint64{0, 1}, []bool{true, false}, "[1]"}, // one that waits does not move
		{[]uint64{1, 2}, []bool{false, false}, "[]"},
		{[]uint64{1, 2}, []bool{false, false}, "[0 1]"},
	} {
		now = now.Add(time.Second)
		if got := fmt.Sprint(g.look(step.turns, step.waiting, now)); got != step.stuck {
			t.Errorf("look %d: %s, want %s", i, got, step.stuck)
		}
	}
	if now.Sub(g.moved[0]) != time.Second {
		t.Errorf("moved %v ago", now.Sub(g.moved[0]))
	}
}
