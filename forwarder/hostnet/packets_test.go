package hostnet

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

const soon = 20 * time.Second // a busy machine may be late; what comes is there at once

func TestMasquerade(t *testing.T) {
	for _, on := range []bool{true, false} {
		host, outside, tun := node(t)
		cfg := testConfig()
		cfg.Masquerade = on
		apply(t, host, cfg)
		outside.Route("10.244.0.0/16", "192.0.2.1")
		outside.Route("fd00:10:244::/48", "2001:db8::1")
		markByHand(t, host)

		pod4, pod6 := netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:10:244:1::5")
		node4, node6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
		if !on {
			node4, node6 = pod4, pod6
		}
		for _, c := range []struct {
			name     string
			src, dst string
			dport    uint16
			want     netip.Addr
		}{
			{"IPv4", "10.244.1.5", "192.0.2.2", 9000, node4},
			{"IPv6", "fd00:10:244:1::5", "2001:db8::2", 9000, node6},
			{"marked by kube-proxy", "10.244.1.5", "192.0.2.2", 7777, pod4},
			{"marked by kube-proxy, IPv6", "fd00:10:244:1::5", "2001:db8::2", 7777, pod6},
		} {
			l := listenUDP(t, outside, netip.AddrPortFrom(netip.MustParseAddr(c.dst), c.dport).String())
			_, err := unix.Write(tun, udpPacket(t, c.src, c.dst, 4444, c.dport))
			check(t, err)
			from := sender(l, soon)
			if from.Addr() != c.want {
				t.Errorf("masquerade %v: %s: came from %v, want %v", on, c.name, from, c.want)
				continue
			}
			// The way back ends in the TUN with the pod's own address and port.
			_, err = l.WriteToUDPAddrPort([]byte("answer"), from)
			check(t, err)
			want := netip.AddrPortFrom(netip.MustParseAddr(c.src), 4444)
			got := readTUN(tun, soon, func(b []byte) bool { return destination(b) == want })
			if len(got) == 0 || destination(got[len(got)-1]) != want {
				t.Errorf("masquerade %v: %s: the answer did not come back to %v", on, c.name, want)
			}
			l.Close()
		}

		// Inside the cluster nothing is translated, and the detour through the host earns the pod no redirect.
		for _, c := range []struct{ src, dst string }{{"10.244.1.5", "10.244.2.5"}, {"fd00:10:244:1::5", "fd00:10:244:2::5"}} {
			for range 3 { // the kernel waits for the second packet of a sender
				_, err := unix.Write(tun, udpPacket(t, c.src, c.dst, 4444, 9000))
				check(t, err)
			}
			n := 0
			for _, b := range readTUN(tun, 300*time.Millisecond, func([]byte) bool { return false }) {
				switch p := decode(b); {
				case p.Layer(layers.LayerTypeICMPv4) != nil:
					t.Errorf("masquerade %v: the host sent the pod an ICMP message: %v", on, p)
				case destination(b) == netip.AddrPortFrom(netip.MustParseAddr(c.dst), 9000):
					n++
					if got := p.NetworkLayer().NetworkFlow().Src().String(); got != c.src {
						t.Errorf("masquerade %v: inside the cluster the source became %s", on, got)
					}
				}
			}
			if n != 3 {
				t.Errorf("masquerade %v: %d of 3 packets %s → %s came back out", on, n, c.src, c.dst)
			}
		}

		// Multicast from a pod's address keeps it; the same socket's unicast does not.
		got := multicastSource(t, host, outside)
		if got != netip.MustParseAddr("10.244.1.0") {
			t.Errorf("masquerade %v: multicast left with the source %v", on, got)
		}
	}
}

// Fully random source ports: two pods that choose the same port do not race for it.
func TestMasqueradeRandomPorts(t *testing.T) {
	host, outside, tun := node(t)
	cfg := testConfig()
	cfg.Masquerade = true
	apply(t, host, cfg)
	l := listenUDP(t, outside, "192.0.2.2:9000")
	kept := 0
	for i := range 8 {
		port := uint16(40000 + i)
		_, err := unix.Write(tun, udpPacket(t, "10.244.1.5", "192.0.2.2", port, 9000))
		check(t, err)
		from := sender(l, soon)
		if !from.IsValid() {
			t.Fatal("a packet is missing")
		}
		if from.Port() == port {
			kept++
		}
	}
	if kept > 2 { // by chance: 1 in 64,000 each
		t.Errorf("%d of 8 flows kept their port", kept)
	}
}

// The control for the redirect test: without our rule the kernel does send them.
func TestRedirectsWithoutRule(t *testing.T) {
	host, _, tun := node(t)
	apply(t, host, testConfig())
	host.Do(func() {
		conn, err := nftables.New()
		check(t, err)
		conn.DelTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyINet})
		check(t, conn.Flush())
	})
	for range 3 {
		_, err := unix.Write(tun, udpPacket(t, "10.244.1.5", "10.244.2.5", 4444, 9000))
		check(t, err)
	}
	seen := false
	readTUN(tun, soon, func(b []byte) bool {
		seen = seen || decode(b).Layer(layers.LayerTypeICMPv4) != nil
		return seen
	})
	if !seen {
		t.Error("the kernel sends no redirects here, so the rule against them is not tested by TestMasquerade")
	}
}

func TestTunnelIsNotTracked(t *testing.T) {
	host, outside, tun := node(t)
	cfg := testConfig()
	cfg.Masquerade = true // a reason for conntrack to be on
	cfg.Tunnels = []Tunnel{{Proto: 17, Port: 8472}, {Proto: 4}, {Proto: 41}}
	apply(t, host, cfg)
	cfg6 := cfg
	cfg6.Address = netip.MustParseAddr("2001:db8::1")
	flows := func(port uint16) (n int) {
		host.Do(func() {
			for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				list, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
				check(t, err)
				for _, f := range list {
					if f.Forward.DstPort == port || port == 0 && (f.Forward.Protocol == 4 || f.Forward.Protocol == 41) {
						n++
					}
				}
			}
		})
		return n
	}
	exchange := func(a, b string, port string) {
		t.Helper()
		x, y := listenUDP(t, host, net.JoinHostPort(a, port)), listenUDP(t, outside, net.JoinHostPort(b, port))
		for _, d := range []struct{ from, to *net.UDPConn }{{x, y}, {y, x}} {
			_, err := d.from.WriteToUDPAddrPort([]byte("x"), d.to.LocalAddr().(*net.UDPAddr).AddrPort())
			check(t, err)
			if !sender(d.to, soon).IsValid() {
				t.Fatalf("%s → %s did not arrive", d.from.LocalAddr(), d.to.LocalAddr())
			}
		}
		x.Close()
		y.Close()
	}
	exchange("192.0.2.1", "192.0.2.2", "8472")
	exchange("192.0.2.1", "192.0.2.2", "8473")
	if got := [2]int{flows(8472), flows(8473)}; got != [2]int{0, 1} {
		t.Errorf("IPv4: conntrack has %d flows of the tunnel's port (want 0), %d of another (want 1)", got[0], got[1])
	}
	exchange("2001:db8::1", "2001:db8::2", "8472") // not this node's address: tracked
	if got := flows(8472); got != 1 {
		t.Errorf("a foreign tunnel on another address: %d flows, want 1", got)
	}
	apply(t, host, cfg6)
	exchange("2001:db8::1", "2001:db8::2", "8473")
	exchange("2001:db8::1", "2001:db8::2", "8472")
	if got := flows(8473); got != 2 {
		t.Errorf("IPv6: %d flows of another port, want 2", got)
	}

	// IPIP, in and out. What a raw socket has is past conntrack; without our rules it is tracked.
	without := cfg
	without.Tunnels = nil
	inner := udpPacket(t, "10.244.1.5", "10.244.2.5", 1, 2)
	for _, c := range []struct {
		cfg  Config
		want int
	}{{without, 1}, {cfg, 0}} {
		apply(t, host, c.cfg)
		for _, proto := range []string{"ip4:4", "ip4:41"} {
			for _, d := range []struct {
				from, to *nstest.NS
				src, dst string
			}{{host, outside, "192.0.2.1", "192.0.2.2"}, {outside, host, "192.0.2.2", "192.0.2.1"}} {
				host.Do(func() { check(t, netlink.ConntrackTableFlush(netlink.ConntrackTable)) })
				raw := func(ns *nstest.NS, address string) (c *net.IPConn) {
					ns.Do(func() {
						var err error
						c, err = net.ListenIP(proto, &net.IPAddr{IP: net.ParseIP(address)})
						check(t, err)
					})
					return c
				}
				from, to := raw(d.from, d.src), raw(d.to, d.dst)
				_, err := from.WriteToIP(inner, &net.IPAddr{IP: net.ParseIP(d.dst)})
				check(t, err)
				check(t, to.SetReadDeadline(time.Now().Add(soon)))
				if _, _, err := to.ReadFromIP(make([]byte, 2048)); err != nil {
					t.Errorf("%s from %s: %v", proto, d.src, err)
				}
				from.Close()
				to.Close()
				if got := flows(0); got != c.want {
					t.Errorf("%s from %s with %d tunnels: conntrack has %d flows, want %d", proto, d.src, len(c.cfg.Tunnels), got, c.want)
				}
			}
		}
	}

	// What somebody else tunnels through this host, from a pod, stays tracked and is masqueraded.
	l := listenUDP(t, outside, "192.0.2.2:8472")
	_, err := unix.Write(tun, udpPacket(t, "10.244.1.5", "192.0.2.2", 5555, 8472))
	check(t, err)
	if from := sender(l, soon); from.Addr() != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("a pod's own tunnel came from %v, so it was not tracked", from)
	}
}

// The drop keeps frames from the stack, and a tap of ETH_P_ALL still sees them.
func TestBlockIngress(t *testing.T) {
	host, outside, _ := node(t)
	l := listenUDP(t, host, "192.0.2.1:9000")
	c := listenUDP(t, outside, "192.0.2.2:9000")
	var all, ip int
	host.Do(func() {
		link, err := netlink.LinkByName("eth0")
		check(t, err)
		open := func(proto uint16) int {
			be := proto<<8 | proto>>8
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(be))
			check(t, err)
			t.Cleanup(func() { unix.Close(fd) })
			check(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: be, Ifindex: link.Attrs().Index}))
			return fd
		}
		all, ip = open(unix.ETH_P_ALL), open(unix.ETH_P_IP)
	})
	send := func() (stack bool, taps [2]bool) {
		for _, fd := range []int{all, ip} {
			for b := make([]byte, 2048); ; {
				if _, err := unix.Read(fd, b); err != nil {
					break
				}
			}
		}
		_, err := c.WriteToUDPAddrPort([]byte("penstock"), netip.MustParseAddrPort("192.0.2.1:9000"))
		check(t, err)
		stack = sender(l, 300*time.Millisecond).IsValid()
		for i, fd := range []int{all, ip} {
			for b := make([]byte, 2048); ; {
				n, err := unix.Read(fd, b)
				if err != nil {
					break
				}
				p := gopacket.NewPacket(b[:n], layers.LayerTypeEthernet, gopacket.Default)
				if u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP); ok && u.DstPort == 9000 {
					taps[i] = true
				}
			}
		}
		return stack, taps
	}
	h, err := New(testConfig())
	check(t, err)
	expect := func(when string, wantStack bool, wantTaps [2]bool) {
		t.Helper()
		if stack, taps := send(); stack != wantStack || taps != wantTaps {
			t.Errorf("%s: stack %v, taps (ETH_P_ALL, ETH_P_IP) %v; want %v, %v", when, stack, taps, wantStack, wantTaps)
		}
	}
	expect("before", true, [2]bool{true, true})
	for range 2 {
		host.Do(func() { check(t, h.BlockIngress("eth0")) })
		expect("blocked", false, [2]bool{true, false})
	}
	host.Do(func() { // somebody lets it accept
		conn, err := OpenNFT()
		check(t, err)
		accept := nftables.ChainPolicyAccept
		conn.AddChain(&nftables.Chain{Name: "eth0", Table: netdevTable, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress, Priority: ingressPriority, Policy: &accept, Device: "eth0"})
		check(t, conn.Flush())
	})
	expect("accepting", true, [2]bool{true, true})
	host.Do(func() {
		check(t, h.BlockIngress("eth0"))
		got, err := h.Blocked()
		check(t, err)
		if !slices.Equal(got, []string{"eth0"}) {
			t.Errorf("Blocked: %q", got)
		}
	})
	expect("blocked again", false, [2]bool{true, false})
	host.Do(func() { // one of that name is another device's
		check(t, h.UnblockIngress("eth0"))
		host.Device("ps1")
		conn, err := OpenNFT()
		check(t, err)
		drop := nftables.ChainPolicyDrop
		conn.AddTable(netdevTable)
		conn.AddChain(&nftables.Chain{Name: "eth0", Table: netdevTable, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress, Priority: ingressPriority, Policy: &drop, Device: "ps1"})
		check(t, conn.Flush())
	})
	expect("another device's", true, [2]bool{true, true})
	host.Do(func() { check(t, h.BlockIngress("eth0")) })
	expect("taken over", false, [2]bool{true, false})
	host.Do(func() {
		check(t, h.UnblockIngress("eth0"))
		check(t, h.UnblockIngress("eth0"))
		if err := h.BlockIngress("nobody"); err == nil {
			t.Error("blocked a device that does not exist")
		}
	})
	expect("unblocked", true, [2]bool{true, true})
	host.Do(func() {
		r, err := h.ReconcileIngress([]string{"eth0"})
		check(t, err)
		if !slices.Equal(r.Added, []string{"ingress drop on eth0"}) {
			t.Errorf("reconcile: %+v", r)
		}
	})
	expect("reconciled", false, [2]bool{true, false})
	host.Do(func() {
		r, err := h.ReconcileIngress(nil)
		check(t, err)
		if !slices.Equal(r.Removed, []string{"ingress drop on eth0"}) {
			t.Errorf("reconcile with nothing: %+v", r)
		}
	})
	expect("reconciled with nothing", true, [2]bool{true, true})
}

// Devices come and go under their names while nobody looks.
func TestBlockIngressOfVanishedDevices(t *testing.T) {
	host, _, _ := node(t)
	h, err := New(testConfig())
	check(t, err)
	add := func(name string) { host.Device(name) }
	remove := func(name string) {
		l, err := netlink.LinkByName(name)
		check(t, err)
		check(t, netlink.LinkDel(l))
	}
	host.Do(func() {
		for _, name := range []string{"ps1", "ps2", "ps3"} {
			add(name)
			check(t, h.BlockIngress(name))
		}
		remove("ps1")
		remove("ps2")
		add("ps2")
		check(t, h.BlockIngress("ps2")) // a new device of the same name
		check(t, h.UnblockIngress("ps1"))
		r, err := h.ReconcileIngress([]string{"ps2", "ps3", "ps4"})
		check(t, err)
		if len(r.Findings) != 1 || r.Findings[0].Subject != "device ps4" {
			t.Errorf("findings: %v", r.Findings)
		}
		got, err := h.Blocked()
		check(t, err)
		if !slices.Equal(got, []string{"ps2", "ps3"}) {
			t.Errorf("blocked: %q", got)
		}
		remove("ps3")
		remove("ps2")
		r, err = h.ReconcileIngress(nil)
		check(t, err)
		if got, err = h.Blocked(); err != nil || len(got) != 0 {
			t.Errorf("blocked after all went: %q, %v", got, err)
		}
		// A node's worth, in one transaction.
		var names []string
		for i := range 300 {
			names = append(names, "many"+strconv.Itoa(i))
			if i%2 == 0 {
				add(names[i])
			} else {
				names[i] = names[i-1] + ".peer"
			}
		}
		if r, err = h.ReconcileIngress(names); err != nil || len(r.Added) != 300 {
			t.Errorf("300 devices: %d added, %v", len(r.Added), err)
		}
		if r, err = h.ReconcileIngress(names); err != nil || r.Changed() {
			t.Errorf("300 devices again: %+v, %v", r, err)
		}
		if r, err = h.ReconcileIngress(nil); err != nil || len(r.Removed) != 300 {
			t.Errorf("300 devices gone: %d removed, %v", len(r.Removed), err)
		}
	})
}

func decode(b []byte) gopacket.Packet {
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	return gopacket.NewPacket(b, first, gopacket.Default)
}

func destination(b []byte) netip.AddrPort {
	p := decode(b)
	u, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if !ok {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Dst().Raw())
	return netip.AddrPortFrom(a, uint16(u.DstPort))
}

// markByHand marks what goes to port 7777, as kube-proxy marks what it masquerades itself.
func markByHand(t *testing.T, ns interface{ Do(func()) }) {
	ns.Do(func() {
		conn, err := nftables.New()
		check(t, err)
		tb := conn.AddTable(&nftables.Table{Name: "kube", Family: nftables.TableFamilyINet})
		ch := conn.AddChain(&nftables.Chain{Name: "mark", Table: tb, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle})
		conn.AddRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: append(new(builder).proto(17).dport(7777).exprs,
			&expr.Immediate{Register: 1, Data: []byte{0, 0x40, 0, 0}}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})})
		check(t, conn.Flush())
	})
}

// multicastSource sends to a group from penstock0's address over the uplink and says what source the other end saw.
func multicastSource(t *testing.T, host, outside interface{ Do(func()) }) netip.Addr {
	var tap, out int
	outside.Do(func() {
		var err error
		be := uint16(unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8)
		tap, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(be))
		check(t, err)
		check(t, unix.SetsockoptTimeval(tap, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}))
	})
	defer unix.Close(tap)
	host.Do(func() {
		var err error
		out, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		defer unix.Close(out)
		link, err := netlink.LinkByName("eth0")
		check(t, err)
		check(t, unix.Bind(out, &unix.SockaddrInet4{Addr: [4]byte{10, 244, 1, 0}}))
		check(t, unix.SetsockoptIPMreqn(out, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(link.Attrs().Index)}))
		check(t, unix.Sendto(out, []byte("group"), 0, &unix.SockaddrInet4{Addr: [4]byte{239, 1, 1, 1}, Port: 9999}))
	})
	for b := make([]byte, 2048); ; {
		n, err := unix.Read(tap, b)
		if err != nil {
			t.Fatalf("no multicast arrived: %v", err)
		}
		if destination(b[:n]) == netip.MustParseAddrPort("239.1.1.1:9999") {
			a, _ := netip.AddrFromSlice(b[12:16])
			return a
		}
	}
}
