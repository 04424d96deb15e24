package hostnet

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// An address whose detection of duplicates goes on, or has found one, is the node's and of no use.
func TestDuplicateDetection(t *testing.T) {
	host, outside, _ := node(t)
	host.Sysctl("net/ipv6/conf/eth0/accept_dad", "1")
	addr := netip.MustParseAddr("2001:db8::7")
	change := func(do func(netlink.Link, *netlink.Addr) error) {
		t.Helper()
		host.Do(func() {
			link, err := netlink.LinkByName("eth0")
			check(t, err)
			check(t, do(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 64))}))
		})
	}
	// state waits until detection says why.
	state := func(why string) {
		t.Helper()
		var u Underlay
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			var err error
			host.Do(func() { u, err = FindUnderlay(addr) })
			check(t, err)
			if said, remedy := u.Unusable(); strings.Contains(said, why) && (said == "") == (why == "") && (remedy == "") == (why == "") {
				return
			}
		}
		t.Fatalf("%q: %+v", why, u)
	}
	host.Do(func() { // no other address can be guessed
		link, err := netlink.LinkByName("eth0")
		check(t, err)
		check(t, netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("2001:db8::1/64"))}))
	})
	change(func(l netlink.Link, a *netlink.Addr) error { return netlink.AddrAdd(l, a) })
	host.Route("default", "2001:db8::2")
	state("is still going on")
	host.Do(func() {
		if _, err := DefaultAddress(); err == nil || !strings.Contains(err.Error(), "2001:db8::7, to which the default route leads, cannot be used, as duplicate address detection is still going on: wait") {
			t.Errorf("the node's address while it is tentative: %v", err)
		}
	})
	state("")
	host.Do(func() {
		if a, err := DefaultAddress(); err != nil || a != addr {
			t.Errorf("the node's address afterwards: %v, %v", a, err)
		}
	})
	change(func(l netlink.Link, a *netlink.Addr) error { return netlink.AddrDel(l, a) })
	outside.Up("eth0", "2001:db8::7/64")
	change(func(l netlink.Link, a *netlink.Addr) error { return netlink.AddrAdd(l, a) })
	state("has failed, so another machine has it")
}
