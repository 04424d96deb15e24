package doctor

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// TestState: that no pod can be added is a failure with the daemon's remedy.
func TestState(t *testing.T) {
	for _, c := range []struct {
		up   bool
		s    *control.StateTrouble
		want Check
	}{
		{false, nil, Check{Name: "state", Result: Skipped, Finding: "only the daemon knows, and it cannot be asked"}},
		{true, nil, Check{Name: "state", Result: OK, Finding: "new pods can be recorded"}},
		{true, &control.StateTrouble{Finding: "full", Remedy: "make room"}, Check{Name: "state", Result: Failure, Finding: "no pod can be added: full", Remedy: "make room"}},
	} {
		var x examination
		x.up, x.status.State = c.up, c.s
		if x.state(); x.report.Checks[0] != c.want {
			t.Errorf("%+v", x.report.Checks[0])
		}
	}
}

// TestPodLives: only a veth with its other end up in another namespace is a living pod's.
func TestPodLives(t *testing.T) {
	veth := func(nsid int, flags uint32) netlink.Link {
		return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{NetNsID: nsid, RawFlags: flags}}
	}
	for _, c := range []struct {
		l    netlink.Link
		want bool
	}{
		{veth(0, unix.IFF_UP|unix.IFF_LOWER_UP), true},
		{veth(3, unix.IFF_UP|unix.IFF_LOWER_UP), true},
		{veth(-1, unix.IFF_UP|unix.IFF_LOWER_UP), false},
		{veth(0, unix.IFF_UP), false},
		{&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{NetNsID: 0, RawFlags: unix.IFF_LOWER_UP}}, false},
	} {
		if podLives(c.l) != c.want {
			t.Errorf("%+v", c.l.Attrs())
		}
	}
	var x examination
	x.forgotten(nil)
	x.forgotten([]string{"ps0123456789a"})
	if len(x.report.Checks) != 1 || x.report.Checks[0].Result != Failure || strings.Contains(x.report.Checks[0].Remedy, "a restart of the daemon collects") {
		t.Errorf("%+v", x.report.Checks)
	}
}
