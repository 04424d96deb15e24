package forwarder

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// kinds are all encapsulations, for tests that hold for each.
var kinds = []encap.Kind{encap.KindUDP, encap.KindVXLAN, encap.KindIPIP}

// oracle is what gopacket, which shares no code with encap, says of an IP packet.
type oracle struct {
	ip4     *layers.IPv4
	ip6     *layers.IPv6
	tcp     *layers.TCP
	udp     *layers.UDP
	icmp4   *layers.ICMPv4
	icmp6   *layers.ICMPv6
	payload []byte // of the last layer that was decoded
}

// decode takes b apart and verifies every checksum and length by slow sums of its own.
func decode(t testing.TB, b []byte) (o oracle) {
	t.Helper()
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	pkt := gopacket.NewPacket(b, first, gopacket.Default)
	if e := pkt.ErrorLayer(); e != nil {
		t.Fatalf("gopacket: %v (% x)", e.Error(), b[:min(len(b), 64)])
	}
	o.ip4, _ = pkt.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
	o.ip6, _ = pkt.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	o.tcp, _ = pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
	o.udp, _ = pkt.Layer(layers.LayerTypeUDP).(*layers.UDP)
	o.icmp4, _ = pkt.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
	o.icmp6, _ = pkt.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	var pseudo, l4 []byte
	fragment := false
	switch {
	case o.ip4 != nil:
		if slowSum(o.ip4.Contents) != 0xffff {
			t.Errorf("IPv4 header checksum is wrong")
		}
		if int(o.ip4.Length) != len(b) {
			t.Errorf("IPv4 total length %d of %d bytes", o.ip4.Length, len(b))
		}
		l4, pseudo = o.ip4.Payload, append(append([]byte{}, b[12:20]...), 0, byte(o.ip4.Protocol))
		fragment = o.ip4.FragOffset != 0 || o.ip4.Flags&layers.IPv4MoreFragments != 0
		o.payload = o.ip4.Payload
	case o.ip6 != nil:
		if int(o.ip6.Length)+40 != len(b) {
			t.Errorf("IPv6 payload length %d of %d bytes", o.ip6.Length, len(b))
		}
		l4, pseudo = o.ip6.Payload, append(append([]byte{}, b[8:40]...), 0, byte(o.ip6.NextHeader))
	}
	if fragment {
		return o
	}
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(l4)))
	switch {
	case o.tcp != nil:
		o.payload = o.tcp.Payload
	case o.udp != nil:
		if int(o.udp.Length) != len(l4) {
			t.Errorf("UDP length %d of %d bytes", o.udp.Length, len(l4))
		}
		o.payload = o.udp.Payload
	case o.icmp4 != nil:
		o.payload, pseudo = o.icmp4.Payload, nil
	case o.icmp6 != nil:
		o.payload = o.icmp6.Payload
	default:
		return o
	}
	if s := slowSum(append(pseudo, l4...)); s != 0xffff && (o.udp == nil || o.udp.Checksum != 0) {
		t.Errorf("L4 checksum is wrong: sum %04x", s)
	}
	return o
}

// slowSum is RFC 1071 as it is written there.
func slowSum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		w := uint32(b[i]) << 8
		if i+1 < len(b) {
			w |= uint32(b[i+1])
		}
		sum += w
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// partial turns an IP packet's complete TCP or UDP checksum into the sum of its
// pseudo-header, and returns the metadata of a superframe of gso bytes a
// segment (0: not a superframe, only a checksum that is left to do).
func partial(ip []byte, gso int) ring.Virtio {
	v6 := ip[0]>>4 == 6
	l4, proto, pseudo := int(ip[0]&15)*4, ip[9], append([]byte{}, ip[12:20]...)
	if v6 {
		l4, proto, pseudo = 40, ip[6], append([]byte{}, ip[8:40]...)
	}
	pseudo = append(pseudo, 0, proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(ip)-l4))
	v := ring.Virtio{Flags: ring.NeedsCsum, CsumStart: uint16(l4), CsumOffset: 6, GSOSize: uint16(gso)}
	hdr := 8
	if proto == encap.ProtoTCP {
		v.CsumOffset, hdr = 16, int(ip[l4+12]>>4)*4
	}
	if gso > 0 {
		v.HdrLen = uint16(l4 + hdr)
		switch {
		case proto == encap.ProtoUDP:
			v.GSOType = ring.GSOUDPL4
		case v6:
			v.GSOType = ring.GSOTCPv6
		default:
			v.GSOType = ring.GSOTCPv4
		}
	}
	binary.BigEndian.PutUint16(ip[l4+int(v.CsumOffset):], slowSum(pseudo))
	return v
}

// fromVeth is a packet with metadata (offsets from the IP header) as a veth pod sends it.
func fromVeth(ip []byte, v ring.Virtio) ring.FakePacket {
	p := fromPod(ip)
	if v.Flags != 0 {
		v.CsumStart += encap.EthernetLen
		if v.HdrLen != 0 {
			v.HdrLen += encap.EthernetLen
		}
	}
	p.Virtio = v
	return p
}

// fromPeer is the packet as a peer's datagram brings it to node A; for ipip it
// starts with the outer IPv4 header, as a raw socket delivers it.
func fromPeer(kind encap.Kind, from netip.Addr, ip []byte) []byte {
	switch kind {
	case encap.KindVXLAN:
		return vxlanFrom(from, ip)
	case encap.KindIPIP:
		proto := byte(encap.ProtoIPIP)
		if ip[0]>>4 == 6 {
			proto = encap.ProtoIPv6
		}
		h := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto, 0, 0}
		h = append(append(h, from.AsSlice()...), nodeA.AsSlice()...)
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(ip)))
		binary.BigEndian.PutUint16(h[10:], ^slowSum(h))
		return append(h, ip...)
	}
	return append([]byte{}, ip...)
}

// listen is the socket on which a peer's packet with this inner version arrives.
func (r *rig) listen(kind encap.Kind, v6 bool) *ring.FakeSocket {
	switch {
	case kind != encap.KindIPIP:
		return r.udp[0]
	case v6:
		return r.raw[1]
	}
	return r.raw[0]
}

// receive injects each packet as a datagram of its own from node B.
func (r *rig) receive(kind encap.Kind, tos uint8, ips ...[]byte) {
	for _, ip := range ips {
		r.listen(kind, ip[0]>>4 == 6).Inject(ring.FakeDatagram{Data: fromPeer(kind, nodeB, ip), Addr: netip.AddrPortFrom(nodeB, 5555), TOS: tos})
	}
}

// receiveRun injects the packets as one buffer, as UDP_GRO joins them: all as
// long as the first but for a shorter last one.
func (r *rig) receiveRun(kind encap.Kind, ips ...[]byte) {
	var b []byte
	for _, ip := range ips {
		b = append(b, fromPeer(kind, nodeB, ip)...)
	}
	r.udp[0].Inject(ring.FakeDatagram{Data: b, Addr: netip.AddrPortFrom(nodeB, 5555), Segment: kind.HeaderLen() + len(ips[0])})
}

// sends is what all sockets have sent since the last call.
func (r *rig) sends() (ds []ring.FakeDatagram) {
	for _, s := range append(append([]*ring.FakeSocket{}, r.udp...), r.raw...) {
		ds = append(ds, s.Sent()...)
	}
	return ds
}

// datagrams cuts runs as the kernel does.
func datagrams(t testing.TB, sends []ring.FakeDatagram) (ds [][]byte) {
	t.Helper()
	for _, d := range sends {
		if len(d.Data) > 65507 {
			t.Errorf("a send of %d bytes is more than one UDP_SEGMENT send carries", len(d.Data))
		}
		if d.Segment == 0 {
			ds = append(ds, d.Data)
			continue
		}
		n := 0
		for b := d.Data; len(b) > 0; n++ {
			cut := min(len(b), d.Segment)
			ds = append(ds, b[:cut])
			b = b[cut:]
		}
		if n > int(maxRunSegments) || n < 2 {
			t.Errorf("a run of %d datagrams", n)
		}
	}
	return ds
}

// inner takes the encapsulation off datagrams that node A sent to node B, and checks it.
func inner(t testing.TB, kind encap.Kind, ds [][]byte) (ips [][]byte) {
	t.Helper()
	for _, d := range ds {
		if kind == encap.KindVXLAN {
			p := gopacket.NewPacket(d, layers.LayerTypeVXLAN, gopacket.Default)
			vx, _ := p.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
			eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			if vx == nil || eth == nil || vx.VNI != 1 || !vx.ValidIDFlag {
				t.Fatalf("no VXLAN: % x", d[:22])
			}
			if encap.MAC(eth.DstMAC) != encap.VTEPMAC(nodeB, 1) || encap.MAC(eth.SrcMAC) != encap.VTEPMAC(nodeA, 1) {
				t.Errorf("inner MACs %s, %s", eth.DstMAC, eth.SrcMAC)
			}
			if (eth.EthernetType == layers.EthernetTypeIPv6) != (d[22]>>4 == 6) {
				t.Errorf("inner type %s", eth.EthernetType)
			}
			d = d[22:]
		}
		ips = append(ips, d)
	}
	return ips
}

// pair are the pod addresses of one IP version: of node A's pod and of node B's.
type pair struct{ a, b netip.Addr }

var families = map[string]pair{"v4": {podA1, podB}, "v6": {podA1v6, podBv6}}

// received is a fresh tally of the counters that tests compare as a whole.
func (r *rig) forwarded(direction, encapsulation string) uint64 {
	return r.f.Counters().Forwarded[ForwardedKey{direction, encapsulation}].Packets
}

// expect compares the forwarded frames by where they went.
func (r *rig) expect(wire, pod, host uint64) {
	r.t.Helper()
	var got [3]uint64
	for k, v := range r.f.Counters().Forwarded {
		switch k.Direction {
		case "wire":
			got[0] += v.Packets
		case "pod":
			got[1] += v.Packets
		case "host":
			got[2] += v.Packets
		}
	}
	if got != [3]uint64{wire, pod, host} {
		r.t.Errorf("forwarded to wire, pods, host: %d, want %d", got, [3]uint64{wire, pod, host})
	}
}

// payloadLayer is bytes that stand where an L4 layer would.
type payloadLayer []byte

func (p payloadLayer) LayerType() gopacket.LayerType { return gopacket.LayerTypePayload }

func (p payloadLayer) SerializeTo(b gopacket.SerializeBuffer, _ gopacket.SerializeOptions) error {
	to, err := b.PrependBytes(len(p))
	copy(to, p)
	return err
}

// arpRequest is an ARP request of the pod macA1, as a whole frame.
func arpRequest(sender, target netip.Addr) []byte {
	b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	b = append(append(b, macA1[:]...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(append(b, macA1[:]...), sender.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
}

// fragmentOf cuts bytes at..at+n of the payload of an IPv4 packet without options out of it.
func fragmentOf(ip []byte, at, n int) []byte {
	return mangle(ip, func(b []byte) []byte {
		field := uint16(at / 8)
		if at+n < len(b)-20 {
			field |= 0x2000
		}
		b = append(b[:20:20], b[20+at:20+at+n]...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[6:], field)
		return b
	})
}

var podA2v6 = netip.MustParseAddr("fd00:10:244:1::6")

// writeErrors are what a write to a port may say, and how the drop is called.
var writeErrors = []struct {
	err  error
	want Reason
}{
	{syscall.EAGAIN, DropPortFull}, {syscall.ENOBUFS, DropPortFull}, {syscall.ENOMEM, DropPortFull},
	{syscall.EIO, DropPortDown}, {syscall.ENETDOWN, DropPortDown}, {syscall.ENXIO, DropPortDown}, {syscall.ENODEV, DropPortDown}, {syscall.EBADFD, DropPortDown},
	{syscall.EINVAL, DropPortFailed}, {syscall.EMSGSIZE, DropPortFailed},
}

// identified gives a packet an IP ID by which a test knows it again: a number in
// the ports would make it another flow.
func identified(id uint16) func(*layers.IPv4) { return func(ip *layers.IPv4) { ip.Id = id } }
