package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// TestSocketIsPutBack: who removes the control socket, or its directory, finds it again, and deletes that are queued there
// afterwards are seen.
func TestSocketIsPutBack(t *testing.T) {
	f := newFake()
	r := run(t, f, "state: "+t.TempDir()+"\n")
	socket := r.state.Load().cfg.Control.Socket
	answers := func() bool { _, err := r.client.Status(t.Context()); return err == nil }
	began := time.Now()
	for _, what := range []string{socket, filepath.Dir(socket), filepath.Dir(socket), socket} {
		if _, err := r.plug(t, "c1"); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(what); err != nil {
			t.Fatal(err)
		}
		soon(t, "an answer without the "+what, answers)
		if err := control.WritePending(socket, control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
			t.Fatal(err)
		}
		soon(t, "a queued delete behind the new "+what, func() bool { return r.phases(t) == "" })
	}
	if took := time.Since(began); took > 2*pendingInterval {
		t.Errorf("four times took %v: the kernel does not tell any more", took)
	}
}

// TestHangupLooksForTheSocket: SIGHUP has the daemon look before its time at what the kernel does not tell of.
func TestHangupLooksForTheSocket(t *testing.T) {
	r := run(t, newFake(), "")
	lock := r.state.Load().cfg.Control.Socket + ".lock"
	began := time.Now()
	for range 4 {
		if err := os.Remove(lock); err != nil {
			t.Fatal(err)
		}
		r.hangup <- unix.SIGHUP
		soon(t, "the lock is back", func() bool { _, err := os.Stat(lock); return err == nil })
	}
	if took := time.Since(began); took > 2*pendingInterval {
		t.Errorf("four times took %v", took)
	}
}

// TestRecordsAreWrittenAgain: records that somebody has removed come back, one by one or all with their directory, and a restart then
// knows every pod. What was put in their place is not written over, and no pod that was deleted comes back.
func TestRecordsAreWrittenAgain(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	state := stateDir(r.path)
	file := func(container string) string {
		return filepath.Join(state, "pods", control.DeviceName(container, "eth0")+".json")
	}
	there := func(path string) bool { _, err := os.Stat(path); return err == nil }
	remove := func(path string) { // a look may be on its way, and writes behind us
		t.Helper()
		soon(t, path+" is removed", func() bool { return os.RemoveAll(path) == nil })
	}
	for _, c := range []string{"c1", "c22", "gone"} {
		if _, err := r.plug(t, c); err != nil {
			t.Fatal(err)
		}
	}
	was, _ := os.ReadFile(file("c1"))
	if err := os.Remove(file("c1")); err != nil {
		t.Fatal(err)
	}
	r.moved()
	soon(t, "the record is back", func() bool { return there(file("c1")) })
	if is, _ := os.ReadFile(file("c1")); string(is) != string(was) {
		t.Errorf("it was %s and is %s", was, is)
	}

	// All of it, while requests come.
	for _, what := range []string{state, filepath.Join(state, "pods")} {
		remove(what)
		if _, err := r.plug(t, "more"); err != nil {
			t.Errorf("an ADD without %s: %v", what, err)
		}
		soon(t, "all records are back", func() bool { return there(file("c1")) && there(file("c22")) && there(file("more")) })
		remove(what)
		if err := r.client.Detach(t.Context(), control.DetachRequest{Container: "more", Interface: "eth0"}); err != nil {
			t.Errorf("a DEL without %s: %v", what, err)
		}
		soon(t, "all other records are back", func() bool { return there(file("c1")) && there(file("c22")) })
		soon(t, "the node's address is back", func() bool { return podstate.Address(state).IsValid() })
	}
	if err := r.client.Detach(t.Context(), control.DetachRequest{Container: "gone", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := podstate.Open(state, f.boot); err == nil {
		t.Error("another daemon may have the new directory")
	}

	// Somebody puts another directory there: what is in it stays.
	other := filepath.Join(t.TempDir(), "other")
	if err := os.MkdirAll(filepath.Join(other, "pods"), 0o700); err != nil {
		t.Fatal(err)
	}
	theirs := strings.Replace(string(was), `"owner": ""`, `"owner": "x"`, 1)
	if err := os.WriteFile(filepath.Join(other, "pods", filepath.Base(file("c1"))), []byte(theirs+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	soon(t, "it is replaced", func() bool { return os.RemoveAll(state) == nil && os.Rename(other, state) == nil })
	r.moved()
	soon(t, "what was missing is written", func() bool { return there(file("c22")) })
	if is, _ := os.ReadFile(file("c1")); string(is) != theirs+"\n" {
		t.Errorf("what stood there was written over: %s", is)
	}
	r = r.again(t)
	if p := r.phases(t); p != "c1 attached, c22 attached" {
		t.Errorf("after a restart there is %s", p)
	}
}

// TestAnothersState: a state directory that another daemon works with is not written to, and new pods are refused.
func TestAnothersState(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	if _, err := r.plug(t, "c1"); err != nil {
		t.Fatal(err)
	}
	state, mine := stateDir(r.path), filepath.Join(t.TempDir(), "mine")
	if err := os.Rename(state, mine); err != nil {
		t.Fatal(err)
	}
	s, err := podstate.Open(state, f.boot)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const says = "another penstockd works with the directory"
	if _, err := r.plug(t, "c2"); control.CodeOf(err) != control.NoSpace || !strings.Contains(err.Error(), says) {
		t.Errorf("%v", err)
	}
	if s, err := r.client.Status(t.Context()); err != nil || !s.Ready || s.State == nil || !strings.Contains(s.State.Finding, says) {
		t.Errorf("%+v, %v", s.State, err)
	}
	r.moved()
	f.deeds()
	soon(t, "a look", func() bool { return len(f.deeds()) > 0 })
	if files, err := s.Files(); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	s.Close()
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(mine, state); err != nil {
		t.Fatal(err)
	}
	if s, err := r.client.Status(t.Context()); err != nil || s.State != nil {
		t.Errorf("with its own again: %+v, %v", s.State, err)
	}
}
