package podstate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// TestWritable: what keeps a record from being written is told with what helps, in the same words by those who ask and those who try,
// and it is over when it is over.
func TestWritable(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("no tmpfs can be mounted here")
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	state := filepath.Join(disk, "state")
	s, err := Open(state, boot)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Moved = func() { t.Error("told of another directory") } // or whoever is told would look for ever
	ballast := filepath.Join(disk, "ballast")
	mount := func(flags uintptr) func() error {
		return func() error { return unix.Mount("", disk, "", unix.MS_REMOUNT|flags, "") }
	}
	for _, c := range []struct {
		name         string
		harm, mend   func() error
		says, remedy string
	}{
		{"full", func() error {
			if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
				return fmt.Errorf("it is not: %w", err)
			}
			return nil
		}, func() error { return os.Remove(ballast) }, "no space left", "make room there"},
		{"read-only", mount(unix.MS_RDONLY), mount(0), "read-only", "mount it read-write"},
		{"gone and read-only", func() error { return errors.Join(os.Rename(state, state+"x"), mount(unix.MS_RDONLY)()) },
			func() error { return errors.Join(mount(0)(), os.Rename(state+"x", state)) }, "is gone", "docs/operations.md"},
		{"pods gone and read-only", func() error { return errors.Join(os.Rename(s.dir, s.dir+"x"), mount(unix.MS_RDONLY)()) },
			func() error { return errors.Join(mount(0)(), os.Rename(s.dir+"x", s.dir)) }, "read-only", "mount it read-write"},
		{"a file in its place", func() error { return errors.Join(os.Rename(state, state+"x"), os.WriteFile(state, nil, 0o600)) },
			func() error { return errors.Join(os.Remove(state), os.Rename(state+"x", state)) }, "not a directory", "see what stands in its place"},
	} {
		if w := s.Writable(); w != nil {
			t.Fatalf("before %s: %v", c.name, w)
		}
		if err := c.harm(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		for range 2 {
			w := s.Writable()
			if w == nil || !strings.Contains(w.Finding, c.says) || !strings.Contains(w.Remedy, c.remedy) {
				t.Errorf("%s: %+v", c.name, w)
			}
			err := s.Save(record("c1"))
			if control.CodeOf(err) != control.NoSpace || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "make room") != (c.name == "full") {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if err := c.mend(); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	if err := s.Save(record("c1")); err != nil || s.Writable() != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, ".new*")); left != nil {
		t.Errorf("left %v", left)
	}
}

// TestRemedies: each fault has its own.
func TestRemedies(t *testing.T) {
	s := open(t)
	seen := map[string]bool{}
	for _, no := range []unix.Errno{unix.ENOSPC, unix.EROFS, unix.EIO, unix.EPERM, unix.ELOOP} {
		w := s.trouble(fmt.Errorf("x: %w", no))
		if seen[w.Remedy] || !strings.Contains(w.Finding, no.Error()) || !strings.Contains(w.Finding, s.dir) {
			t.Errorf("%v: %+v", no, w)
		}
		seen[w.Remedy] = true
	}
}

// TestMoved: whoever knows the pods is told when the directory is another one, and only then.
func TestMoved(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	s, err := Open(state, boot)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	moved := 0
	s.Moved = func() { moved++ }
	s.Save(record("c1"))
	if moved != 0 {
		t.Error("told of nothing")
	}
	other := filepath.Join(t.TempDir(), "other")
	os.MkdirAll(filepath.Join(other, "pods"), 0o700)
	os.Chmod(other, 0o700)
	for i, what := range []string{state, s.dir, "replaced"} {
		if what == "replaced" {
			os.RemoveAll(state)
			os.Rename(other, state)
		}
		os.RemoveAll(what)
		if err := s.Save(record("c1")); err != nil || moved != i+1 {
			t.Errorf("%v, told %d times", err, moved)
		}
		if fi, err := os.Stat(state); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", fi, err)
		}
		if _, err := Open(state, boot); err == nil {
			t.Error("it is anybody's")
		}
	}
}

// TestWritableHangs: a disk that does not answer holds up one trial and nobody who asks; it is a trouble once an ADD would give up.
func TestWritableHangs(t *testing.T) {
	s, err := Open(t.TempDir(), "boot-1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.mu.Lock() // what a hung open does to all who want the directory
	if w := s.Writable(); w != nil {
		t.Errorf("a busy disk is a trouble: %v", w)
	}
	s.trials.Lock()
	first := s.trial
	first.began = first.began.Add(-slowTrial)
	s.trials.Unlock()
	if w := s.Writable(); w == nil || !strings.Contains(w.Finding, "does not answer") {
		t.Errorf("a disk that hangs: %v", w)
	}
	s.mu.Unlock()
	<-first.done
	if w := s.Writable(); w != nil {
		t.Errorf("it answers again: %v", w)
	}
}
