package daemon

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
	"github.com/penstock-net/penstock/table/feed"
)

// TestHeld: a port that a kernel's vxlan device has, ours or a peer's, is told with the device; one that is down has none.
func TestHeld(t *testing.T) {
	taken := fmt.Errorf("cannot open: %w; stop what holds the port", unix.EADDRINUSE)
	const want = "cannot open UDP port 8472, which the kernel's vxlan device flannel.1 holds: address already in use; ip link del flannel.1, for flannel's after flanneld has gone"
	nstest.New(t).Do(func() {
		device := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1"}, VxlanId: 1, Port: 8472, SrcAddr: []byte{127, 0, 0, 1}}
		if err := netlink.LinkAdd(device); err != nil {
			t.Skip("no vxlan in this kernel: ", err)
		}
		for _, s := range []*state{
			{cfg: &config.Config{Encap: config.Encap{Port: 8472}}},
			{cfg: &config.Config{Encap: config.Encap{Port: 8285}}, peers: []feed.Peer{{Encap: "vxlan", Port: 8472}}},
		} {
			if err := s.held(taken); err != taken {
				t.Errorf("held by a device that is down: %v", err)
			}
			if err := netlink.LinkSetUp(device); err != nil {
				t.Fatal(err)
			}
			err := s.held(taken)
			if !errors.Is(err, unix.EADDRINUSE) || err.Error() != want {
				t.Error(err)
			}
			if other := errors.New("something else"); s.held(other) != other || s.held(nil) != nil {
				t.Error("something else is blamed on the device")
			}
			if err := netlink.LinkSetDown(device); err != nil {
				t.Fatal(err)
			}
		}
	})
}
