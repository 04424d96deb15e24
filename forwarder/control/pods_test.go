package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPending(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "p.sock")
	if p, err := Pending(socket); err != nil || len(p) != 0 {
		t.Errorf("%v, %v", p, err)
	}
	os.Mkdir(filepath.Dir(socket), 0o700)
	for range 2 {
		if err := WritePending(socket, DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := WritePending(socket, DetachRequest{Container: "c1"}); err == nil {
		t.Error("a delete of nobody")
	}
	if !IsPending(socket, DeviceName("c1", "eth0")) || IsPending(socket, DeviceName("c1", "eth1")) {
		t.Error("IsPending is wrong")
	}
	dir := PendingDir(socket)
	os.WriteFile(filepath.Join(dir, "ps00000000000.json"), []byte("{garbage"), 0o600)
	os.WriteFile(filepath.Join(dir, "ps00000000001.json"), []byte(`{"container":"c1","interface":"eth0"}`), 0o600) // not its name
	os.WriteFile(filepath.Join(dir, ".new-1"), nil, 0o600)
	os.Symlink("/dev/zero", filepath.Join(dir, "ps00000000002.json"))
	unix.Mkfifo(filepath.Join(dir, "ps00000000003.json"), 0o600)
	p, err := Pending(socket)
	name := DeviceName("c1", "eth0")
	if err != nil || len(p) != 3 || p[name].Container != "c1" || p["ps00000000000"].Container != "" || p["ps00000000001"].Container != "" {
		t.Errorf("%v, %v", p, err)
	}
	for range 2 {
		if err := RemovePending(socket, name); err != nil {
			t.Error(err)
		}
	}
	if IsPending(socket, DeviceName("c1", "eth0")) {
		t.Error("it still waits")
	}
}

// TestNotDurable: a file that cannot be brought to disk is not left behind as if it had been, whatever stood there before.
func TestNotDurable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f.json")
	no := func(string) error { return unix.EIO }
	for _, before := range []string{"", "old"} {
		if before != "" {
			if err := WriteFileDurably(path, []byte(before)); err != nil {
				t.Fatal(err)
			}
		}
		if err := replaceFile(path, []byte("new"), no); !errors.Is(err, unix.EIO) {
			t.Errorf("%v", err)
		}
		if b, err := os.ReadFile(path); string(b) != before || (err == nil) != (before != "") {
			t.Errorf("left %q, %v, want %q", b, err, before)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, newPrefix+"*")); left != nil {
			t.Errorf("left %v", left)
		}
	}
	if err := os.WriteFile(path, make([]byte, MaxBody), 0o600); err != nil { // more than is read of it
		t.Fatal(err)
	}
	if err := replaceFile(path, []byte("new"), no); !errors.Is(err, unix.EIO) {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "new" || err != nil {
		t.Errorf("the only thing that is known of a pod is gone: %q, %v", b, err)
	}
}

// TestUnsent: a request that ran out of time before it reached anybody has certainly not happened.
func TestUnsent(t *testing.T) {
	for name, end := range map[string]func() (context.Context, context.CancelFunc){
		"late": func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), -time.Second) },
		"given up": func() (context.Context, context.CancelFunc) {
			c, f := context.WithCancel(t.Context())
			f()
			return c, f
		},
	} {
		ctx, cancel := end()
		_, err := New(filepath.Join(t.TempDir(), "p.sock")).Status(ctx)
		if cancel(); !errors.Is(err, ErrUnreachable) || !errors.Is(err, ctx.Err()) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNoSocket: what is there and is no socket is not a daemon that has died.
func TestNoSocket(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.sock")
	os.WriteFile(file, nil, 0o600)
	for _, path := range []string{file, filepath.Dir(file)} {
		_, err := New(path).Status(t.Context())
		if !errors.Is(err, ErrUnreachable) || !strings.HasPrefix(err.Error(), path+" is there and is no socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestNetnsID(t *testing.T) {
	a, err := NetnsID("/proc/self/ns/net")
	b, err2 := NetnsID("/proc/thread-self/ns/net")
	if err != nil || err2 != nil || a != b || !strings.Contains(a, ":") {
		t.Errorf("%q, %v; %q, %v", a, err, b, err2)
	}
	if _, err := NetnsID("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestDeviceName(t *testing.T) {
	// printf %s c1/eth0 | sha256sum
	if got := DeviceName("c1", "eth0"); got != "psd72e032fedd" {
		t.Errorf("got %q, want ps and the first 11 digits of the sum", got)
	}
	if DeviceName("a", "b") == DeviceName("a", "c") {
		t.Error("two interfaces of a pod share a name")
	}
}
