package e2e

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

// badLab is a network whose node-a speaks every encapsulation: vxlan to another Penstock, and udp and ipip to
// endpoints that share no code with it.
type badLab struct {
	*lab.Lab
	a, b, c, d    *lab.Node // d is nil over IPv6, where there is no ipip
	veth, tun     *lab.Pod  // of a
	small         *lab.Pod  // of a, with an MTU of 1300
	far, onC, onD *lab.Pod
	host          *lab.Host // node-a as its pods see it
	mtu           int
}

const smallMTU = 1300

func newBadLab(t *testing.T, outer6 bool) *badLab {
	t.Helper()
	c := lab.Config{Nodes: 4, Roles: []lab.Role{lab.Penstock, lab.Penstock, lab.FlannelUDP, lab.GopacketIPIP}, Outer6: outer6}
	if outer6 {
		c.Nodes, c.Roles = 3, c.Roles[:3]
	}
	l := lab.New(t, c)
	l.Start(t)
	x := &badLab{Lab: l, a: l.Nodes[0], b: l.Nodes[1], c: l.Nodes[2], mtu: l.Nodes[0].PodMTU()}
	x.veth, x.tun, x.small = x.a.AddPod(t, lab.Veth), x.a.AddPod(t, lab.TUN), x.a.AddPod(t, lab.Veth)
	x.small.Detach(t)
	x.small.MTU = smallMTU
	x.small.AttachAgain(t)
	x.far, x.onC = x.b.AddPod(t, lab.Veth), x.c.AddPod(t, lab.Plain)
	if !outer6 {
		x.d = l.Nodes[3]
		x.onD = x.d.AddPod(t, lab.Plain)
	}
	x.host = &lab.Host{NS: x.a.NS, IP4: x.a.HostAddr(false), IP6: x.a.HostAddr(true), Device: "penstock0"}
	for _, p := range []*lab.Pod{x.veth, x.tun} {
		setMTU(t, p, 60000)
	}
	for _, v6 := range []bool{false, true} {
		for _, from := range []*lab.Host{&x.veth.Host, &x.tun.Host, &x.small.Host, x.host} {
			for _, to := range []*lab.Pod{x.far, x.onC, x.onD} {
				if to == nil {
					continue
				}
				if err := from.Ping(to.Addr(v6)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return x
}

// everyone is watched in every suite.
func (x *badLab) everyone() []*lab.Host {
	hosts := []*lab.Host{&x.veth.Host, &x.tun.Host, &x.small.Host, &x.far.Host, &x.onC.Host, x.host}
	if x.onD != nil {
		hosts = append(hosts, &x.onD.Host)
	}
	return hosts
}

// TestBadInputFromPods: what pods and the host must not send ends in its named drop, is answered where a router
// answers, and never reaches anybody.
func TestBadInputFromPods(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, outer6 := range []bool{false, true} {
		t.Run("outer "+family(outer6), func(t *testing.T) {
			x := newBadLab(t, outer6)
			for _, p := range []*lab.Pod{x.veth, x.tun} {
				t.Run(string(p.Attach), func(t *testing.T) {
					s := newBadSuite(t, x.Lab, x.everyone()...)
					for _, v6 := range []bool{false, true} {
						s.run(&p.Host, p.InjectIP, x.misled(v6, p.Addr(v6), x.a.HostAddr(v6)))
						if outer6 && !matrix() {
							continue // what is outside makes no difference to the rest
						}
						s.run(&p.Host, p.InjectIP, x.malformed(v6, p.Addr(v6)))
						s.run(&p.Host, p.InjectIP, x.fromPod(v6, p))
					}
					if p.Attach == lab.Veth {
						s.run(&p.Host, p.InjectFrame, x.frames(p))
					}
					s.end()
					x.fragmented(t, &p.Host, p.InjectIP, p.Addr(false))
				})
			}
			t.Run("host", func(t *testing.T) {
				s := newBadSuite(t, x.Lab, x.everyone()...)
				send := func(b []byte) error { return x.a.SendFrame("penstock0", b) }
				for _, v6 := range []bool{false, true} {
					s.run(x.host, send, x.malformed(v6, x.a.HostAddr(v6)))
					s.run(x.host, send, x.fromHost(v6))
				}
				s.end()
				x.fragmented(t, x.host, send, x.a.HostAddr(false))
			})
			conserved(t, x.Lab)
		})
	}
}

// TestBadInputToNative: the native stream's port is closed to pods on every node, for UDP and TCP. Behind masquerade a segment to another node would be
// the node's own to it, which takes frames of any pod out of it.
func TestBadInputToNative(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, v6 := range []bool{false, true} {
		t.Run("outer "+family(v6), func(t *testing.T) {
			l := lab.New(t, lab.Config{Outer6: v6, Masquerade: true, YAML: []string{nativeYAML("auto")}})
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			for _, p := range []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)} {
				s := newBadSuite(t, l, &p.Host, &b.Host)
				loop := map[*lab.Node]string{a: "tunnel_loop"}
				src := p.Addr(v6)
				for _, node := range l.Nodes {
					to := node.Underlay()
					udp := func() []byte { return udpTo(src, to, 7471, nextPayload(120)) }
					tcp := func(port uint16) []byte { return tcpTo(src, to, port, nextPayload(124)) }
					s.run(&p.Host, p.InjectIP, []badCase{
						{name: "UDP to " + node.Name, packet: ipPacket(src, to, unix.IPPROTO_UDP, 64, 0, nil, udp()), drops: loop},
						{name: "TCP to " + node.Name, packet: ipPacket(src, to, unix.IPPROTO_TCP, 64, 0, nil, tcp(7471)), drops: loop},
						{name: "a first fragment of UDP to " + node.Name, packet: firstFragment(src, to, unix.IPPROTO_UDP, 7, udp()), drops: loop},
						{name: "a first fragment of TCP to " + node.Name, packet: firstFragment(src, to, unix.IPPROTO_TCP, 8, tcp(7471)), drops: loop},
					})
					if node == b {
						s.one(&p.Host, p.InjectIP, badCase{name: "TCP to another port of " + node.Name, packet: ipPacket(src, to, unix.IPPROTO_TCP, 64, 0, nil, tcp(7470)),
							comes: &b.Host, as: func([]byte, []byte) bool { return true }}) // masqueraded
					}
				}
				s.end()
			}
			conserved(t, l)
		})
	}
}

// fragmented sends IPv4 packets that are too big and may be fragmented: they arrive whole, and not in one piece.
func (x *badLab) fragmented(t *testing.T, sender *lab.Host, send func([]byte) error, src netip.Addr) {
	t.Helper()
	before := x.a.Daemon.Metrics(t)
	for _, v := range []struct {
		to  *lab.Pod
		mtu int
	}{{x.far, x.mtu}, {x.small, smallMTU}} {
		l, err := listenUDP(&v.to.Host, netip.AddrPortFrom(v.to.IP4, badPort))
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{v.mtu - 27, 2 * v.mtu, 9001, 30000} {
			if sender == x.host && size > x.mtu-28 {
				continue // penstock0 takes no more, the host's own stack fragments before it
			}
			payload := nextPayload(size)
			packet := changed(ipPacket(src, v.to.IP4, unix.IPPROTO_UDP, 64, 0, nil, udpTo(src, v.to.IP4, badPort, payload)),
				func(b []byte) { binary.BigEndian.PutUint16(b[4:], uint16(caseNumber.Load())); b[6] = 0 })
			if err := send(packet); err != nil {
				t.Errorf("%d bytes without DF: %v", size, err)
				continue
			}
			got := make([]byte, 65536)
			l.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, from, err := l.ReadFromUDPAddrPort(got)
			if err != nil || !bytes.Equal(got[:n], payload) || from.Addr() != src {
				t.Errorf("%d bytes without DF to %s: received %d bytes from %s, equal %v: %v", size, v.to.Name, n, from, bytes.Equal(got[:n], payload), err)
			}
		}
		l.Close()
	}
	x.a.Daemon.AssertDrops(t, before, map[string]uint64{}, badNoise...)
}

func (x *badLab) drop(reason string) map[*lab.Node]string { return map[*lab.Node]string{x.a: reason} }

// malformed packets are malformed whoever sends them.
func (x *badLab) malformed(v6 bool, src netip.Addr) []badCase {
	dst := x.far.Addr(v6)
	udp := func() []byte {
		return ipPacket(src, dst, unix.IPPROTO_UDP, 64, 0, nil, udpTo(src, dst, badPort, nextPayload(120)))
	}
	tcp := func() []byte {
		return ipPacket(src, dst, unix.IPPROTO_TCP, 64, 0, nil, tcpTo(src, dst, badPort, nextPayload(120)))
	}
	with := func(first byte, middle ...byte) []byte {
		return ipPacket(src, dst, unix.IPPROTO_UDP, 64, first, middle, udpTo(src, dst, badPort, nextPayload(120)))
	}
	head := 20
	if v6 {
		head = 40
	}
	l4 := func(b []byte, fn func(l4 []byte)) []byte { return changed(b, func(b []byte) { fn(b[head:]) }) }
	cut := func(b []byte, to int) []byte {
		return changed(b[:to], func(b []byte) {
			if v6 {
				binary.BigEndian.PutUint16(b[4:], uint16(to-40))
			} else {
				binary.BigEndian.PutUint16(b[2:], uint16(to))
			}
		})
	}
	cases := []badCase{
		{name: "one byte", packet: udp()[:1], drops: x.drop("short")},
		{name: "a byte less than a header", packet: udp()[:head-1], drops: x.drop("short")},
		{name: "version 5", packet: changed(udp(), func(b []byte) { b[0] = 0x55 }), drops: x.drop("bad_version")},
		{name: "version 0", packet: changed(udp(), func(b []byte) { b[0] = 0x05 }), drops: x.drop("bad_version")},
		{name: "a byte less than its length", packet: func() []byte { b := udp(); return b[:len(b)-1] }(), drops: x.drop("bad_total_length")},
		{name: "TCP header cut", packet: cut(tcp(), head+19), drops: x.drop("bad_l4")},
		{name: "TCP header too short", packet: l4(tcp(), func(b []byte) { b[12] = 4 << 4 }), drops: x.drop("bad_l4")},
		{name: "TCP header longer than the packet", packet: l4(cut(tcp(), head+24), func(b []byte) { b[12] = 15 << 4 }), drops: x.drop("bad_l4")},
		{name: "UDP header cut", packet: cut(udp(), head+7), drops: x.drop("bad_l4")},
		{name: "UDP length 7", packet: l4(udp(), func(b []byte) { b[4], b[5] = 0, 7 }), drops: x.drop("bad_l4")},
		{name: "UDP length 0", packet: l4(udp(), func(b []byte) { b[4], b[5] = 0, 0 }), drops: x.drop("bad_l4")},
		{name: "UDP length beyond the packet", packet: l4(udp(), func(b []byte) { b[4] = 0x7f }), drops: x.drop("bad_l4")},
	}
	if v6 {
		cases = append(cases,
			badCase{name: "extension beyond the packet", packet: with(60, 17, 200, 1, 4, 0, 0, 0, 0), drops: x.drop("bad_options")},
			badCase{name: "routing header type 0", packet: with(43, append([]byte{17, 2, 0, 1, 0, 0, 0, 0}, x.tun.IP6.AsSlice()...)...), drops: x.drop("bad_options")},
			badCase{name: "hop-by-hop options not first", packet: with(60, 0, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0), drops: x.drop("bad_options")},
			badCase{name: "fragment not of eights", packet: ipPacket(src, dst, unix.IPPROTO_UDP, 64, 44, []byte{17, 0, 0, 1, 0, 0, 0, 9}, nextPayload(121)), drops: x.drop("bad_fragment")},
			badCase{name: "fragment beyond 65535", packet: with(44, 17, 0, 0xff, 0xf8, 0, 0, 0, 9), drops: x.drop("bad_fragment")},
			badCase{name: "empty fragment", packet: ipPacket(src, dst, unix.IPPROTO_UDP, 64, 44, []byte{17, 0, 0, 8, 0, 0, 0, 9}, nil), drops: x.drop("bad_fragment")},
			badCase{name: "destination options are none of a router's business", packet: with(60, 17, 0, 1, 4, 0, 0, 0, 0), comes: &x.far.Host},
			badCase{name: "hop-by-hop options that pad", packet: with(0, 17, 0, 1, 4, 0, 0, 0, 0), comes: &x.far.Host},
			badCase{name: "atomic fragment", packet: with(44, 17, 0, 0, 0, 0, 0, 0, 9), comes: &x.far.Host},
			badCase{name: "first fragment", packet: ipPacket(src, dst, unix.IPPROTO_UDP, 64, 44, []byte{17, 0, 0, 1, 0, 0, 0, 10}, udpTo(src, dst, badPort, nextPayload(120))), comes: &x.far.Host},
			badCase{name: "later fragment", packet: ipPacket(src, dst, unix.IPPROTO_UDP, 64, 44, []byte{17, 0, 0, 0x80, 0, 0, 0, 11}, nextPayload(121)), comes: &x.far.Host},
		)
		return cases
	}
	return append(cases,
		badCase{name: "header length 16", packet: changed(udp(), func(b []byte) { b[0] = 0x44 }), drops: x.drop("bad_header_length")},
		badCase{name: "header longer than the packet", packet: changed(cut(udp(), 40), func(b []byte) { b[0] = 0x4f }), drops: x.drop("bad_header_length")},
		badCase{name: "length less than the header", packet: changed(udp(), func(b []byte) { b[2], b[3] = 0, 19 }), drops: x.drop("bad_total_length")},
		badCase{name: "header checksum", packet: func() []byte { b := udp(); b[10] ^= 0x40; return b }(), drops: x.drop("bad_ip_checksum")},
		badCase{name: "header checksum with options", packet: func() []byte { b := with(0, 1, 1, 1, 0); b[21] ^= 4; return b }(), drops: x.drop("bad_ip_checksum")},
		badCase{name: "option without a length", packet: with(0, 1, 1, 1, 7), drops: x.drop("bad_options")},
		badCase{name: "option of length 1", packet: with(0, 7, 1, 0, 0), drops: x.drop("bad_options")},
		badCase{name: "option beyond the header", packet: with(0, 7, 9, 4, 0), drops: x.drop("bad_options")},
		badCase{name: "loose source route", packet: with(0, append([]byte{131, 7, 4}, append(x.tun.IP4.AsSlice(), 0)...)...), drops: x.drop("bad_options")},
		badCase{name: "strict source route", packet: with(0, append([]byte{137, 7, 4}, append(x.tun.IP4.AsSlice(), 0)...)...), drops: x.drop("bad_options")},
		badCase{name: "record route", packet: with(0, 7, 7, 4, 0, 0, 0, 0, 0), comes: &x.far.Host, as: func(got, sent []byte) bool {
			// The node's kernel is no hop on this way, and a router need not record (RFC 1812 4.2.2.6).
			return got[0] == 0x47 && bytes.Equal(got[28:], sent[28:])
		}},
		badCase{name: "fragment not of eights", packet: changed(udp(), func(b []byte) { b[6], b[len(b)-1] = 0x20, 0; binary.BigEndian.PutUint16(b[2:], uint16(len(b)-1)) }), drops: x.drop("bad_fragment")},
		badCase{name: "fragment beyond 65535", packet: changed(udp(), func(b []byte) { b[6], b[7] = 0x1f, 0xff }), drops: x.drop("bad_fragment")},
		badCase{name: "empty fragment", packet: changed(cut(udp(), 20), func(b []byte) { b[6], b[7] = 0, 9 }), drops: x.drop("bad_fragment")},
		badCase{name: "first fragment", packet: changed(udp(), func(b []byte) { b[4], b[5], b[6] = 1, 2, 0x20 }), comes: &x.far.Host},
		badCase{name: "later fragment", packet: changed(udp(), func(b []byte) { b[4], b[5], b[6], b[7] = 1, 3, 0, 0x10 }), comes: &x.far.Host},
	)
}

// fromPod is what only pods may not do.
func (x *badLab) fromPod(v6 bool, p *lab.Pod) []badCase {
	own, far := p.Addr(v6), x.far.Addr(v6)
	udp := func(src, dst netip.Addr, port uint16) []byte {
		return ipPacket(src, dst, unix.IPPROTO_UDP, 64, 0, nil, udpTo(src, dst, port, nextPayload(120)))
	}
	icmp := func(dst netip.Addr, kind byte) []byte {
		return ipPacket(own, dst, icmpProto(v6), 255, 0, nil, icmpTo(own, dst, kind, 0, nextPayload(120)))
	}
	var cases []badCase
	spoofed := []string{x.small.Addr(v6).String(), x.far.Addr(v6).String(), x.a.HostAddr(v6).String(), x.a.Addr(v6).String()}
	if v6 {
		spoofed = append(spoofed, "::", "::1", "fe80::1234", "2001:4860:4860::8888", "::ffff:10.244.1.2", "ff02::1")
	} else {
		spoofed = append(spoofed, "0.0.0.0", "127.0.0.1", "8.8.8.8", "224.0.0.1", "255.255.255.255", "169.254.1.1")
	}
	for _, src := range spoofed {
		cases = append(cases,
			badCase{name: named(v6, "source %s to another node", src), packet: udp(netip.MustParseAddr(src), far, badPort), drops: x.drop("spoofed")},
			badCase{name: named(v6, "source %s to a neighbour", src), packet: udp(netip.MustParseAddr(src), x.small.Addr(v6), badPort), drops: x.drop("spoofed")},
			badCase{name: named(v6, "source %s to the host", src), packet: udp(netip.MustParseAddr(src), x.a.HostAddr(v6), badPort), drops: x.drop("spoofed")},
		)
	}
	groups, martians, advert := []string{"224.0.0.1", "239.1.2.3", "255.255.255.255"}, []string{"127.0.0.1", "127.8.9.10", "0.0.0.0", "0.0.0.1"}, []byte{5}
	if v6 {
		groups, martians, advert = []string{"ff02::1", "ff05::1:3", "ff0e::1"}, []string{"::1", "::", "::ffff:127.0.0.1"}, []byte{134, 137}
	}
	for _, m := range martians {
		cases = append(cases, badCase{name: named(v6, "to the martian %s", m), packet: udp(own, netip.MustParseAddr(m), badPort), drops: x.drop("martian")})
	}
	for _, g := range groups {
		cases = append(cases, badCase{name: named(v6, "to the group %s", g), packet: udp(own, netip.MustParseAddr(g), badPort), drops: x.drop("multicast")})
	}
	for _, kind := range advert {
		for _, to := range []netip.Addr{far, x.small.Addr(v6), x.a.HostAddr(v6)} {
			cases = append(cases, badCase{name: named(v6, "ICMP type %d to %s: a router's word", kind, to), packet: icmp(to, kind), drops: x.drop("router_advert")})
		}
	}
	// Checksums of the transport are the receiver's to judge, which for what crosses the wire is the other node.
	atB := map[*lab.Node]string{x.b: "inner_checksum"}
	flip := func(b []byte) []byte { b[len(b)-1] ^= 0x10; return b }
	cases = append(cases,
		badCase{name: named(v6, "UDP checksum"), packet: flip(udp(own, far, badPort)), drops: atB},
		badCase{name: named(v6, "TCP checksum"), packet: flip(ipPacket(own, far, unix.IPPROTO_TCP, 64, 0, nil, tcpTo(own, far, badPort, nextPayload(120)))), drops: atB},
		badCase{name: named(v6, "ICMP checksum"), packet: flip(icmp(far, map[bool]byte{false: 0, true: 129}[v6])), drops: atB},
	)
	return cases
}

// misled packets are well-formed and lead nowhere, or too far, or into our own tunnel.
func (x *badLab) misled(v6 bool, src, router netip.Addr) []badCase {
	far, near := x.far.Addr(v6), x.small.Addr(v6)
	nobody4, absent4 := netip.MustParseAddr("10.244.99.1"), netip.MustParseAddr("10.244.1.250")
	nobody, absent := nobody4, absent4
	if v6 {
		nobody, absent = netip.MustParseAddr("fd00:10:244:99::1"), netip.MustParseAddr("fd00:10:244:1::fa")
	}
	udp := func(dst netip.Addr, ttl byte, size int) []byte {
		return ipPacket(src, dst, unix.IPPROTO_UDP, ttl, 0, nil, udpTo(src, dst, badPort, nextPayload(size)))
	}
	head := 28
	if v6 {
		head = 48
	}
	icmpError := func(dst netip.Addr, ttl byte) []byte {
		kind := byte(3)
		if v6 {
			kind = 1
		}
		return ipPacket(src, dst, icmpProto(v6), ttl, 0, nil, icmpTo(src, dst, kind, 0, nextPayload(120)))
	}
	echo := func(dst netip.Addr, ttl byte) []byte {
		kind := byte(8)
		if v6 {
			kind = 128
		}
		return ipPacket(src, dst, icmpProto(v6), ttl, 0, nil, icmpTo(src, dst, kind, 0, nextPayload(120)))
	}
	later := func(dst netip.Addr, ttl byte) []byte {
		if v6 {
			return ipPacket(src, dst, unix.IPPROTO_UDP, ttl, 44, []byte{17, 0, 1, 0, 0, 0, 0, 7}, nextPayload(120))
		}
		return changed(udp(dst, ttl, 120), func(b []byte) { b[6], b[7] = 0, 0x20 })
	}
	cases := []badCase{
		{name: "to a network nobody has", packet: udp(nobody, 64, 120), drops: x.drop("no_route"), answer: netUnreachable(v6, router)},
		{name: "to a pod that is not there", packet: udp(absent, 64, 120), drops: x.drop("no_pod"), answer: hostUnreachable(v6, router)},
		{name: "TTL 1 to another node", packet: udp(far, 1, 120), drops: x.drop("ttl_expired"), answer: timeExceeded(v6, router)},
		{name: "TTL 0 to another node", packet: udp(far, 0, 120), drops: x.drop("ttl_expired"), answer: timeExceeded(v6, router)},
		{name: "TTL 1 to a neighbour", packet: udp(near, 1, 1000), drops: x.drop("ttl_expired"), answer: timeExceeded(v6, router)},
		{name: "TTL 0 to a neighbour", packet: udp(near, 0, 120), drops: x.drop("ttl_expired"), answer: timeExceeded(v6, router)},
		{name: "an echo is answered like everything", packet: echo(nobody, 64), drops: x.drop("no_route"), answer: netUnreachable(v6, router)},
		{name: "no error about an error: no route", packet: icmpError(nobody, 64), drops: x.drop("no_route")},
		{name: "no error about an error: no pod", packet: icmpError(absent, 64), drops: x.drop("no_pod")},
		{name: "no error about an error: TTL", packet: icmpError(far, 1), drops: x.drop("ttl_expired")},
		{name: "no error about a later fragment: no route", packet: later(nobody, 64), drops: x.drop("no_route")},
		{name: "no error about a later fragment: TTL", packet: later(far, 1), drops: x.drop("ttl_expired")},
		{name: "as large as it may be", packet: udp(far, 64, x.mtu-head), comes: &x.far.Host},
		{name: "a byte larger", packet: udp(far, 64, x.mtu-head+1), drops: x.drop("too_big"), answer: packetTooBig(v6, router, x.mtu)},
		{name: "as large as the neighbour takes", packet: udp(near, 64, smallMTU-head), comes: &x.small.Host},
		{name: "a byte larger than the neighbour takes", packet: udp(near, 64, smallMTU-head+1), drops: x.drop("too_big"), answer: packetTooBig(v6, router, smallMTU)},
		{name: "ten times as large", packet: udp(far, 64, 14000), drops: x.drop("too_big"), answer: packetTooBig(v6, router, x.mtu)},
		{name: "as large as a device can be", packet: udp(near, 64, 59000), drops: x.drop("too_big"), answer: packetTooBig(v6, router, smallMTU)},
	}
	for _, node := range []*lab.Node{x.a, x.b, x.c, x.d} {
		if node == nil || node.Underlay().Is6() != v6 {
			continue
		}
		to := node.Underlay()
		for _, port := range []uint16{8472, 8285} {
			inside := func() []byte { return udpTo(src, to, port, nextPayload(120)) }
			cases = append(cases,
				badCase{name: named(v6, "to port %d of %s", port, node.Name), packet: ipPacket(src, to, unix.IPPROTO_UDP, 64, 0, nil, inside()), drops: x.drop("tunnel_loop")},
				badCase{name: named(v6, "a first fragment to port %d of %s", port, node.Name), packet: firstFragment(src, to, unix.IPPROTO_UDP, 3<<8|port&0xff, inside()), drops: x.drop("tunnel_loop")},
			)
		}
		if x.d == nil {
			continue // nobody speaks ipip
		}
		inner4 := ipPacket(x.far.IP4, x.veth.IP4, unix.IPPROTO_UDP, 64, 0, nil, udpTo(x.far.IP4, x.veth.IP4, badPort, nextPayload(120)))
		inner6 := ipPacket(x.far.IP6, x.veth.IP6, unix.IPPROTO_UDP, 64, 0, nil, udpTo(x.far.IP6, x.veth.IP6, badPort, nextPayload(120)))
		cases = append(cases,
			badCase{name: named(v6, "IP in IP to %s", node.Name), packet: ipPacket(src, to, unix.IPPROTO_IPIP, 64, 0, nil, inner4), drops: x.drop("tunnel_loop")},
			badCase{name: named(v6, "IPv6 in IP to %s", node.Name), packet: ipPacket(src, to, unix.IPPROTO_IPV6, 64, 0, nil, inner6), drops: x.drop("tunnel_loop")},
		)
	}
	for i := range cases {
		if cases[i].name[:2] != "IP" {
			cases[i].name = named(v6, "%s", cases[i].name)
		}
	}
	return cases
}

// frames are wrong before the IP header begins.
func (x *badLab) frames(p *lab.Pod) []badCase {
	gateway := []byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
	frame := func(kind uint16, packet []byte) []byte {
		f := append(bytes.Clone(gateway), p.MAC...)
		return append(binary.BigEndian.AppendUint16(f, kind), packet...)
	}
	udp := func(v6 bool) []byte {
		src, dst := p.Addr(v6), x.far.Addr(v6)
		return ipPacket(src, dst, unix.IPPROTO_UDP, 64, 0, nil, udpTo(src, dst, badPort, nextPayload(120)))
	}
	arp := func(target string) []byte {
		b := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, p.MAC...)
		b = append(b, p.IP4.AsSlice()...)
		b = append(b, 0, 0, 0, 0, 0, 0)
		return append(b, netip.MustParseAddr(target).AsSlice()...)
	}
	return []badCase{
		{name: "a link header and nothing behind it", packet: frame(unix.ETH_P_IP, nil), drops: x.drop("short")},
		{name: "IPv6 that says it is IPv4", packet: frame(unix.ETH_P_IP, udp(true)), drops: x.drop("bad_version")},
		{name: "IPv4 that says it is IPv6", packet: frame(unix.ETH_P_IPV6, udp(false)), drops: x.drop("bad_version")},
		{name: "LLDP", packet: frame(0x88cc, payloadOf(0, 100)), drops: x.drop("not_ip")},
		{name: "MPLS", packet: frame(0x8847, append([]byte{0, 1, 1, 64}, udp(false)...)), drops: x.drop("not_ip")},
		{name: "a VLAN", packet: frame(unix.ETH_P_8021Q, append([]byte{0, 7, 8, 0}, udp(false)...)), drops: x.drop("not_ip")},
		{name: "ARP for somebody else", packet: frame(unix.ETH_P_ARP, arp("10.244.1.3")), drops: x.drop("not_ip")},
		{name: "ARP cut", packet: frame(unix.ETH_P_ARP, arp("169.254.1.1")[:20]), drops: x.drop("not_ip")},
		{name: "ARP for the gateway", packet: frame(unix.ETH_P_ARP, arp("169.254.1.1")), drops: x.drop("answered")},
		{name: "padding behind the packet is cut off", packet: udp(false), send: func(b []byte) error {
			return p.InjectFrame(frame(unix.ETH_P_IP, append(bytes.Clone(b), 0xde, 0xad, 0xbe, 0xef)))
		}, comes: &x.far.Host},
	}
}

// fromHost is what the node's own stack must not hand over; it lowers TTLs by itself, and answers come from the
// address that could not be reached, as a host believes no other (forwarder/answer.go).
func (x *badLab) fromHost(v6 bool) []badCase {
	src := x.a.HostAddr(v6)
	udp := func(dst netip.Addr, ttl byte, port uint16, size int) []byte {
		return ipPacket(src, dst, unix.IPPROTO_UDP, ttl, 0, nil, udpTo(src, dst, port, nextPayload(size)))
	}
	head, nobody, absent, outside, group := 28, "10.244.99.1", "10.244.1.250", "8.8.8.8", "224.0.0.5"
	if v6 {
		head, nobody, absent, outside, group = 48, "fd00:10:244:99::1", "fd00:10:244:1::fa", "2001:4860:4860::8888", "ff02::5"
	}
	far, near := x.far.Addr(v6), x.small.Addr(v6)
	at := netip.MustParseAddr
	cases := []badCase{
		{name: "to a network nobody has", packet: udp(at(nobody), 64, badPort, 120), drops: x.drop("no_route"), answer: netUnreachable(v6, at(nobody))},
		{name: "to a pod that is not there", packet: udp(at(absent), 64, badPort, 120), drops: x.drop("no_pod"), answer: hostUnreachable(v6, at(absent))},
		{name: "to the outside, from where it would come back", packet: udp(at(outside), 64, badPort, 120), drops: x.drop("no_route"), answer: netUnreachable(v6, at(outside))},
		{name: "to a group", packet: udp(at(group), 1, badPort, 120), drops: x.drop("multicast")},
		{name: "TTL 0 to another node", packet: udp(far, 0, badPort, 120), drops: x.drop("ttl_expired"), answer: timeExceeded(v6, far)},
		{name: "TTL 0 to a pod", packet: udp(near, 0, badPort, 120), drops: x.drop("ttl_expired"), answer: timeExceeded(v6, near)},
		{name: "TTL 1 to a pod, lowered by the host already", packet: udp(near, 1, badPort, 120), comes: &x.small.Host},
		{name: "TTL 1 to another node, which answers", packet: udp(far, 1, badPort, 120), drops: map[*lab.Node]string{x.b: "ttl_expired"}, answer: timeExceeded(v6, x.b.HostAddr(v6))},
		{name: "too big for the pod", packet: udp(near, 64, badPort, smallMTU-head+1), drops: x.drop("too_big"), answer: packetTooBig(v6, near, smallMTU)},
	}
	for _, node := range []*lab.Node{x.a, x.b, x.c, x.d} {
		if node != nil && node.Underlay().Is6() == v6 {
			cases = append(cases,
				badCase{name: "to the tunnel port of " + node.Name, packet: udp(node.Underlay(), 64, 8472, 120), drops: x.drop("tunnel_loop")},
				badCase{name: "to the other tunnel port of " + node.Name, packet: udp(node.Underlay(), 64, 8285, 120), drops: x.drop("tunnel_loop")})
		}
	}
	for i := range cases {
		cases[i].name = named(v6, "%s", cases[i].name)
	}
	return cases
}
