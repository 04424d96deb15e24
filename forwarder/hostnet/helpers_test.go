package hostnet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func testConfig() Config {
	return Config{
		Device: "penstock0", MTU: 1450,
		Address:  netip.MustParseAddr("192.0.2.1"),
		PodCIDRs: prefixes("10.244.1.0/24", "fd00:10:244:1::/64"),
		Cluster:  prefixes("10.244.0.0/16", "fd00:10:244::/48"),
		Tunnels:  []Tunnel{{Proto: 17, Port: 8472}},
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// node is a namespace with a TUN and an uplink to another namespace, where 192.0.2.2 and 2001:db8::2 live.
func node(t *testing.T) (host, outside *nstest.NS, tun int) {
	t.Helper()
	host, outside = nstest.New(t), nstest.New(t)
	nstest.Veth(t, host, "eth0", []string{"192.0.2.1/24", "2001:db8::1/64"}, outside, "eth0", []string{"192.0.2.2/24", "2001:db8::2/64"})
	host.Sysctl("net/ipv4/ip_forward", "1")
	host.Sysctl("net/ipv6/conf/all/forwarding", "1")
	return host, outside, host.TUN("penstock0")
}

func apply(t *testing.T, ns *nstest.NS, cfg Config) (r Report) {
	t.Helper()
	ns.Do(func() {
		h, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if r, err = h.Apply(context.Background()); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

// state writes down everything in a namespace that this package may change, and more.
func state(t *testing.T, ns *nstest.NS) string {
	t.Helper()
	var lines []string
	ns.Do(func() {
		links, err := netlink.LinkList()
		check(t, err)
		for _, l := range links {
			a := l.Attrs()
			lines = append(lines, fmt.Sprintf("link %s %s mtu %d %s qlen %d", a.Name, l.Type(), a.MTU, a.Flags&^net.FlagRunning, a.TxQLen))
			addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			check(t, err)
			for _, ad := range addrs {
				lines = append(lines, fmt.Sprintf("addr %s %s scope %d flags %#x", a.Name, ad.IPNet, ad.Scope, ad.Flags))
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			check(t, err)
			for _, r := range routes {
				lines = append(lines, "route "+r.String())
			}
		}
		conn, err := nftables.New()
		check(t, err)
		tables, err := conn.ListTables()
		check(t, err)
		for _, tb := range tables {
			lines = append(lines, fmt.Sprintf("table %d %s", tb.Family, tb.Name))
			chains, err := conn.ListChainsOfTableFamily(tb.Family)
			check(t, err)
			for _, ch := range chains {
				if ch.Table.Name != tb.Name {
					continue
				}
				ch.Table = tb
				line := fmt.Sprintf("chain %s/%s", tb.Name, ch.Name)
				if ch.Policy != nil {
					line += fmt.Sprintf(" policy %d", *ch.Policy)
				}
				lines = append(lines, line)
				rules, err := conn.GetRules(tb, ch)
				check(t, err)
				for _, rule := range rules {
					c, _ := userdata.GetString(rule.UserData, userdata.TypeComment)
					lines = append(lines, fmt.Sprintf("rule %s/%s %s", tb.Name, ch.Name, c))
				}
			}
		}
		files, _ := filepath.Glob("/proc/sys/net/ipv[46]/conf/*/*")
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && !strings.HasSuffix(f, "stable_secret") {
				lines = append(lines, f+"="+strings.TrimSpace(string(b)))
			}
		}
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// settled is state when it no longer changes: an IPv6 address gets its local route from a work queue of the kernel.
func settled(t *testing.T, ns *nstest.NS) string {
	t.Helper()
	was := state(t, ns)
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
		is := state(t, ns)
		if is == was {
			return is
		}
		was = is
	}
	t.Fatal("the namespace does not come to rest")
	return ""
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// udpPacket is an IP packet as a pod would send it.
func udpPacket(t *testing.T, src, dst string, sport, dport uint16) []byte {
	t.Helper()
	s, d := net.ParseIP(src), net.ParseIP(dst)
	udp := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	var ip gopacket.SerializableLayer
	if s.To4() != nil {
		l := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: s, DstIP: d}
		check(t, udp.SetNetworkLayerForChecksum(l))
		ip = l
	} else {
		l := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: s, DstIP: d}
		check(t, udp.SetNetworkLayerForChecksum(l))
		ip = l
	}
	buf := gopacket.NewSerializeBuffer()
	check(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload("penstock")))
	return buf.Bytes()
}

// readTUN returns the packets that the host sends into the TUN within a time, or until enough says so.
func readTUN(tun int, wait time.Duration, enough func([]byte) bool) (got [][]byte) {
	deadline := time.Now().Add(wait)
	for left := wait; left > 0; left = time.Until(deadline) {
		if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(tun), Events: unix.POLLIN}}, int(left.Milliseconds())+1); n < 1 {
			continue
		}
		b := make([]byte, 65536)
		n, err := unix.Read(tun, b)
		if err != nil {
			continue
		}
		got = append(got, b[:n])
		if enough(b[:n]) {
			break
		}
	}
	return got
}

// listenUDP opens a socket in ns.
func listenUDP(t *testing.T, ns *nstest.NS, addr string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	ns.Do(func() {
		var err error
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
		check(t, err)
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// sender reads one datagram and says who sent it; the zero AddrPort if none came.
func sender(c *net.UDPConn, wait time.Duration) netip.AddrPort {
	c.SetReadDeadline(time.Now().Add(wait))
	_, from, _ := c.ReadFromUDPAddrPort(make([]byte, 2048))
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}
