package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
)

// TestSilence: a daemon that hangs, one that runs without its socket, one with another socket, and none are told apart.
func TestSilence(t *testing.T) {
	gone := fmt.Errorf("dial: %w", fs.ErrNotExist)
	here := &config.Config{Control: config.Control{Socket: "/s"}}
	other := &config.Config{Control: config.Control{Socket: "/other"}}
	for _, c := range []struct {
		name            string
		silent          error
		runs            bool
		pid             int
		cfg             *config.Config
		finding, remedy string
	}{
		{"dead", gone, false, 0, here, "it cannot be reached", "then systemctl start penstockd"},
		{"died", unix.ECONNREFUSED, false, 0, here, "it cannot be reached", "then systemctl start penstockd"},
		{"not allowed", fs.ErrPermission, true, 0, here, "it cannot be reached", ""},
		{"no socket", gone, true, 77, here, "it (process 77) runs and forwards, but its control socket /s is gone", "systemctl restart penstockd"},
		{"no socket, unseen", gone, true, 0, here, "it runs and forwards, but its control socket /s is gone", "systemctl restart penstockd"},
		{"another's", unix.ECONNREFUSED, true, 77, here, "is gone", "systemctl restart penstockd"},
		{"elsewhere", gone, true, 77, other, "its configuration c.yaml names the socket /other", "penstockctl --socket /other doctor"},
		{"no file", gone, true, 77, nil, "is gone", "systemctl restart penstockd"},
		{"hangs", context.DeadlineExceeded, true, 0, here, "it hangs: somebody listens on /s", "kill -s ABRT penstockd"},
		{"backlog", unix.EAGAIN, false, 0, here, "it hangs", "kill -s ABRT penstockd"},
	} {
		x := examination{o: Options{Socket: "/s"}}
		x.silent, x.runs, x.pid, x.path, x.cfg = c.silent, c.runs, c.pid, "c.yaml", c.cfg
		if c.cfg == nil {
			x.badConfig = fs.ErrNotExist
		}
		x.daemon()
		got := x.report.Checks[0]
		if got.Result != Failure || !strings.Contains(got.Finding, c.finding) || !strings.Contains(got.Remedy, c.remedy) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestStopped: a process that was stopped by a signal is told from one that hangs by itself.
func TestStopped(t *testing.T) {
	sleep := exec.Command("sleep", "60")
	if err := sleep.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { sleep.Process.Kill(); sleep.Wait() }()
	if stopped(sleep.Process.Pid) {
		t.Error("it was not stopped")
	}
	sleep.Process.Signal(unix.SIGSTOP)
	for end := time.Now().Add(10 * time.Second); !stopped(sleep.Process.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it was stopped")
		}
	}
	x := examination{o: Options{Socket: "/s"}}
	x.silent, x.runs, x.pid = context.DeadlineExceeded, true, sleep.Process.Pid
	if _, remedy := x.silence(); !strings.HasPrefix(remedy, fmt.Sprintf("kill -CONT %d", x.pid)) {
		t.Error(remedy)
	}
}

// TestHangingIsSeen: what the client says of a daemon that takes connections and answers none is taken for a hang.
func TestHangingIsSeen(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	r := Examine(ctx, Options{Socket: socket, Config: filepath.Join(t.TempDir(), "none.yaml")})
	if c := r.Checks[0]; !strings.Contains(c.Finding, "hangs") {
		t.Errorf("%+v", c)
	}
}

// TestListening: only a listening socket of that very name counts.
func TestListening(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
00000000b1: 00000002 00000000 00010000 0001 01 10 @penstockd2
00000000b2: 00000002 00000000 00000000 0001 03 11 @penstockd
00000000b3: 00000002 00000000 00010000 0001 01 12
00000000b4: 00000002 00000000 00010000 0001 01 13 @penstockd
`
	if inode, ok := listening(table, control.ClaimName); !ok || inode != "13" {
		t.Errorf("%q, %v", inode, ok)
	}
	if _, ok := listening(table, "@none"); ok {
		t.Error("found one that is not there")
	}
	runtime.LockOSThread() // other tests leave the process's first thread, whose table /proc/net is, in a network namespace of theirs
	defer runtime.UnlockOSThread()
	name := fmt.Sprintf("@penstock-test-%d", os.Getpid())
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := os.ReadFile("/proc/thread-self/net/unix")
	if _, ok := listening(string(b), name); !ok {
		t.Errorf("not seen in the kernel's table: %v", err)
	}
}
