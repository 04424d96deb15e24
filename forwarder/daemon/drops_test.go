package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

func (f *fake) drops() string { l, _ := fakeHost{f}.Blocked(); return fmt.Sprint(l) }

// TestDropWithoutPort: a pod on record whose port cannot be opened keeps its drop, at the start and at each look, and one of which only
// a damaged file is left too, until it is deleted. What an ADD that fails leaves behind has none.
func TestDropWithoutPort(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	bad, err := r.plug(t, "damaged")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Attach(t.Context(), control.AttachRequest{Container: "hand", Interface: "eth0", Device: "ve1", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.77")}}); err != nil {
		t.Fatal(err)
	}
	r.stop()
	f.ports = nil
	for _, name := range []string{bad.Device, control.DeviceName("hand", "eth0")} {
		if err := os.WriteFile(filepath.Join(stateDir(r.path), "pods", name+".json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.failing("attach", errors.New("no room"))
	f.deeds()
	r = restart(t, f, r.path)
	all := []string{a.Device, bad.Device, "ve1"}
	slices.Sort(all)
	if f.drops() != fmt.Sprint(all) {
		t.Errorf("after the start there are drops on %s, want %v", f.drops(), all)
	}
	if p := r.phases(t); p != "c1 failed" {
		t.Error(p)
	}
	f.deeds()
	var did []string
	soon(t, "a look at the pod", func() bool {
		r.moved()
		did = append(did, f.deeds()...)
		return slices.Contains(did, "attach "+a.Device)
	})
	if f.drops() != fmt.Sprint(all) || slices.Contains(did, "unblock "+a.Device) || slices.Contains(did, "block "+a.Device) {
		t.Errorf("after a look there are drops on %s; it did %q", f.drops(), did)
	}
	f.mu.Lock()
	clear(f.blocked)
	f.mu.Unlock()
	r.moved()
	soon(t, "the drops are back", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.blocked[a.Device] && f.blocked[bad.Device] })
	if _, err := r.plug(t, "refused"); err == nil {
		t.Error("attached")
	}
	if f.mu.Lock(); f.blocked[control.DeviceName("refused", "eth0")] {
		t.Error("an ADD that failed leaves its drop")
	}
	f.mu.Unlock()
	f.failing("attach", nil)
	soon(t, "it is brought back", func() bool { return r.problem(t, "c1") == "" })
	for _, c := range []string{"c1", "damaged"} {
		if err := r.client.Detach(t.Context(), control.DetachRequest{Container: c, Interface: "eth0"}); err != nil {
			t.Error(err)
		}
	}
	if f.drops() != "[]" {
		t.Errorf("drops without a pod: %s", f.drops())
	}
}
