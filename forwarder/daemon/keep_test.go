package daemon

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
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
