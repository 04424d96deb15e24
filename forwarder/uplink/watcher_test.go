package uplink

import (
	"net/netip"
	"testing"
)

// TestOneDevice: where two uplinks cannot be told apart by their MAC, peers
// behind the second have no way, and all others keep theirs.
func TestOneDevice(t *testing.T) {
	nic, vlan, other := [6]byte{2, 1}, [6]byte{2, 1}, [6]byte{2, 2}
	paths := map[netip.Addr]Path{}
	for i, l := range []*Link{
		{Device: "eth0.7", Index: 9, Source: vlan}, {Device: "eth0", Index: 2, Source: nic}, {Device: "eth0", Index: 2, Source: nic, NextHop: other},
		{Device: "eth1", Index: 3, Source: other}, nil,
	} {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
		paths[a] = Path{Peer: a, Link: l}
	}
	oneDevice(paths)
	for i, want := range []bool{false, true, true, true, false} {
		p := paths[netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})]
		if (p.Link != nil) != want || i == 0 && p.Why != "the uplink eth0.7 has the MAC of the uplink eth0" {
			t.Errorf("%s: %+v", p.Peer, p)
		}
	}
}
