package control

import (
	"net/netip"
	"testing"
)

// TestNamesPeer: an address is the peer's in every spelling.
func TestNamesPeer(t *testing.T) {
	a := netip.MustParseAddr
	for _, c := range []struct {
		asked   string
		address netip.Addr
		want    bool
	}{
		{"node-b", a("2001:db8:2::1"), true},
		{"2001:db8:2::1", a("2001:db8:2::1"), true},
		{"2001:DB8:2:0::1", a("2001:db8:2::1"), true},
		{"::ffff:192.0.2.2", a("192.0.2.2"), true},
		{"192.0.2.2", a("::ffff:192.0.2.2"), true},
		{"2001:db8:2::2", a("2001:db8:2::1"), false},
		{"NODE-B", a("2001:db8:2::1"), false},
		{"", a("2001:db8:2::1"), false},
	} {
		if got := NamesPeer(c.asked, "node-b", c.address); got != c.want {
			t.Errorf("%q, %s: %v", c.asked, c.address, got)
		}
	}
}
