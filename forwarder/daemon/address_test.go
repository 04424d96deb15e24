package daemon

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// TestAddressIsKept: where the file leaves the node's address out, that in force stays while the node has it, wherever the default route
// leads or if there is none, over reloads and over a restart.
func TestAddressIsKept(t *testing.T) {
	const guess = "node: {name: node-a, podCIDRs: [10.244.1.0/24]}\n"
	f := newFake()
	ours, other := f.underlay.Address, netip.MustParseAddr("198.51.100.1")
	r := run(t, f, guess)
	address := func() netip.Addr { s, _ := r.client.Status(t.Context()); return s.Address }
	reload := func(yaml string) {
		t.Helper()
		rewrite(t, r.path, yaml)
		if _, err := r.client.Reload(t.Context()); err != nil {
			t.Errorf("%q: %v", yaml, err)
		}
		if a := address(); a != ours {
			t.Errorf("the address is %s now", a)
		}
	}
	f.byRoute = other
	reload(guess + peerB)
	reload(guess)
	reload("") // sets it
	f.failing("address", hostnet.ErrNoDefaultRoute)
	reload(guess + peerB)
	f.failing("address", nil)
	rewrite(t, r.path, "node: {name: node-a, address: 198.51.100.1, podCIDRs: [10.244.1.0/24]}\n")
	if _, err := r.client.Reload(t.Context()); err == nil {
		t.Error("an address that this node does not have was taken over")
	}

	if _, err := r.plug(t, "c1"); err != nil {
		t.Fatal(err)
	}
	rewrite(t, r.path, guess)
	r.stop()
	r = restart(t, f, r.path)
	if a := address(); a != ours {
		t.Errorf("after a restart with a pod the address is %s", a)
	}
	// The node has the other one only: the file must not stand in the way.
	r.stop()
	f.underlay.Address = other
	r = restart(t, f, r.path)
	if a := address(); a != other {
		t.Errorf("without the old one the address is %s", a)
	}
	r.stop()
	if a := podstate.Address(stateDir(r.path)); a != other {
		t.Errorf("%s is on record", a)
	}
}

// TestKeptAddressIsSaidOnce: and again when the default route leads elsewhere once more.
func TestKeptAddressIsSaidOnce(t *testing.T) {
	f := newFake()
	var log bytes.Buffer
	d, err := newDaemon(f, Options{Config: file(t, ""), Log: &log})
	if err != nil {
		t.Fatal(err)
	}
	ours := f.underlay.Address
	for _, c := range []struct {
		byRoute string
		err     error
		want    string
	}{
		{"192.0.2.1", nil, ""},
		{"198.51.100.1", nil, "198.51.100.1"},
		{"198.51.100.1", nil, ""},
		{"198.51.100.1", hostnet.ErrNoDefaultRoute, "there is no default route"},
		{"198.51.100.1", hostnet.ErrNoDefaultRoute, ""},
		{"192.0.2.1", nil, ""},
		{"198.51.100.1", nil, "198.51.100.1"},
	} {
		log.Reset()
		f.byRoute = netip.MustParseAddr(c.byRoute)
		f.failing("address", c.err)
		if a, err := d.address(ours); a != ours || err != nil {
			t.Errorf("%+v: %s, %v", c, a, err)
		}
		if got := log.String(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
