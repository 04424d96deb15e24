package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// silence says why the daemon does not answer: it hangs, it runs and its socket is gone, or it does not run.
func (x *examination) silence() (finding, remedy string) {
	who := "it"
	if x.pid != 0 {
		who = fmt.Sprintf("it (process %d)", x.pid)
	}
	nobody := errors.Is(x.silent, fs.ErrNotExist) || errors.Is(x.silent, unix.ECONNREFUSED)
	switch {
	case errors.Is(x.silent, context.DeadlineExceeded) || errors.Is(x.silent, unix.EAGAIN): // EAGAIN: as many wait as may
		finding = fmt.Sprintf("%s hangs: somebody listens on %s and does not answer", who, x.o.Socket)
		if x.pid != 0 && stopped(x.pid) {
			return finding, fmt.Sprintf("kill -CONT %d: somebody has stopped it by a signal", x.pid)
		}
		return finding, "systemctl kill -s ABRT penstockd: the log then has where it hangs (journalctl -u penstockd), which is worth a report, and it is started anew, over which pods keep their connections"
	case x.runs && nobody && x.badConfig == nil && x.cfg.Control.Socket != x.o.Socket:
		return fmt.Sprintf("%s runs, but nobody listens on %s: its configuration %s names the socket %s", who, x.o.Socket, x.path, x.cfg.Control.Socket),
			"penstockctl --socket " + x.cfg.Control.Socket + " doctor"
	case x.runs && nobody:
		return fmt.Sprintf("%s runs and forwards, but its control socket %s is gone, so that no pod can be added", who, x.o.Socket),
			"it puts it back within seconds; if not, its log says why (journalctl -u penstockd -n 50), and systemctl restart penstockd mends it, over which pods keep their connections"
	}
	return fmt.Sprintf("it cannot be reached: %v", x.silent),
		"look why it ended: journalctl -u penstockd -n 50 (its last line is the reason); the checks below say what would keep it from starting; then systemctl start penstockd"
}

// findDaemon looks for the daemon of this network namespace without asking it. pid is 0 if it cannot be seen.
func findDaemon() (pid int, runs bool) {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0, false
	}
	inode, runs := listening(string(b), control.ClaimName)
	if !runs {
		return 0, false
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd")
	for _, dir := range fds {
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(dir), "comm"))
		if strings.TrimSpace(string(comm)) != "penstockd" {
			continue
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if to, _ := os.Readlink(filepath.Join(dir, e.Name())); to == "socket:["+inode+"]" {
				fmt.Sscanf(dir, "/proc/%d/fd", &pid)
				return pid, true
			}
		}
	}
	return 0, true
}

// listening finds the inode of a listening socket by its name in /proc/net/unix.
func listening(table, name string) (inode string, ok bool) {
	const accepts = "00010000" // __SO_ACCEPTCON
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) == 8 && f[7] == name && f[3] == accepts {
			return f[6], true
		}
	}
	return "", false
}

// stopped is whether a process has got SIGSTOP or the like.
func stopped(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(b), ") ") // behind the name, which may hold anything
	return strings.HasPrefix(state, "T")
}
