package e2e

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables/expr"
	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

// inner builds one pod's packet to another with gopacket, all checksums right. The filling is at its end.
func inner(t *testing.T, proto string, from, to netip.Addr, size int, seq uint32) []byte {
	t.Helper()
	var ip gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	protocol := map[string]layers.IPProtocol{"udp": layers.IPProtocolUDP, "tcp": layers.IPProtocolTCP, "icmp": layers.IPProtocolICMPv4}[proto]
	if from.Is4() {
		l := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Id: uint16(seq), Protocol: protocol, Flags: layers.IPv4DontFragment, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		ip, network = l, l
	} else {
		if proto == "icmp" {
			protocol = layers.IPProtocolICMPv6
		}
		l := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: protocol, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
		ip, network = l, l
	}
	list := []gopacket.SerializableLayer{ip}
	switch {
	case proto == "udp":
		l := &layers.UDP{SrcPort: craftedPort, DstPort: craftedPort}
		l.SetNetworkLayerForChecksum(network)
		list = append(list, l)
	case proto == "tcp":
		l := &layers.TCP{SrcPort: craftedPort, DstPort: craftedPort, ACK: true, Seq: seq, Ack: 1, Window: 1000}
		l.SetNetworkLayerForChecksum(network)
		list = append(list, l)
	case from.Is4():
		list = append(list, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoReply, 0), Id: craftedPort, Seq: uint16(seq)})
	default:
		l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoReply, 0)}
		l.SetNetworkLayerForChecksum(network)
		list = append(list, l, &layers.ICMPv6Echo{Identifier: craftedPort, SeqNumber: uint16(seq)})
	}
	filling := make([]byte, size)
	for i := range filling {
		filling[i] = byte(i) ^ 0xa5
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(list, gopacket.Payload(filling))...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(b.Bytes())
}

// craftedPort marks what these tests make: ports and echo identifiers.
const craftedPort = 7777

// crafted picks such packets out of a capture in a pod.
func crafted(from netip.Addr) func([]byte) bool {
	return func(frame []byte) bool {
		ip := lab.IPPayload(frame)
		switch {
		case len(ip) >= 28 && ip[0]>>4 == 4 && from.Is4():
			return netip.AddrFrom4([4]byte(ip[12:16])) == from &&
				(binary.BigEndian.Uint16(ip[20:]) == craftedPort || ip[9] == 1 && binary.BigEndian.Uint16(ip[24:]) == craftedPort)
		case len(ip) >= 48 && ip[0]>>4 == 6 && from.Is6():
			return netip.AddrFrom16([16]byte(ip[8:24])) == from &&
				(binary.BigEndian.Uint16(ip[40:]) == craftedPort || ip[6] == 58 && binary.BigEndian.Uint16(ip[44:]) == craftedPort)
		}
		return false
	}
}

// vxlanDatagram puts headers in front as node from would for node to.
func vxlanDatagram(from, to *lab.Node, packet []byte) []byte {
	b := []byte{0x08, 0, 0, 0, 0, 0, byte(from.Lab.Config.VNI), 0}
	b = append(append(b, to.VTEPMAC...), from.VTEPMAC...)
	kind := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	return append(binary.BigEndian.AppendUint16(b, kind), packet...)
}

// sendDatagrams sends b from n's underlay address; with segment > 0 the kernel cuts it into datagrams of that size,
// else it has no outer checksum, as flannel's has none, and may travel in fragments.
func sendDatagrams(t *testing.T, n *lab.Node, to netip.AddrPort, b []byte, segment int) {
	t.Helper()
	c, err := n.DialUDP(to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.Conn().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		switch {
		case segment > 0:
			err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segment)
		case to.Addr().Is4():
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			}
		default:
			const udpNoCheck6TX = 101 // include/uapi/linux/udp.h
			err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, udpNoCheck6TX, 1)
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			}
		}
	})
	if err == nil {
		_, err = c.Conn().Write(b)
	}
	if err != nil {
		t.Fatalf("datagram of %d bytes from %s: %v", len(b), n.Name, err)
	}
}

// TestInteropFlippedBit: one bit of an inner packet changes under way. The outer checksum does not show it (zero, or
// computed after the change), so the inner one must: drop inner_checksum, and the pod sees nothing of it.
func TestInteropFlippedBit(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, outer6 := range []bool{false, true} {
		for _, kind := range []lab.Kind{lab.Whole, lab.Cut} {
			if outer6 != (kind == lab.Cut) && !matrix() {
				continue
			}
			t.Run(kind.String()+" outer "+family(outer6), func(t *testing.T) {
				l := lab.New(t, lab.Config{Roles: []lab.Role{lab.Penstock, lab.KernelVXLAN}, Kind: kind, Outer6: outer6})
				l.Start(t)
				a, b := l.Nodes[0], l.Nodes[1]
				kp := b.AddPod(t, lab.Plain)
				for _, p := range []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)} {
					if err := kp.Ping(p.IP4); err != nil {
						t.Fatal(err)
					}
					for _, v6 := range []bool{false, true} {
						for _, proto := range []string{"udp", "tcp", "icmp"} {
							t.Run(string(p.Attach)+" "+family(v6)+" "+proto, func(t *testing.T) {
								flippedBits(t, a, b, p, kp, proto, v6)
							})
						}
					}
				}
				conserved(t, l)
			})
		}
	}
}

func flippedBits(t *testing.T, a, b *lab.Node, p, kp *lab.Pod, proto string, v6 bool) {
	tunnel := netip.AddrPortFrom(a.Underlay(), a.Lab.Config.Port)
	seen, err := p.Capture("eth0", crafted(kp.Addr(v6)))
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	before := a.Daemon.AtRest(t)
	delivered, bad := 0, 0
	// expect sends, and waits until the daemon has counted what is to be dropped and the pod has seen the rest.
	expect := func(what string, good, drops int, send func()) {
		t.Helper()
		send()
		bad += drops
		awaitDrops(t, a.Daemon, before, "inner_checksum", bad)
		var frames [][]byte
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			frames = seen.Frames()[delivered:]
			if fillings(frames, proto) >= good || time.Now().After(end) {
				break
			}
		}
		delivered += len(frames)
		if got := fillings(frames, proto); got != good {
			t.Errorf("%s: the pod saw %d bytes in %d packets, and should have seen %d", what, got, len(frames), good)
		}
	}
	defer func() {
		a.Daemon.AssertDrops(t, before, map[string]uint64{"inner_checksum": uint64(bad)}, "router_advert", "multicast", "answered")
		if n := len(seen.Frames()); n != delivered {
			t.Errorf("the pod saw %d packets more than it should have", n-delivered)
		}
	}()
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-7] ^= 0x10
		return b
	}

	one := vxlanDatagram(b, a, inner(t, proto, kp.Addr(v6), p.Addr(v6), 1000, 1))
	expect("one, right", 1000, 0, func() { sendDatagrams(t, b, tunnel, one, 0) })
	expect("one, flipped", 0, 1, func() { sendDatagrams(t, b, tunnel, flip(one), 0) })

	// A run, as a NIC's or another Penstock's UDP_SEGMENT makes it: one buffer for our socket, outer checksum right.
	var run []byte
	for i := range 10 {
		m := vxlanDatagram(b, a, inner(t, proto, kp.Addr(v6), p.Addr(v6), 1000, uint32(1+1000*i)))
		if i == 4 || i == 9 {
			m = flip(m)
		}
		run = append(run, m...)
	}
	expect("run", 8000, 2, func() { sendDatagrams(t, b, tunnel, run, len(run)/10) })

	// A superframe with a full checksum: what it would be cut into is wrong in one place.
	if proto == "tcp" {
		super := vxlanDatagram(b, a, inner(t, proto, kp.Addr(v6), p.Addr(v6), 20000, 1))
		expect("superframe, right", 20000, 0, func() { sendDatagrams(t, b, tunnel, super, 0) })
		expect("superframe, flipped", 0, 1, func() { sendDatagrams(t, b, tunnel, flip(super), 0) })
	}
}

// fillings adds up the payloads of crafted packets.
func fillings(frames [][]byte, proto string) (n int) {
	for _, f := range frames {
		ip := lab.IPPayload(f)
		header := 20
		total := int(binary.BigEndian.Uint16(ip[2:]))
		if ip[0]>>4 == 6 {
			header, total = 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
		}
		n += total - header - map[string]int{"udp": 8, "tcp": 20, "icmp": 8}[proto]
	}
	return n
}

// awaitDrops waits until n frames were dropped for a reason, or patience ends: the caller judges.
func awaitDrops(t *testing.T, d *lab.Daemon, before lab.Metrics, reason string, n int) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if int(d.Metrics(t).Sub(before).Dropped()[reason]) >= n {
			return
		}
	}
}

// TestInteropFlippedOnTheWay: real traffic of a kernel vxlan node with zero outer checksum, cut as a NIC cuts it; a
// router on the way flips a bit of each long message. All of these are drops, and none reaches the pod.
func TestInteropFlippedOnTheWay(t *testing.T) {
	t.Parallel()
	l, a, b := twoNodes(t, lab.Config{Roles: []lab.Role{lab.Penstock, lab.KernelVXLAN}, Kind: lab.Cut, Wiring: lab.Routed})
	// A veth leaves checksums partial for ever, and what is not there cannot be wrong; a NIC computes them.
	if err := b.SetFeatures("eth0", map[string]bool{"tx-checksum-ip-generic": false}); err != nil {
		t.Fatal(err)
	}
	p, kp := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Plain)
	sink, err := p.ReceiveStream(0)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	if err := kp.Ping(p.IP4); err != nil {
		t.Fatal(err)
	}
	before := a.Daemon.AtRest(t)
	long := append(toUDPPort(8472),
		&expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
		&expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, 1000)})
	// Outer UDP, VXLAN, Ethernet, inner IP and UDP are 58 bytes; the byte lies in the message.
	mangle(t, l, false, long, expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 58 + 40, Len: 1}, []byte{0xff}, []byte{0x20})
	to := netip.AddrPortFrom(p.IP4, sink.Port())
	const n = 90
	if _, err := kp.SendStream(within(t), to, lab.Stream{Sizes: []int{1200}, Count: n}); err != nil {
		t.Fatal(err)
	}
	awaitDrops(t, a.Daemon, before, "inner_checksum", n)
	// Short ones pass the router untouched, so the way itself is open.
	if _, err := kp.SendStream(within(t), to, lab.Stream{Sizes: []int{200}, Count: n}); err != nil {
		t.Fatal(err)
	}
	c := sink.WaitFor(n, patience)
	if !c.Perfect(n) {
		t.Errorf("of %d good and %d flipped messages the pod got %+v", n, n, c)
	}
	a.Daemon.AssertDrops(t, before, map[string]uint64{"inner_checksum": n}, "multicast", "answered")
	unmangle(t, l)
	conserved(t, l)
}
