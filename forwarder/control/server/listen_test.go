package server

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// die leaves a socket file behind as a killed daemon does.
func die(t *testing.T, socket string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestStaleSocketIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	die(t, socket)
	os.WriteFile(socket+".lock", nil, 0o600) // a killed daemon leaves it too
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

func TestLiveSocketIsRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "another penstockd is running") {
		t.Errorf("got %v", err)
	}
	c, err := net.Dial("unix", socket) // the refused one has not spoilt it
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	l.Close() // a daemon that stops has closed the socket, but still owns the name
	if _, err := Listen(t.Context(), socket); err == nil {
		t.Error("a successor may start before Release")
	}
	l.Release()
	if l, err = Listen(t.Context(), socket); err != nil {
		t.Fatal(err)
	}
	l.Release()
}

func TestForeignListenerIsRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "another program listens") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(socket + ".lock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the refused one left its lock: %v", err)
	}
}

func TestOtherFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                                 "not a socket",
		filepath.Join(file, "p.sock"):        "cannot be made",
		"relative.sock":                      "not an absolute path",
		"/tmp/" + strings.Repeat("x", 110):   "bytes long",
		filepath.Join(dir, "missing", "dir"): "",
	} {
		l, err := Listen(t.Context(), path)
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", path, err)
			} else {
				l.Release()
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("the file in the way was touched")
	}
}

// However many daemons start and stop at once on one name, never do two hold it.
func TestLockHasOneOwner(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	var owners, taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				l, err := Acquire(socket)
				if err != nil {
					continue
				}
				if n := owners.Add(1); n != 1 {
					t.Errorf("%d owners", n)
				}
				taken.Add(1)
				owners.Add(-1)
				l.Release()
			}
		})
	}
	wg.Wait()
	if taken.Load() == 0 {
		t.Error("nobody ever got it")
	}
}

func TestSocketModeDoesNotDependOnUmask(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

// TestSocketComesBack: whatever of the socket, its lock and their directory is removed comes back with its modes, connections that
// are under way go on, and there is one listener.
func TestSocketComesBack(t *testing.T) {
	run := filepath.Join(t.TempDir(), "a", "run")
	if err := os.MkdirAll(run, 0o750); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(run, "p.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func() (near, far net.Conn) {
		t.Helper()
		near, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		return near, <-accepted
	}
	near, far := dial()
	for what, harm := range map[string]func() error{
		"socket":          func() error { return os.Remove(socket) },
		"lock":            func() error { return os.Remove(socket + ".lock") },
		"directory":       func() error { return os.RemoveAll(run) },
		"its parent":      func() error { return os.RemoveAll(filepath.Dir(run)) },
		"a dead one's":    func() error { os.Remove(socket); die(t, socket); return nil },
		"moved":           func() error { return os.Rename(socket, socket+".moved") },
		"directory moved": func() error { return os.Rename(run, fmt.Sprint(run, ".", time.Now().UnixNano())) },
	} {
		if !l.Stands() {
			t.Fatalf("before %s: it does not stand", what)
		}
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		if l.Stands() {
			t.Errorf("%s: not noticed", what)
		}
		if err := l.Restore(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if fi, err := os.Stat(run); err != nil || fi.Mode().Perm() != 0o750 {
			t.Errorf("%s: directory %v, %v", what, fi, err)
		}
		if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: socket %v, %v", what, fi, err)
		}
		if _, err := Acquire(socket); err == nil {
			t.Errorf("%s: another daemon may have the name", what)
		}
		n, f := dial()
		n.Close()
		f.Close()
	}
	if c, err := net.Dial("unix", socket+".moved"); err == nil {
		c.Close()
		t.Error("the old socket is still listened on")
	}
	near.Write([]byte("x"))
	if n, err := far.Read(make([]byte, 1)); n != 1 {
		t.Errorf("a connection under way: %v", err)
	}
	near.Close()
	far.Close()
	l.Close()
	if err := l.Restore(t.Context()); err != nil || !l.Stands() {
		t.Errorf("after Close: %v", err)
	}
	if _, ok := <-accepted; ok {
		t.Error("accepted after Close")
	}
	if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Close leaves %v", err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

// TestAnothersNameIsLeft: a daemon that took the name while ours was gone keeps it, also when we end.
func TestAnothersNameIsLeft(t *testing.T) {
	run := filepath.Join(t.TempDir(), "run")
	socket := filepath.Join(run, "p.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(run); err != nil {
		t.Fatal(err)
	}
	other, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Restore(t.Context()); err == nil || !strings.Contains(err.Error(), "another penstockd is running") {
		t.Errorf("got %v", err)
	}
	l.Release()
	if !other.Stands() {
		t.Error("what another has was removed")
	}
	other.Release()
}
