package uplink

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRouteMTU: the MTU of a way is that of its device, of its route, or of what the link's router has announced, and not what an ICMP
// error says, which the forwarder judges.
func TestRouteMTU(t *testing.T) {
	host, router := nstest.New(t), nstest.New(t)
	nstest.Veth(t, host, "eth0", []string{"192.0.2.1/24", "2001:db8::1/64"}, router, "eth0", []string{"192.0.2.2/24", "2001:db8::2/64"})
	router.Device("narrow")
	router.Up("narrow", "198.51.100.2/24")
	router.Sysctl("net/ipv4/ip_forward", "1")
	router.Do(func() {
		link, err := netlink.LinkByName("narrow")
		must(t, err)
		must(t, netlink.LinkSetMTU(link, 1300))
	})
	route := func(dst, gateway string, mtu int) {
		t.Helper()
		host.Do(func() {
			n, err := netlink.ParseIPNet(dst)
			must(t, err)
			must(t, netlink.RouteReplace(&netlink.Route{Dst: n, Gw: net.ParseIP(gateway), MTU: mtu}))
		})
	}
	want := func(local, peer string, mtu int) {
		t.Helper()
		host.Do(func() {
			a := netip.MustParseAddr(peer)
			s, err := takeSnapshot(a.Is6())
			must(t, err)
			if w := s.route(netip.MustParseAddr(local), a); w.link == nil || w.link.MTU != mtu {
				t.Errorf("the way to %s is %+v (%s), want an MTU of %d", peer, w.link, w.why, mtu)
			}
		})
	}
	route("198.51.100.0/24", "192.0.2.2", 0)
	route("2001:db8:1::/64", "2001:db8::2", 0)
	want("192.0.2.1", "198.51.100.1", 1500)
	want("2001:db8::1", "2001:db8:1::1", 1500)

	host.Do(func() { // the router says that it is too much
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO))
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			_ = unix.Sendto(fd, make([]byte, 1400), 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{198, 51, 100, 1}})
			r, err := netlink.RouteGet(net.IPv4(198, 51, 100, 1))
			must(t, err)
			if r[0].MTU == 1300 {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the kernel has learned nothing: %v", r)
			}
		}
	})
	want("192.0.2.1", "198.51.100.1", 1500)

	route("198.51.100.0/24", "192.0.2.2", 1400)
	route("2001:db8:1::/64", "2001:db8::2", 1400)
	want("192.0.2.1", "198.51.100.1", 1400)
	want("2001:db8::1", "2001:db8:1::1", 1400)
	want("2001:db8::1", "2001:db8::2", 1500)
	host.Sysctl("net/ipv6/conf/eth0/mtu", "1380")
	want("2001:db8::1", "2001:db8:1::1", 1380)
	want("2001:db8::1", "2001:db8::2", 1380)
	want("192.0.2.1", "192.0.2.2", 1500)
}
