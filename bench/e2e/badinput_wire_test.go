package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

// badWire is how one peer of node-a speaks to it.
type badWire struct {
	x     *badLab
	encap string
	peer  *lab.Node // who sends
	pod   *lab.Pod  // its pod, in whose name
	port  uint16
}

func (x *badLab) wires() []*badWire {
	w := []*badWire{{x, "vxlan", x.b, x.far, 8472}, {x, "udp", x.c, x.onC, 8285}}
	if x.d != nil {
		w = append(w, &badWire{x, "ipip", x.d, x.onD, 0})
	}
	return w
}

// TestBadInputFromWire: what must not come out of a tunnel does not, by every encapsulation; each packet ends in its
// named drop, and who is told is told through the tunnel.
func TestBadInputFromWire(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, outer6 := range []bool{false, true} {
		t.Run("outer "+family(outer6), func(t *testing.T) {
			x := newBadLab(t, outer6)
			for _, w := range x.wires() {
				t.Run(w.encap, func(t *testing.T) {
					s := newBadSuite(t, x.Lab, x.everyone()...)
					send := func(inner []byte) error { return w.send(w.wrap(inner)) }
					for _, v6 := range []bool{false, true} {
						s.run(&w.pod.Host, send, onTheWire(x.malformed(v6, w.pod.Addr(v6)), x, w, v6))
						s.run(&w.pod.Host, send, w.inside(v6))
					}
					s.run(&w.pod.Host, w.send, w.outside())
					s.end()
					x.conservedAll(t)
				})
			}
		})
	}
}

func (x *badLab) conservedAll(t *testing.T) {
	t.Helper()
	x.a.Daemon.AssertConserved(t)
	x.b.Daemon.AssertConserved(t)
}

// wrap puts what the encapsulation has between the outer headers and the inner packet in front of it.
func (w *badWire) wrap(inner []byte) []byte {
	if w.encap != "vxlan" {
		return inner
	}
	return w.vxlan(0x08, 1, w.x.a.VTEPMAC, etherTypeOf(inner), inner)
}

func etherTypeOf(inner []byte) uint16 {
	if len(inner) > 0 && inner[0]>>4 == 6 {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

func (w *badWire) vxlan(flags byte, vni uint32, to net.HardwareAddr, kind uint16, inner []byte) []byte {
	b := []byte{flags, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	b = append(append(b, to...), w.x.b.VTEPMAC...)
	return append(binary.BigEndian.AppendUint16(b, kind), inner...)
}

// send sends a datagram of the tunnel as the peer sends it.
func (w *badWire) send(payload []byte) error { return w.sendAs(w.peer.Underlay(), w.port, 0, payload) }

// sendAs sends it from another source, to another port, or with outer TOS bits.
func (w *badWire) sendAs(from netip.Addr, port uint16, tos byte, payload []byte) error {
	to := w.x.a.Underlay()
	proto, l4 := byte(unix.IPPROTO_UDP), payload
	if port != 0 {
		l4 = udpTo(from, to, port, payload)
	} else if proto = unix.IPPROTO_IPIP; len(payload) > 0 && payload[0]>>4 == 6 {
		proto = unix.IPPROTO_IPV6
	}
	return w.sendOuter(ipPacket(from, to, proto, 64, 0, nil, l4), tos)
}

func (w *badWire) sendOuter(b []byte, tos byte) error {
	if b[0]>>4 == 4 {
		b[1] = tos
	} else {
		b[0], b[1] = 0x60|tos>>4, tos<<4
	}
	return w.peer.SendIP(fixIP(b))
}

// onTheWire makes the cases of malformed packets those of a tunnel: they go to a pod of this node, and the version
// is looked at before the rest.
func onTheWire(cases []badCase, x *badLab, w *badWire, v6 bool) []badCase {
	var list []badCase
	for _, c := range cases {
		c.packet = readdressed(c.packet, x.far.Addr(v6), x.tun.Addr(v6))
		if c.comes != nil {
			c.comes = &x.tun.Host
		}
		if r := c.drops[x.a]; r == "bad_version" {
			c.drops = x.drop("not_ip")
		}
		c.name = named(v6, "%s", c.name)
		list = append(list, c)
	}
	return list
}

// readdressed is a packet for another destination, as broken as it was: sums change by as much as they must.
func readdressed(b []byte, old, to netip.Addr) []byte {
	at := 16
	if old.Is6() {
		at = 24
	}
	n := len(old.AsSlice())
	if len(b) < at+n || !bytes.Equal(b[at:at+n], old.AsSlice()) {
		return b
	}
	b = bytes.Clone(b)
	copy(b[at:], to.AsSlice())
	adjust := func(at int) {
		if len(b) < at+2 {
			return
		}
		// The new sum of the addresses takes the old one's place (RFC 1624).
		sum := uint32(^binary.BigEndian.Uint16(b[at:])) + uint32(^onesSum(old.AsSlice(), 0)) + uint32(onesSum(to.AsSlice(), 0))
		for sum > 0xffff {
			sum = sum&0xffff + sum>>16
		}
		binary.BigEndian.PutUint16(b[at:], ^uint16(sum))
	}
	if old.Is4() {
		adjust(10)
	}
	if i := bytes.Index(b, marker); i > 0 {
		// UDP's field is two bytes before the payload, TCP's four; which one, the ports in front tell.
		for back, field := range map[int]int{8: 2, 20: 4} {
			if i >= back && bytes.Equal(b[i-back:i-back+4], []byte{40000 >> 8, 40000 & 0xff, badPort >> 8, badPort & 0xff}) {
				adjust(i - field)
			}
		}
	}
	return b
}

// inside is what the inner packet may not be, though it is well-formed.
func (w *badWire) inside(v6 bool) []badCase {
	x, src, dst, small := w.x, w.pod.Addr(v6), w.x.veth.Addr(v6), w.x.small.Addr(v6)
	udp := func(src, dst netip.Addr, ttl byte, size int) []byte {
		return ipPacket(src, dst, unix.IPPROTO_UDP, ttl, 0, nil, udpTo(src, dst, badPort, nextPayload(size)))
	}
	tcp := func() []byte {
		return ipPacket(src, dst, unix.IPPROTO_TCP, 64, 0, nil, tcpTo(src, dst, badPort, nextPayload(120)))
	}
	flip := func(b []byte, back int) []byte { b[len(b)-back] ^= 1; return b }
	at := netip.MustParseAddr
	head, echoReply, icmpErr := 28, byte(0), byte(3)
	strangers := []string{"10.244.99.1", "8.8.8.8", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "169.254.1.1"}
	others := []string{"203.0.113.10", "224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0"}
	absent := at("10.244.1.250")
	if v6 {
		head, echoReply, icmpErr = 48, 129, 1
		strangers = []string{"fd00:10:244:99::1", "2001:4860:4860::8888", "::", "::1", "ff02::1", "fe80::1", "::ffff:10.244.2.2"}
		others = []string{"2001:db8:ff::10", "ff02::1", "::1", "::", "fe80::1"}
		absent = at("fd00:10:244:1::fa")
	}
	router := x.a.HostAddr(v6)
	var cases []badCase
	for _, n := range []*lab.Node{x.a, x.b, x.c, x.d} {
		if n == nil {
			continue
		}
		strangers = append(strangers, n.Addr(v6).String())
		others = append(others, n.Addr(v6).String())
		if n != w.peer {
			strangers = append(strangers, n.Pods[0].Addr(v6).String(), n.HostAddr(v6).String())
		}
		if n != x.a {
			others = append(others, n.Pods[0].Addr(v6).String(), n.HostAddr(v6).String())
		}
	}
	for _, s := range strangers {
		cases = append(cases,
			badCase{name: "source " + s + " for a pod", packet: udp(at(s), dst, 64, 120), drops: x.drop("inner_source")},
			badCase{name: "source " + s + " for the host", packet: udp(at(s), router, 64, 120), drops: x.drop("inner_source")})
	}
	for _, o := range others {
		cases = append(cases, badCase{name: "on to " + o, packet: udp(src, at(o), 64, 120), drops: x.drop("not_local")})
	}
	// The tunnel inside itself: what is addressed to a node's tunnel is for no pod.
	for _, port := range []uint16{8472, 8285} {
		to := x.a.Addr(v6)
		nested := ipPacket(src, to, unix.IPPROTO_UDP, 64, 0, nil, udpTo(src, to, port, w.wrap(udp(src, dst, 64, 120))))
		cases = append(cases, badCase{name: fmt.Sprintf("itself, to port %d", port), packet: nested, drops: x.drop("not_local")})
	}
	for _, proto := range []byte{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6} {
		to := x.a.Addr(v6)
		nested := ipPacket(src, to, proto, 64, 0, nil, udp(src, dst, 64, 120))
		cases = append(cases, badCase{name: fmt.Sprintf("itself, protocol %d", proto), packet: nested, drops: x.drop("not_local")})
	}
	about := ipPacket(src, absent, icmpProto(v6), 64, 0, nil, icmpTo(src, absent, icmpErr, 0, nextPayload(120)))
	dying := ipPacket(src, dst, icmpProto(v6), 1, 0, nil, icmpTo(src, dst, icmpErr, 0, nextPayload(120)))
	cases = append(cases,
		badCase{name: "UDP checksum", packet: flip(udp(src, dst, 64, 120), 1), drops: x.drop("inner_checksum")},
		badCase{name: "UDP checksum for the host", packet: flip(udp(src, router, 64, 120), 7), drops: x.drop("inner_checksum")},
		badCase{name: "TCP checksum", packet: flip(tcp(), 30), drops: x.drop("inner_checksum")},
		badCase{name: "ICMP checksum", packet: flip(ipPacket(src, dst, icmpProto(v6), 64, 0, nil, icmpTo(src, dst, echoReply, 0, nextPayload(120))), 2), drops: x.drop("inner_checksum")},
		badCase{name: "to a pod that is not there", packet: udp(src, absent, 64, 120), drops: x.drop("no_pod"), answer: hostUnreachable(v6, router)},
		badCase{name: "TTL 1", packet: udp(src, dst, 1, 1000), drops: x.drop("ttl_expired"), answer: timeExceeded(v6, router)},
		badCase{name: "TTL 0", packet: udp(src, dst, 0, 120), drops: x.drop("ttl_expired"), answer: timeExceeded(v6, router)},
		badCase{name: "TTL 1 for the host, which is the end of the way", packet: udp(src, router, 1, 120), comes: x.host},
		badCase{name: "no error about an error: no pod", packet: about, drops: x.drop("no_pod")},
		badCase{name: "no error about an error: TTL", packet: dying, drops: x.drop("ttl_expired")},
		badCase{name: "as large as the pod takes", packet: udp(src, small, 64, smallMTU-head), comes: &x.small.Host},
		badCase{name: "a byte larger than the pod takes", packet: udp(src, small, 64, smallMTU-head+1), drops: x.drop("too_big"), answer: packetTooBig(v6, router, smallMTU)},
		badCase{name: "as large as the tunnel takes", packet: udp(src, dst, 64, x.mtu-head), comes: &x.veth.Host},
		badCase{name: "padding behind the packet is cut off", packet: udp(src, dst, 64, 120), comes: &x.veth.Host,
			send: func(b []byte) error { return w.send(w.wrap(append(bytes.Clone(b), 1, 2, 3, 4, 5))) }},
		badCase{name: "congestion on a packet that cannot carry the mark", packet: udp(src, dst, 64, 120), drops: x.drop("ecn"),
			send: func(b []byte) error { return w.sendAs(w.peer.Underlay(), w.port, 3, w.wrap(b)) }},
	)
	for i := range cases {
		cases[i].name = named(v6, "%s", cases[i].name)
	}
	return cases
}

// outside is what is wrong before the inner packet.
func (w *badWire) outside() []badCase {
	x := w.x
	good := func(v6 bool) []byte {
		src, dst := w.pod.Addr(v6), x.tun.Addr(v6)
		return ipPacket(src, dst, unix.IPPROTO_UDP, 64, 0, nil, udpTo(src, dst, badPort, nextPayload(120)))
	}
	stranger := netip.MustParseAddr("192.0.2.77")
	if x.Config.Outer6 {
		stranger = netip.MustParseAddr("2001:db8::77")
	}
	from := func(a netip.Addr, port uint16) func([]byte) error {
		return func(b []byte) error { return w.sendAs(a, port, 0, b) }
	}
	cases := []badCase{
		{name: "control", packet: w.wrap(good(false)), comes: &x.tun.Host, as: endsAsSent},
		{name: "control, IPv6", packet: w.wrap(good(true)), comes: &x.tun.Host, as: endsAsSent},
		{name: "unknown peer", packet: w.wrap(good(false)), send: from(stranger, w.port), drops: x.drop("unknown_peer")},
		{name: "unknown peer, IPv6 inside", packet: w.wrap(good(true)), send: from(stranger, w.port), drops: x.drop("unknown_peer")},
		{name: "unknown peer, not even a packet", packet: []byte{0x45, 1, 2}, send: from(stranger, w.port), drops: x.drop("unknown_peer")},
	}
	for _, o := range x.wires() {
		if o.encap != w.encap {
			cases = append(cases, badCase{name: "to the door of " + o.encap, packet: o.wrap(good(false)), send: from(w.peer.Underlay(), o.port), drops: x.drop("wrong_encap")})
		}
	}
	switch w.encap {
	case "vxlan":
		mac := func() net.HardwareAddr { m := bytes.Clone(x.a.VTEPMAC); m[5] ^= 1; return m }()
		all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		cases = append(cases,
			badCase{name: "no flag I", packet: w.vxlan(0, 1, x.a.VTEPMAC, unix.ETH_P_IP, good(false)), drops: x.drop("bad_vxlan")},
			badCase{name: "all flags but I", packet: w.vxlan(0xf7, 1, x.a.VTEPMAC, unix.ETH_P_IP, good(false)), drops: x.drop("bad_vxlan")},
			badCase{name: "reserved bits are ignored", packet: func() []byte { b := w.wrap(good(false)); b[0], b[1], b[3], b[7] = 0xff, 2, 3, 7; return b }(), comes: &x.tun.Host, as: endsAsSent},
			badCase{name: "VNI 0", packet: w.vxlan(8, 0, x.a.VTEPMAC, unix.ETH_P_IP, good(false)), drops: x.drop("wrong_vni")},
			badCase{name: "VNI 2", packet: w.vxlan(8, 2, x.a.VTEPMAC, unix.ETH_P_IP, good(false)), drops: x.drop("wrong_vni")},
			badCase{name: "VNI 65537", packet: w.vxlan(8, 65537, x.a.VTEPMAC, unix.ETH_P_IPV6, good(true)), drops: x.drop("wrong_vni")},
			badCase{name: "another VTEP", packet: w.vxlan(8, 1, mac, unix.ETH_P_IP, good(false)), drops: x.drop("wrong_vtep_mac")},
			badCase{name: "all VTEPs", packet: w.vxlan(8, 1, all, unix.ETH_P_IP, good(false)), drops: x.drop("wrong_vtep_mac")},
			badCase{name: "ARP inside", packet: w.vxlan(8, 1, x.a.VTEPMAC, unix.ETH_P_ARP, good(false)), drops: x.drop("not_ip")},
			badCase{name: "a VLAN inside", packet: w.vxlan(8, 1, x.a.VTEPMAC, unix.ETH_P_8021Q, append([]byte{0, 1, 8, 0}, good(false)...)), drops: x.drop("not_ip")},
			badCase{name: "IPv6 that says it is IPv4", packet: w.vxlan(8, 1, x.a.VTEPMAC, unix.ETH_P_IP, good(true)), drops: x.drop("not_ip")},
			badCase{name: "IPv4 that says it is IPv6", packet: w.vxlan(8, 1, x.a.VTEPMAC, unix.ETH_P_IPV6, good(false)), drops: x.drop("not_ip")},
			badCase{name: "VXLAN header cut", packet: w.wrap(good(false))[:7], drops: x.drop("short")},
			badCase{name: "Ethernet header cut", packet: w.wrap(good(false))[:21], drops: x.drop("short")},
			badCase{name: "nothing in the Ethernet frame", packet: w.wrap(good(false))[:22], drops: x.drop("short")},
			badCase{name: "VXLAN in VXLAN", packet: w.wrap(w.wrap(good(false))), drops: x.drop("not_ip")},
			badCase{name: "no VXLAN at all", packet: good(false), drops: x.drop("bad_vxlan")}, // 0x45 has no I
		)
	case "udp":
		cases = append(cases,
			badCase{name: "VXLAN", packet: append([]byte{8, 0, 0, 0, 0, 0, 1, 0}, good(false)...), drops: x.drop("not_ip")},
			badCase{name: "nothing", packet: []byte{}, drops: x.drop("short")},
			badCase{name: "a probe as other VPNs send it", packet: []byte{0, 0, 0, 0}, drops: x.drop("not_ip")},
		)
	case "ipip":
		as := func(proto byte) func([]byte) error {
			return func(b []byte) error { return w.sendOuter(ipPacket(w.peer.IP4, x.a.IP4, proto, 64, 0, nil, b), 0) }
		}
		cases = append(cases,
			badCase{name: "IPv6 that says it is IPv4", packet: good(true), send: as(unix.IPPROTO_IPIP), drops: x.drop("not_ip")},
			badCase{name: "IPv4 that says it is IPv6", packet: good(false), send: as(unix.IPPROTO_IPV6), drops: x.drop("not_ip")},
			badCase{name: "nothing", packet: []byte{}, send: as(unix.IPPROTO_IPIP), drops: x.drop("short")},
			badCase{name: "no IP", packet: append([]byte{0x15}, payloadOf(0, 60)...), send: as(unix.IPPROTO_IPIP), drops: x.drop("not_ip")},
			badCase{name: "options outside", packet: good(false), comes: &x.tun.Host, send: func(b []byte) error {
				return w.sendOuter(ipPacket(w.peer.IP4, x.a.IP4, unix.IPPROTO_IPIP, 64, 0, []byte{1, 1, 1, 0}, b), 0)
			}},
		)
	}
	if w.port != 0 {
		// What came as one buffer and is neither a run of whole packets nor a superframe: the first inner packet ends
		// between the two borders. All of what it was made of is dropped.
		cases = append(cases, badCase{
			name: "a run whose packets cross its borders", count: 3, drops: x.drop("bad_gro"),
			packet: w.wrap(func() []byte {
				b := good(false)
				b = append(b, make([]byte, 2000)...)
				return changed(b, func(b []byte) { binary.BigEndian.PutUint16(b[2:], 1500) })
			}()),
			send: func(b []byte) error { return w.sendRun(b[:min(len(b), 2100)], 900) },
		})
	}
	return cases
}

// endsAsSent compares what came with the end of what was sent, which had a tunnel's header in front.
func endsAsSent(got, sent []byte) bool {
	return len(sent) >= len(got) && sameButTTL(got, sent[len(sent)-len(got):])
}

// sendRun sends datagrams by UDP_SEGMENT: over a veth they arrive as one buffer.
func (w *badWire) sendRun(b []byte, segment int) error {
	var c *net.UDPConn
	err := w.peer.Do(func() (err error) {
		c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.peer.Underlay(), 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.x.a.Underlay(), w.port)))
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segment) }); cerr != nil || err != nil {
		return fmt.Errorf("UDP_SEGMENT: %w %w", cerr, err)
	}
	_, err = c.Write(b)
	return err
}
