package daemon

import (
	"testing"

	"github.com/penstock-net/penstock/forwarder/podstate"
)

// TestDeviceRenamed: after a change of host.device the old one goes, by the next start or by --cleanup; one that is no TUN stays.
func TestDeviceRenamed(t *testing.T) {
	f := newFake()
	r := run(t, f, "host: {device: foo0}\n")
	r.stop()
	there := func() bool { _, err := f.Link("foo0"); return err == nil }
	f.setLink("foo0", link{Index: 50, Type: "tuntap"})
	r = restart(t, f, r.path)
	if !there() {
		t.Fatal("the device in use was removed")
	}
	r.stop()
	rewrite(t, r.path, "")
	r = restart(t, f, r.path)
	if there() || podstate.Device(stateDir(r.path)) != "penstock0" {
		t.Errorf("the start left it: %v, noted is %q", there(), podstate.Device(stateDir(r.path)))
	}
	r.stop()
	for kind, stays := range map[string]bool{"tuntap": false, "bridge": true} {
		rewrite(t, r.path, "host: {device: foo0}\n")
		r = restart(t, f, r.path)
		r.stop()
		f.setLink("foo0", link{Index: 50, Type: kind})
		rewrite(t, r.path, "")
		if err := cleanup(t.Context(), f, Options{Config: r.path, Log: testWriter{}}); err != nil {
			t.Fatal(err)
		}
		if there() != stays {
			t.Errorf("after --cleanup a %s is there: %v", kind, there())
		}
	}
}
