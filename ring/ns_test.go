//go:build linux

package ring

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// testNS is an unnamed network namespace: it lives as long as this process
// holds it open or has something in it.
type testNS struct {
	t    testing.TB
	file int
	h    *netlink.Handle
}

func newNS(t testing.TB) *testNS {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if _, err := os.Stat(tunPath); err != nil {
		t.Skipf("needs %s: %v", tunPath, err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old := openNS(t)
	defer unix.Close(old)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	defer func() { must(t, unix.Setns(old, unix.CLONE_NEWNET)) }()
	// No router solicitations or multicast reports between our frames.
	for _, c := range []string{"all", "default"} {
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+c+"/accept_dad", []byte("0"), 0o644))
		must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+c+"/router_solicitations", []byte("0"), 0o644))
	}
	ns := &testNS{t: t, file: openNS(t)}
	t.Cleanup(func() { unix.Close(ns.file) })
	var err error
	ns.h, err = netlink.NewHandleAt(netns.NsHandle(ns.file))
	must(t, err)
	t.Cleanup(ns.h.Close)
	lo, err := ns.h.LinkByName("lo")
	must(t, err)
	must(t, ns.h.LinkSetUp(lo))
	return ns
}

func openNS(t testing.TB) int {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	return fd
}

// do runs fn on a thread in the namespace.
func (ns *testNS) do(fn func()) {
	ns.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	old := openNS(ns.t)
	defer unix.Close(old)
	must(ns.t, unix.Setns(ns.file, unix.CLONE_NEWNET))
	defer func() { must(ns.t, unix.Setns(old, unix.CLONE_NEWNET)) }()
	fn()
}

// veth makes a pair of up devices, one in each namespace, without IPv6 unless
// addresses are given later.
func veth(t testing.TB, a *testNS, nameA string, b *testNS, nameB string, mtu int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = nameA, mtu
	must(t, a.h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(b.file)}))
	for _, e := range []struct {
		ns   *testNS
		name string
	}{{a, nameA}, {b, nameB}} {
		e.ns.do(func() {
			must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+e.name+"/disable_ipv6", []byte("1"), 0o644))
		})
		l, err := e.ns.h.LinkByName(e.name)
		must(t, err)
		must(t, e.ns.h.LinkSetMTU(l, mtu))
		must(t, e.ns.h.LinkSetUp(l))
	}
	// Until the kernel has heard of the carrier the device's qdisc drops all.
	a.running(nameA)
	b.running(nameB)
}

func (ns *testNS) running(name string) {
	ns.t.Helper()
	eventually(ns.t, name+" running", func() bool {
		l, err := ns.h.LinkByName(name)
		must(ns.t, err)
		return l.Attrs().OperState == netlink.OperUp || l.Attrs().OperState == netlink.OperUnknown
	})
}

// address gives a device an address.
func (ns *testNS) address(name, prefix string) {
	ns.t.Helper()
	l, err := ns.h.LinkByName(name)
	must(ns.t, err)
	p := netip.MustParsePrefix(prefix)
	if p.Addr().Is6() {
		ns.do(func() {
			must(ns.t, os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("0"), 0o644))
		})
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	must(ns.t, ns.h.AddrAdd(l, a))
	if !p.Addr().Is6() {
		return
	}
	// IPv6 takes up a device and an address on its own time.
	ns.running(name)
	eventually(ns.t, prefix+" in use", func() bool {
		local, err := ns.h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL, LinkIndex: l.Attrs().Index},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
		must(ns.t, err)
		for _, r := range local {
			if r.Dst != nil && r.Dst.IP.Equal(a.IP) {
				return true
			}
		}
		return false
	})
}

func (ns *testNS) up(name string) {
	ns.t.Helper()
	l, err := ns.h.LinkByName(name)
	must(ns.t, err)
	must(ns.t, ns.h.LinkSetUp(l))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls cond for twenty seconds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		if cond() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after 20 s still not: %s", what)
		}
	}
}

var (
	testMACa = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}
	testMACb = net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
)

// udpFrame is an Ethernet frame with a datagram of n bytes, all of value fill.
func udpFrame(n int, fill byte) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{10, 9, 0, 1}, DstIP: net.IP{10, 9, 0, 2}}
	udp := &layers.UDP{SrcPort: 1000, DstPort: 2000}
	_ = udp.SetNetworkLayerForChecksum(ip)
	return build(ip, udp, n, fill)
}

// tcpFrame is an Ethernet frame with a TCP payload of n bytes.
func tcpFrame(n int, fill byte) []byte {
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 9, 0, 1}, DstIP: net.IP{10, 9, 0, 2}}
	tcp := &layers.TCP{SrcPort: 1000, DstPort: 2000, ACK: true, Window: 1000, Seq: 1}
	_ = tcp.SetNetworkLayerForChecksum(ip)
	return build(ip, tcp, n, fill)
}

func build(ip *layers.IPv4, l4 gopacket.SerializableLayer, n int, fill byte) []byte {
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = fill
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: testMACa, DstMAC: testMACb, EthernetType: layers.EthernetTypeIPv4}, ip, l4, gopacket.Payload(payload))
	if err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// Virtio metadata for the frames above.
var (
	tcpSuper = Virtio{Flags: NeedsCsum, GSOType: GSOTCPv4, HdrLen: 54, GSOSize: 1400, CsumStart: 34, CsumOffset: 16}
	udpSuper = Virtio{Flags: NeedsCsum, GSOType: GSOUDPL4, HdrLen: 42, GSOSize: 1200, CsumStart: 34, CsumOffset: 6}
)

// noAllocs fails if fn allocates.
func noAllocs(t *testing.T, what string, fn func()) {
	t.Helper()
	fn()
	if n := testing.AllocsPerRun(50, fn); n != 0 {
		t.Errorf("%s: %v allocations, want none", what, n)
	}
}
