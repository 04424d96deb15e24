package lab

import (
	"testing"

	"github.com/vishvananda/netlink"
)

func TestNamespaceFeatures(t *testing.T) {
	Require(t)
	n := NewNS(t, "x")
	if err := n.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}); err != nil {
		t.Fatal(err)
	}
	on, err := n.Features("v0")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(append([]string{}, tsoFeatures...), tunnelFeatures...) {
		if !on[f] {
			t.Errorf("%s is off on a new veth", f)
		}
	}
	t.Log(on)
	want := allOff(tsoFeatures, tunnelFeatures)
	want["rx-gro"] = true
	if err := n.SetFeatures("v0", want); err != nil {
		t.Fatal(err)
	}
	if err := n.SetFeatures("v0", map[string]bool{"no-such-feature": true}); err == nil {
		t.Error("an unknown feature was accepted")
	}
}
