package hostflow

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// A pod, a host that translates as kube-proxy does, and a backend:
//
//	pod 10.244.1.5 ── 10.244.1.1 host 10.244.2.1 ── backend 10.244.2.5
//	                       10.96.0.1, 10.96.0.2 port 80 → backend port 8080, echo → backend
//	                       10.96.0.3 the same, masqueraded
type kube struct{ pod, host, backend *nstest.NS }

var (
	pods4, pods6       = netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")
	backend4, backend6 = netip.MustParseAddr("10.244.2.5"), netip.MustParseAddr("fd00:2::5")
)

func newKube(t *testing.T) *kube {
	k := &kube{nstest.New(t), nstest.New(t), nstest.New(t)}
	nstest.Veth(t, k.pod, "eth0", []string{"10.244.1.5/24", "fd00:1::5/64"}, k.host, "pod", []string{"10.244.1.1/24", "fd00:1::1/64"})
	nstest.Veth(t, k.backend, "eth0", []string{"10.244.2.5/24", "fd00:2::5/64"}, k.host, "backend", []string{"10.244.2.1/24", "fd00:2::1/64"})
	k.pod.Route("default", "10.244.1.1")
	k.pod.Route("default", "fd00:1::1")
	k.backend.Route("default", "10.244.2.1")
	k.backend.Route("default", "fd00:2::1")
	k.host.Sysctl("net/ipv4/ip_forward", "1")
	k.host.Sysctl("net/ipv6/conf/all/forwarding", "1")
	k.host.Do(func() {
		conn, err := nftables.New()
		check(t, err)
		tb := conn.AddTable(&nftables.Table{Name: "kube", Family: nftables.TableFamilyINet})
		pre := conn.AddChain(&nftables.Chain{Name: "pre", Table: tb, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		post := conn.AddChain(&nftables.Chain{Name: "post", Table: tb, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		for n := 1; n <= 3; n++ {
			for _, v6 := range []bool{false, true} {
				svc, to := serviceAddr(n, v6), backend4
				family, off := byte(unix.NFPROTO_IPV4), uint32(16)
				if v6 {
					to, family, off = backend6, unix.NFPROTO_IPV6, 24
				}
				toService := []expr.Any{
					&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{family}},
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: uint32(svc.BitLen() / 8)},
					&expr.Cmp{Register: 1, Data: svc.AsSlice()},
				}
				if n == 3 {
					conn.AddRule(&nftables.Rule{Table: tb, Chain: pre, Exprs: append(slices.Clone(toService),
						&expr.Immediate{Register: 1, Data: []byte{1, 0, 0, 0}}, &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})})
				}
				for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
					conn.AddRule(&nftables.Rule{Table: tb, Chain: pre, Exprs: append(slices.Clone(toService),
						&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{proto}},
						&expr.Immediate{Register: 1, Data: to.AsSlice()}, &expr.Immediate{Register: 2, Data: []byte{8080 >> 8, 8080 & 255}},
						&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: 1, RegProtoMin: 2})})
				}
				conn.AddRule(&nftables.Rule{Table: tb, Chain: pre, Exprs: append(slices.Clone(toService),
					&expr.Immediate{Register: 1, Data: to.AsSlice()},
					&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: 1})})
			}
		}
		conn.AddRule(&nftables.Rule{Table: tb, Chain: post, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{1, 0, 0, 0}}, &expr.Masq{}}})
		check(t, conn.Flush())
	})
	return k
}

func serviceAddr(n int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:96::%d", n))
	}
	return netip.MustParseAddr(fmt.Sprintf("10.96.0.%d", n))
}

// exchange sends one message to a service and returns the answer's tuple as the backend saw the other end of it.
func (k *kube) exchange(t *testing.T, proto uint8, n int, v6 bool, port uint16) Tuple {
	t.Helper()
	svc, backend := serviceAddr(n, v6), backend4
	src := "10.244.1.5"
	if v6 {
		backend, src = backend6, "fd00:1::5"
	}
	var seen netip.AddrPort
	switch proto {
	case unix.IPPROTO_UDP:
		var l, c *net.UDPConn
		k.backend.Do(func() {
			var err error
			l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(backend, 8080)))
			check(t, err)
		})
		defer l.Close()
		k.pod.Do(func() {
			var err error
			c, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(src), Port: int(port)}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(svc, 80)))
			check(t, err)
		})
		defer c.Close()
		_, err := c.Write([]byte("question"))
		check(t, err)
		b := make([]byte, 64)
		l.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, seen, err = l.ReadFromUDPAddrPort(b)
		check(t, err)
		_, err = l.WriteToUDPAddrPort([]byte("answer"), seen)
		check(t, err)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Read(b)
		check(t, err)
	case unix.IPPROTO_TCP:
		var l net.Listener
		k.backend.Do(func() {
			var err error
			l, err = net.Listen("tcp", netip.AddrPortFrom(backend, 8080).String())
			check(t, err)
		})
		defer l.Close()
		k.pod.Do(func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(src), Port: int(port)}, Timeout: 20 * time.Second}
			c, err := d.Dial("tcp", netip.AddrPortFrom(svc, 80).String())
			check(t, err)
			t.Cleanup(func() { c.Close() })
		})
		c, err := l.Accept()
		check(t, err)
		t.Cleanup(func() { c.Close() })
		seen = c.RemoteAddr().(*net.TCPAddr).AddrPort()
	default: // echo
		k.pod.Do(func() {
			network, typ, num := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), 1
			if v6 {
				network, typ, num = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, 58
			}
			c, err := icmp.ListenPacket(network, src)
			check(t, err)
			defer c.Close()
			b, err := (&icmp.Message{Type: typ, Body: &icmp.Echo{ID: int(port), Seq: 1, Data: []byte("penstock")}}).Marshal(nil)
			check(t, err)
			_, err = c.WriteTo(b, &net.IPAddr{IP: svc.AsSlice()})
			check(t, err)
			c.SetReadDeadline(time.Now().Add(20 * time.Second))
			for {
				b := make([]byte, 512)
				n, from, err := c.ReadFrom(b)
				if err != nil {
					t.Fatalf("no echo from %v: %v", svc, err)
				}
				m, err := icmp.ParseMessage(num, b[:n])
				if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
					continue
				}
				if from.String() != svc.String() {
					t.Fatalf("the echo came from %v, not from %v", from, svc)
				}
				break
			}
		})
		pod := netip.MustParseAddr(src)
		return Tuple{Proto: proto, Src: backend, Dst: pod, SrcPort: port, DstPort: port}
	}
	return Tuple{Proto: proto, Src: backend, Dst: seen.Addr().Unmap(), SrcPort: 8080, DstPort: seen.Port()}
}

// Real flows: what the dump preloads and the destroy events name is what the answer looks like to the backend.
func TestRealTranslations(t *testing.T) {
	k := newKube(t)
	tb := newTable(t, k.host)
	m := newMemory()
	m.local = func(a netip.Addr) bool { // as the forwarder does: pods, but not the host's own address
		return (pods4.Contains(a) || pods6.Contains(a)) && a != netip.MustParseAddr("10.244.1.1") && a != netip.MustParseAddr("fd00:1::1")
	}
	tr := open(t, k.host, Config{Sink: m, Audit: time.Hour})
	var want []Tuple
	for _, v6 := range []bool{false, true} {
		echo := uint8(unix.IPPROTO_ICMP)
		if v6 {
			echo = unix.IPPROTO_ICMPV6
		}
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, echo} {
			want = append(want, k.exchange(t, proto, 1, v6, 4000))
		}
		// The same port to another service with the same backend: the kernel has to choose another source port.
		second := k.exchange(t, unix.IPPROTO_UDP, 2, v6, 4000)
		if second.DstPort == 4000 {
			t.Errorf("the kernel kept the port, so this is not tested: %v", second)
		}
		want = append(want, second)
		masq := k.exchange(t, unix.IPPROTO_UDP, 3, v6, 4001)
		if m.local(masq.Dst) {
			t.Errorf("not masqueraded: %v", masq)
		}
	}
	_, err := tr.Load(context.Background())
	check(t, err)
	var names []string
	for _, w := range want {
		names = append(names, w.String())
	}
	slices.Sort(names)
	if got := m.list(); !slices.Equal(got, names) {
		t.Errorf("preloaded %q\nwant      %q", got, names)
	}
	_, err = tr.check(context.Background()) // each can be asked for by what the packet shows
	check(t, err)
	if got := m.list(); !slices.Equal(got, names) {
		t.Errorf("the audit forgot live flows; left: %q", got)
	}
	run(t, tr)
	for i, w := range want {
		tb.remove(w, 0)
		eventually(t, "forgotten: "+w.String(), func() bool { return !m.Has(w) })
		if got := len(m.list()); got != len(want)-i-1 {
			t.Errorf("%d flows left after %d ended", got, i+1)
		}
	}
	if s := tr.Stats(); s.Forgotten != uint64(len(want)) || s.Kept != 0 || s.Malformed != 0 {
		t.Errorf("stats: %+v", s)
	}
}
