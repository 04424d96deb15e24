package server

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

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
