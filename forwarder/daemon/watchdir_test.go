package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestWatchDir: whatever comes into the directory is told, also when the directory itself comes later, goes, and comes again;
// what happens beside it is not.
func TestWatchDir(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "pending")
	ctx, cancel := context.WithCancel(t.Context())
	file := filepath.Join(parent, "p.sock")
	come, err := watchDir(ctx, dir, file)
	if err != nil {
		t.Skip("needs inotify: ", err)
	}
	told := func(what string) {
		t.Helper()
		select {
		case <-come:
		case <-time.After(20 * time.Second):
			t.Fatalf("not told of %s", what)
		}
	}
	quiet := func(what string) {
		t.Helper()
		select {
		case <-come:
			t.Errorf("told of %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
	write := func(path string) {
		t.Helper()
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(parent, "beside"))
	quiet("a file beside it")
	for _, round := range []string{"first", "second"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		told("the " + round + " directory")
		write(filepath.Join(dir, "a"))
		told("a file")
		if err := os.Rename(filepath.Join(parent, "beside"), filepath.Join(dir, "b")); err != nil {
			t.Fatal(err)
		}
		told("a file that was moved there")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		quiet("what was removed")
		write(filepath.Join(parent, "beside"))
	}
	write(file)
	quiet("the file beside it")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	told("a file that is gone")
	write(file)
	if err := os.Rename(file, file+".moved"); err != nil {
		t.Fatal(err)
	}
	told("a file that is elsewhere")
	if err := os.Rename(parent, parent+".moved"); err != nil {
		t.Fatal(err)
	}
	told("a place that is elsewhere")
	cancel()
	if _, err := watchDir(t.Context(), filepath.Join(parent, "no", "pending"), file); err == nil {
		t.Error("a directory without a place is watched")
	}
}
