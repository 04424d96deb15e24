// Package nstest gives tests network namespaces of their own. They have no name: a file descriptor and the threads in
// them keep them alive, so nothing is left of a test that was killed.
//
//	ns := nstest.New(t)        // lo is up
//	ns.Do(func() { … })        // netlink, sockets, /proc/sys/net: all inside ns
package nstest

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An NS is one network namespace.
type NS struct {
	t  testing.TB
	fd int
}

// New makes a namespace with lo up. The test is skipped where that is not allowed.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	ns := &NS{t: t, fd: -1}
	var err error
	onThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		ns.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	t.Cleanup(func() { unix.Close(ns.fd) })
	ns.Do(func() {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatalf("lo: %v", err)
		}
	})
	ns.Sysctl("net/ipv6/conf/default/accept_dad", "0") // link-local addresses are there at once
	return ns
}

// FD is the namespace's descriptor, for netlink's LinkSetNsFd and the like.
func (ns *NS) FD() int { return ns.fd }

// Do runs fn on a thread inside the namespace. Sockets that it opens stay there. fn may fail the test.
func (ns *NS) Do(fn func()) {
	ns.t.Helper()
	done := false
	onThread(func() {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			ns.t.Errorf("setns: %v", err)
			return
		}
		fn()
		done = true
	})
	if !done {
		ns.t.FailNow() // fn ended in a Fatal, on its own goroutine
	}
}

// Sysctl sets a sysctl, written with slashes below /proc/sys.
func (ns *NS) Sysctl(path, value string) {
	ns.t.Helper()
	ns.Do(func() {
		if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0); err != nil {
			ns.t.Fatalf("sysctl %s: %v", strings.ReplaceAll(path, "/", "."), err)
		}
	})
}

// onThread runs fn on a thread that ends with it, as its namespace is not the process's any more.
func onThread(fn func()) {
	end := make(chan struct{})
	go func() {
		defer close(end)
		runtime.LockOSThread()
		fn()
	}()
	<-end
}

// Veth makes a pair between two namespaces, both ends up, with the given addresses ("192.0.2.1/24").
func Veth(t testing.TB, a *NS, aName string, aAddrs []string, b *NS, bName string, bAddrs []string) {
	t.Helper()
	a.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.fd)})
		if err != nil {
			t.Fatalf("veth %s–%s: %v", aName, bName, err)
		}
	})
	a.Up(aName, aAddrs...)
	b.Up(bName, bAddrs...)
	a.ready(aName)
	b.ready(bName)
}

// ready waits for IPv6: the kernel gives a device its link-local address, and addresses their local routes, from a work
// queue, and does not answer neighbour solicitations before.
func (ns *NS) ready(device string) {
	ns.t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName(device)
		if err != nil {
			ns.t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
			local, linkLocal := err == nil, false
			for _, a := range addrs {
				routes, err := netlink.RouteGetWithOptions(a.IP, &netlink.RouteGetOptions{OifIndex: link.Attrs().Index})
				local = local && err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL && a.Flags&unix.IFA_F_TENTATIVE == 0
				linkLocal = linkLocal || a.IP.IsLinkLocalUnicast()
			}
			if local && linkLocal {
				return
			}
		}
		ns.t.Fatalf("%s has no IPv6 after 2 s", device)
	})
}

// Device makes an ordinary Ethernet device that leads nowhere: one end of a veth, as not every kernel has dummies.
func (ns *NS) Device(name string) {
	ns.t.Helper()
	ns.Do(func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + ".peer"}); err != nil {
			ns.t.Fatalf("device %s: %v", name, err)
		}
	})
}

// Up brings a device up and gives it addresses, IPv6 ones without detection of duplicates.
func (ns *NS) Up(device string, addrs ...string) {
	ns.t.Helper()
	ns.Do(func() {
		link, err := netlink.LinkByName(device)
		if err != nil {
			ns.t.Fatalf("%s: %v", device, err)
		}
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				ns.t.Fatal(err)
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				ns.t.Fatalf("address %s on %s: %v", s, device, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			ns.t.Fatalf("%s up: %v", device, err)
		}
	})
}

// Route adds a route, "default" or a prefix, via a gateway.
func (ns *NS) Route(dst, gateway string) {
	ns.t.Helper()
	ns.Do(func() {
		gw, err := netlink.ParseAddr(gateway + "/128")
		if err != nil {
			gw, err = netlink.ParseAddr(gateway + "/32")
		}
		if err != nil {
			ns.t.Fatal(err)
		}
		rt := &netlink.Route{Gw: gw.IP}
		if dst != "default" {
			if rt.Dst, err = netlink.ParseIPNet(dst); err != nil {
				ns.t.Fatal(err)
			}
		}
		if err := netlink.RouteAdd(rt); err != nil {
			ns.t.Fatalf("route %s via %s: %v", dst, gateway, err)
		}
	})
}

// TUN makes a persistent TUN (one queue, no packet information) and returns its queue: one IP packet a read and a write,
// non-blocking. It is closed with the test.
func (ns *NS) TUN(name string) int {
	ns.t.Helper()
	fd := -1
	ns.Do(func() {
		var err error
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			ns.t.Skipf("needs /dev/net/tun: %v", err)
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			ns.t.Fatal(err)
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			ns.t.Fatalf("TUNSETIFF %s: %v", name, err)
		}
		if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
			ns.t.Fatal(err)
		}
	})
	ns.t.Cleanup(func() { unix.Close(fd) })
	return fd
}
