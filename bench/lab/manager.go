package lab

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Manager stands in for systemd as far as a service can tell: it hears what daemons say on NOTIFY_SOCKET (sd_notify(3)) and
// keeps their descriptors over a restart (sd_listen_fds(3)). Set it as a node's [Node.Wrap]; it does not restart anything.
type Manager struct {
	Watchdog time.Duration // WatchdogSec; 0: none

	path string
	conn *net.UnixConn

	mu     sync.Mutex
	heard  []Notice
	stored map[string]*os.File
	news   chan struct{} // closed and replaced at each notice
}

// Notice is one message of a daemon.
type Notice struct {
	At     time.Time
	Fields map[string]string
}

// NewManager listens until the test ends.
func NewManager(t TB, l *Lab, watchdog time.Duration) *Manager {
	t.Helper()
	m := &Manager{Watchdog: watchdog, path: filepath.Join(l.dir, "notify"), stored: map[string]*os.File{}, news: make(chan struct{})}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatalf("lab: the notify socket: %v", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); m.listen() }()
	t.Cleanup(func() {
		m.conn.Close()
		<-done
		for _, f := range m.stored {
			f.Close()
		}
	})
	return m
}

func (m *Manager) listen() {
	b, oob := make([]byte, 8192), make([]byte, 1024)
	for {
		n, o, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		m.take(string(b[:n]), oob[:o])
	}
}

func (m *Manager) take(message string, oob []byte) {
	n := Notice{At: time.Now(), Fields: map[string]string{}}
	for line := range strings.SplitSeq(message, "\n") {
		if key, value, ok := strings.Cut(line, "="); ok {
			n.Fields[key] = value
		}
	}
	var fds []int
	if messages, err := unix.ParseSocketControlMessage(oob); err == nil {
		for _, c := range messages {
			got, _ := unix.ParseUnixRights(&c)
			fds = append(fds, got...)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name := n.Fields["FDNAME"]
	switch {
	case n.Fields["FDSTORE"] == "1":
		for _, fd := range fds {
			if old := m.stored[name]; old != nil {
				old.Close()
			}
			unix.CloseOnExec(fd)
			m.stored[name] = os.NewFile(uintptr(fd), name)
		}
	case n.Fields["FDSTOREREMOVE"] == "1":
		if old := m.stored[name]; old != nil {
			old.Close()
			delete(m.stored, name)
		}
	}
	m.heard = append(m.heard, n)
	close(m.news)
	m.news = make(chan struct{})
}

// Wrap gives a command the environment of a unit: to be set as [Node.Wrap].
func (m *Manager) Wrap(cmd *exec.Cmd) *exec.Cmd {
	env := append(os.Environ(), "NOTIFY_SOCKET="+m.path)
	if m.Watchdog > 0 {
		env = append(env, fmt.Sprintf("WATCHDOG_USEC=%d", m.Watchdog.Microseconds()))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	names := slices.Sorted(maps.Keys(m.stored))
	if len(names) == 0 {
		cmd.Env = env
		return cmd
	}
	// LISTEN_PID is the process's own id, which only the process knows before it runs.
	wrapped := exec.Command("/bin/sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$0" "$@"`}, cmd.Args...)...)
	wrapped.Env = append(env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	for _, name := range names {
		// Copies, as the new process may store its own over them while package exec still has these in its hands.
		fd, err := unix.FcntlInt(m.stored[name].Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			fd = -1 // the start fails over it
		}
		wrapped.ExtraFiles = append(wrapped.ExtraFiles, os.NewFile(uintptr(fd), name))
	}
	return wrapped
}

// Stored are the names of the descriptors that are kept.
func (m *Manager) Stored() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.stored))
}

// Count is how many messages with key=value have come; an empty value stands for any.
func (m *Manager) Count(key, value string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range m.heard {
		if v, ok := h.Fields[key]; ok && (value == "" || v == value) {
			n++
		}
	}
	return n
}

// Mark is how many messages have come, for Wait.
func (m *Manager) Mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.heard)
}

// Wait waits for a message after mark in which key's value contains part.
func (m *Manager) Wait(mark int, key, part string, patience time.Duration) (Notice, error) {
	deadline := time.After(patience)
	for {
		m.mu.Lock()
		for _, h := range m.heard[mark:] {
			if v, ok := h.Fields[key]; ok && strings.Contains(v, part) {
				m.mu.Unlock()
				return h, nil
			}
		}
		news, last := m.news, m.heard[max(0, len(m.heard)-5):]
		m.mu.Unlock()
		select {
		case <-news:
		case <-deadline:
			return Notice{}, fmt.Errorf("lab: the service manager heard no %s=…%s in %v; last: %v", key, part, patience, last)
		}
	}
}
