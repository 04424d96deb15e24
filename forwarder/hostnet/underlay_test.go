package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

func parseCIDR(s string) (net.IP, *net.IPNet, error) { return net.ParseCIDR(s) }

func TestDefaultAddress(t *testing.T) {
	host, _, _ := node(t)
	get := func() (a netip.Addr, err error) {
		host.Do(func() { a, err = DefaultAddress() })
		return a, err
	}
	if _, err := get(); !errors.Is(err, ErrNoDefaultRoute) {
		t.Errorf("without a default route: %v", err)
	}
	host.Route("default", "2001:db8::2")
	if a, err := get(); err != nil || a != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("IPv6 only: %v, %v", a, err)
	}
	host.Up("eth0", "192.0.2.77/24") // a second address is not the node's
	host.Device("slow")
	host.Up("slow", "198.51.100.1/24")
	host.Do(func() {
		link, err := netlink.LinkByName("slow")
		check(t, err)
		check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IPv4(198, 51, 100, 2), Priority: 600}))
	})
	if a, err := get(); err != nil || a != netip.MustParseAddr("198.51.100.1") {
		t.Errorf("one IPv4 default route: %v, %v", a, err)
	}
	host.Route("default", "192.0.2.2")
	if a, err := get(); err != nil || a != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("the better of two default routes: %v, %v", a, err)
	}
	host.Do(func() {
		_, all, _ := net.ParseCIDR("0.0.0.0/0")
		check(t, netlink.RouteReplace(&netlink.Route{Dst: all, Gw: net.IPv4(192, 0, 2, 2), Src: net.IPv4(192, 0, 2, 77)}))
	})
	if a, err := get(); err != nil || a != netip.MustParseAddr("192.0.2.77") {
		t.Errorf("a default route with a source: %v, %v", a, err)
	}
}

func TestFindUnderlay(t *testing.T) {
	host, _, _ := node(t)
	host.Up("penstock0", "10.0.0.1/32")
	host.Do(func() {
		u, err := FindUnderlay(netip.MustParseAddr("::ffff:192.0.2.1"))
		check(t, err)
		if u.Device != "eth0" || u.MTU != 1500 || !u.Up || !u.Ethernet || u.MAC == [6]byte{} || u.Address != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("%+v", u)
		}
		u, err = FindUnderlay(netip.MustParseAddr("10.0.0.1"))
		check(t, err)
		if u.Device != "penstock0" || u.Ethernet || u.MAC != [6]byte{} {
			t.Errorf("%+v", u)
		}
		if _, err := FindUnderlay(netip.MustParseAddr("192.0.2.9")); !errors.Is(err, ErrNoAddress) || err.Error() != "192.0.2.9: no device holds this address" {
			t.Errorf("an address that nobody holds: %v", err)
		}
		u, err = FindUnderlay(netip.MustParseAddr("2001:db8::1"))
		check(t, err)
		if u.Device != "eth0" || u.TSO || u.USO {
			t.Errorf("%+v", u)
		}
		for _, a := range []string{"192.0.2.1", "2001:db8::1"} { // a veth takes everything
			if u, err := FindUplink(netip.MustParseAddr(a)); err != nil || u.Device != "eth0" || !u.TSO || !u.USO {
				t.Errorf("%+v, %v", u, err)
			}
		}
	})
}

func TestWatchUnderlay(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	host, _, _ := node(t)
	addr := netip.MustParseAddr("192.0.2.1")
	type said struct {
		u   Underlay
		err error
	}
	heard := make(chan said, 16)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go host.Do(func() {
		ended <- WatchUnderlay(ctx, addr, FindUplink, func(u Underlay, err error) error { heard <- said{u, err}; return nil })
	})
	next := func(what string, ok func(said) bool) {
		t.Helper()
		for last := (said{}); ; {
			select {
			case last = <-heard: // on a busy machine a change may be heard of in two parts
				if ok(last) {
					return
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("%s: not heard, the last was %+v, %v", what, last.u, last.err)
			}
		}
	}
	with := func(fn func(netlink.Link) error) {
		t.Helper()
		host.Do(func() {
			link, err := netlink.LinkByName("eth0")
			check(t, err)
			check(t, fn(link))
		})
	}
	next("at the start", func(s said) bool { return s.err == nil && s.u.MTU == 1500 && s.u.Up })
	with(func(l netlink.Link) error { return netlink.LinkSetMTU(l, 9000) })
	next("MTU", func(s said) bool { return s.u.MTU == 9000 })
	with(netlink.LinkSetDown)
	next("down", func(s said) bool { return s.err == nil && !s.u.Up })
	with(netlink.LinkSetUp)
	next("up", func(s said) bool { return s.u.Up })
	// A burst is one change, and what does not concern us is none.
	host.Device("other")
	host.Up("other", "203.0.113.1/24")
	with(func(l netlink.Link) error {
		for mtu := range 20 {
			check(t, netlink.LinkSetMTU(l, 1400+mtu))
		}
		return nil
	})
	next("the end of a burst", func(s said) bool {
		if s.u.Device != "eth0" {
			t.Errorf("heard %+v", s.u)
		}
		return s.u.MTU == 1419
	})
	with(func(l netlink.Link) error {
		return netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.0.2.1/24"))})
	})
	next("address gone", func(s said) bool { return errors.Is(s.err, ErrNoAddress) })
	host.Up("other", "192.0.2.1/24")
	next("address on another device", func(s said) bool { return s.err == nil && s.u.Device == "other" })
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("WatchUnderlay: %v", err)
	}
}

// TestWatchUnderlayAgain: what was not taken, or could not be looked at, is looked at again without another change, and what cannot be
// looked at is not gone.
func TestWatchUnderlayAgain(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	host, _, _ := node(t)
	addr := netip.MustParseAddr("192.0.2.1")
	type found struct {
		mtu int
		err error
	}
	const again = 200 * time.Millisecond // in the place of lookAgain
	var now atomic.Pointer[found]
	var looks atomic.Int32
	find := func(netip.Addr) (Underlay, error) {
		looks.Add(1)
		return Underlay{MTU: now.Load().mtu}, now.Load().err
	}
	heard := make(chan found, 16)
	refuse := map[int]int{1500: 1, 1400: 2} // how often, by MTU
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	now.Store(&found{mtu: 1500})
	go host.Do(func() {
		ended <- watchUnderlay(ctx, addr, again, find, func(u Underlay, err error) error {
			heard <- found{u.MTU, err}
			if refuse[u.MTU]--; refuse[u.MTU] >= 0 {
				return errors.New("not now")
			}
			return nil
		})
	})
	next := func(what string, mtu int, want error) {
		t.Helper()
		select {
		case f := <-heard:
			if f.mtu != mtu || !errors.Is(f.err, want) {
				t.Fatalf("%s: heard %+v", what, f)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: not heard", what)
		}
	}
	next("at the start", 1500, nil)
	from := time.Now()
	host.Device("early") // a change of something else, as a try that is taken back makes by itself
	next("the start again", 1500, nil)
	if after := time.Since(from); after < again/2 {
		t.Errorf("what was refused is tried again after %v", after)
	}
	now.Store(&found{mtu: 1400})
	host.Device("other") // a change
	for range 3 {
		next("what was not taken", 1400, nil)
	}
	now.Store(&found{err: unix.EMFILE})
	host.Up("other")
	next("cannot be looked at", 0, unix.EMFILE)
	now.Store(&found{err: ErrNoAddress})
	next("gone", 0, ErrNoAddress)
	now.Store(&found{err: unix.EMFILE})
	host.Up("other", "203.0.113.1/24")
	next("cannot be looked at", 0, unix.EMFILE)
	for n := looks.Load() + 2; looks.Load() < n; time.Sleep(time.Millisecond) { // the test's own limit bounds it
	}
	now.Store(&found{mtu: 1400})
	next("back", 1400, nil) // and what cannot be looked at was told once
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestWatchRoutes(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	host := nstest.New(t)
	host.Device("eth0")
	host.Up("eth0", "192.0.2.1/24")
	var n atomic.Int32
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go host.Do(func() { ended <- WatchRoutes(ctx, func() { n.Add(1) }) })
	// quiet waits until nothing is heard for longer than what comes together takes, and forgets it.
	quiet := func() {
		for was := int32(-1); was != n.Load(); time.Sleep(2 * settle) {
			was = n.Load()
		}
		n.Store(0)
	}
	for i := 0; n.Load() == 0; i++ { // until it listens
		host.Up("eth0", fmt.Sprintf("198.51.100.%d/24", i%250+1))
		time.Sleep(10 * time.Millisecond)
	}
	quiet()
	heard := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); n.Load() == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("nothing heard of %s", what)
			}
		}
		quiet()
	}
	host.Up("eth0.peer")
	host.Route("203.0.113.0/24", "192.0.2.2")
	heard("a new route")
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/eth0/rp_filter"} {
		host.Sysctl(path, "1")
		quiet() // it may have been so
		host.Sysctl(path, "0")
		heard(path)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
