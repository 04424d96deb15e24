package advertised

import (
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// TestDevices: who has something from a router, and uplinks; not a bridge, nor the host's end of somebody else's pod.
func TestDevices(t *testing.T) {
	host := nstest.New(t)
	host.Sysctl("net/ipv6/conf/all/forwarding", "0")
	for _, d := range []string{"expires", "routed", "default4", "default6", "given", "static", "off", "ignores"} {
		host.Device(d)
		host.Up(d)
		host.Up(d + ".peer")
	}
	host.Sysctl("net/ipv6/conf/off/disable_ipv6", "1")
	host.Sysctl("net/ipv6/conf/ignores/accept_ra", "0")
	host.Up("default4", "192.0.2.1/24")
	host.Up("static", "198.51.100.1/24", "2001:db8::1/64")
	host.Route("default", "192.0.2.2")
	host.Do(func() {
		index := func(device string) int {
			link, err := netlink.LinkByName(device)
			if err != nil {
				t.Fatal(err)
			}
			return link.Attrs().Index
		}
		for device, x := range map[string]string{"expires": "2001:db8:1::1/64", "ignores": "2001:db8:2::1/64"} {
			a, _ := netlink.ParseAddr(x)
			a.ValidLft, a.PreferedLft, a.LinkIndex = 1000, 1000, index(device)
			if err := netlink.AddrAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: a.LinkIndex}}, a); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range []netlink.Route{
			{LinkIndex: index("routed"), Dst: &net.IPNet{IP: net.ParseIP("2001:db8:3::"), Mask: net.CIDRMask(64, 128)}, Protocol: unix.RTPROT_RA},
			{LinkIndex: index("default6"), Dst: &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}},
		} {
			if err := netlink.RouteAdd(&r); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Devices("given")
		if want := []string{"default4", "default6", "expires", "given", "routed"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
		for device, want := range map[string]bool{"expires": true, "routed": true, "default6": false, "static": false, "nobody": false} {
			if Lives(device) != want {
				t.Errorf("%s: %v, want %v", device, !want, want)
			}
		}
	})
}
