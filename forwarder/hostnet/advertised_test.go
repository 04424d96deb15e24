package hostnet

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// advertise sends a router advertisement with an MTU to all nodes of a link.
func advertise(t *testing.T, router *nstest.NS, device string, mtu uint32) {
	t.Helper()
	router.Do(func() {
		link, err := netlink.LinkByName(device)
		check(t, err)
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		check(t, err)
		defer unix.Close(fd)
		check(t, unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MULTICAST_HOPS, 255))
		ra := make([]byte, 24) // RFC 4861, sections 4.2 and 4.6.4; the kernel fills in the checksum
		ra[0], ra[16], ra[17] = 134, 5, 1
		binary.BigEndian.PutUint32(ra[20:], mtu)
		check(t, unix.Sendto(fd, ra, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(link.Attrs().Index)}))
	})
}

// The MTU that a link's router announces is IPv6's on that link, at once, and IPv4's is not touched.
func TestAdvertisedMTU(t *testing.T) {
	host, outside, _ := node(t)
	host.Sysctl("net/ipv6/conf/eth0/accept_ra", "2")
	heard := make(chan int, 16)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go host.Do(func() {
		defer close(ended)
		if err := WatchUnderlay(ctx, netip.MustParseAddr("2001:db8::1"), FindUnderlay, func(u Underlay, err error) error { heard <- u.MTU; return err }); err != nil {
			t.Error(err)
		}
	})
	defer func() { cancel(); <-ended }()
	next := func(mtu int) {
		t.Helper()
		select {
		case got := <-heard:
			if got != mtu {
				t.Errorf("the MTU is %d, want %d", got, mtu)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("an MTU of %d was not heard of", mtu)
		}
	}
	next(1500)
	for _, mtu := range []int{1400, 1480, 1500, 1300} {
		advertise(t, outside, "eth0", uint32(mtu))
		next(mtu)
	}
	host.Do(func() {
		if u, err := FindUnderlay(netip.MustParseAddr("192.0.2.1")); err != nil || u.MTU != 1500 {
			t.Errorf("IPv4: %+v, %v", u, err)
		}
	})
}
