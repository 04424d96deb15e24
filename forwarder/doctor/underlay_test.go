package doctor

import (
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// TestUnderlay: an address that the device has and nothing can be sent from is a failure.
func TestUnderlay(t *testing.T) {
	address := netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		u    hostnet.Underlay
		want Check
	}{
		{hostnet.Underlay{}, Check{Name: "underlay", Result: OK, Finding: "2001:db8::1 on eth0 is up, MTU 1500"}},
		{hostnet.Underlay{Tentative: true}, Check{Name: "underlay", Result: Failure, Finding: "2001:db8::1 on eth0 cannot be used, as duplicate address detection is still going on", Remedy: "wait for its end, a second or two"}},
		{hostnet.Underlay{Duplicate: true}, Check{Name: "underlay", Result: Failure, Finding: "2001:db8::1 on eth0 cannot be used, as duplicate address detection has failed, so another machine has it or had it",
			Remedy: "take it from that machine, then delete it here and add it again"}},
	} {
		var x examination
		c.u.Device, c.u.Up, c.u.MTU = "eth0", true, 1500
		x.address, x.underlay = address, c.u
		if x.checkUnderlay(t.Context()); x.report.Checks[0] != c.want {
			t.Errorf("%+v", x.report.Checks[0])
		}
	}
}
