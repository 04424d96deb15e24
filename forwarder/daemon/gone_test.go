package daemon

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/server"
)

// TestNobodyWaits: what a plugin asked for that was killed meanwhile, and whose DEL was answered before the daemon came to it, is not
// done, also when the request's context has not heard of it yet.
func TestNobodyWaits(t *testing.T) {
	r := run(t, newFake(), "")
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	plugin, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := server.WithConn(t.Context(), c)
	if _, err := r.Allocate(ctx, allocation("waits")); err != nil {
		t.Error(err)
	}
	plugin.Close()
	if _, err := r.Allocate(ctx, allocation("killed")); control.CodeOf(err) != control.NotReady {
		t.Errorf("it was done for nobody: %v", err)
	}
	if got := r.phases(t); got != "waits reserved" {
		t.Error(got)
	}
}
