package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// flow builds packets with gopacket, the oracle that shares no code with this package.
type flow struct {
	v6       bool
	src, dst string // defaults: two pods
	sport    uint16
	dport    uint16
	tos, ttl uint8
	id       uint16
	df       bool
	ipOpts   []layers.IPv4Option
	ext      []byte // IPv6 extension headers, raw, the last one's next header being right already
	extFirst uint8  // type of the first of them
}

var (
	pod4a, pod4b = netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("10.244.2.3")
	pod6a, pod6b = netip.MustParseAddr("fd00:10:244:1::2"), netip.MustParseAddr("fd00:10:244:2::3")
)

func (f flow) ip(t testing.TB, proto layers.IPProtocol) (gopacket.SerializableLayer, gopacket.NetworkLayer) {
	t.Helper()
	src, dst, ttl := f.src, f.dst, f.ttl
	if ttl == 0 {
		ttl = 64
	}
	if f.v6 {
		if src == "" {
			src, dst = pod6a.String(), pod6b.String()
		}
		ip := &layers.IPv6{Version: 6, TrafficClass: f.tos, FlowLabel: 0x12345, NextHeader: proto,
			HopLimit: ttl, SrcIP: net.ParseIP(src), DstIP: net.ParseIP(dst)}
		return ip, ip
	}
	if src == "" {
		src, dst = pod4a.String(), pod4b.String()
	}
	ip := &layers.IPv4{Version: 4, TOS: f.tos, Id: f.id, TTL: ttl, Protocol: proto,
		SrcIP: net.ParseIP(src).To4(), DstIP: net.ParseIP(dst).To4(), Options: f.ipOpts}
	if f.df {
		ip.Flags = layers.IPv4DontFragment
	}
	return ip, ip
}

func serialize(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// withExt puts the flow's extension headers behind the IPv6 header of b. The pseudo-header is the same.
func (f flow) withExt(b []byte) []byte {
	if len(f.ext) == 0 {
		return b
	}
	out := append(append(bytes.Clone(b[:40]), f.ext...), b[40:]...)
	out[6] = f.extFirst
	binary.BigEndian.PutUint16(out[4:], uint16(len(out)-40))
	return out
}

func (f flow) tcp(t testing.TB, tcp layers.TCP, payload []byte) []byte {
	t.Helper()
	ip, net := f.ip(t, layers.IPProtocolTCP)
	tcp.SrcPort, tcp.DstPort = layers.TCPPort(f.sport), layers.TCPPort(f.dport)
	if err := tcp.SetNetworkLayerForChecksum(net); err != nil {
		t.Fatal(err)
	}
	return f.withExt(serialize(t, ip, &tcp, gopacket.Payload(payload)))
}

func (f flow) udp(t testing.TB, payload []byte) []byte {
	t.Helper()
	ip, net := f.ip(t, layers.IPProtocolUDP)
	udp := &layers.UDP{SrcPort: layers.UDPPort(f.sport), DstPort: layers.UDPPort(f.dport)}
	if err := udp.SetNetworkLayerForChecksum(net); err != nil {
		t.Fatal(err)
	}
	return f.withExt(serialize(t, ip, udp, gopacket.Payload(payload)))
}

func (f flow) echo(t testing.TB, id uint16, payload []byte) []byte {
	t.Helper()
	if !f.v6 {
		ip, _ := f.ip(t, layers.IPProtocolICMPv4)
		return serialize(t, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: id, Seq: 1},
			gopacket.Payload(payload))
	}
	ip, net := f.ip(t, layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	if err := icmp.SetNetworkLayerForChecksum(net); err != nil {
		t.Fatal(err)
	}
	return f.withExt(serialize(t, ip, icmp, &layers.ICMPv6Echo{Identifier: id, SeqNumber: 1}, gopacket.Payload(payload)))
}

func (f flow) raw(t testing.TB, proto uint8, payload []byte) []byte {
	t.Helper()
	ip, _ := f.ip(t, layers.IPProtocol(proto))
	return f.withExt(serialize(t, ip, gopacket.Payload(payload)))
}

// timestamps are the options of an ordinary established connection: NOP, NOP, timestamps.
func timestamps(val, echo uint32) []layers.TCPOption {
	data := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, val), echo)
	return []layers.TCPOption{{OptionType: 1}, {OptionType: 1}, {OptionType: 8, OptionLength: 10, OptionData: data}}
}

// pattern returns n bytes that differ from place to place.
func pattern(n int) []byte {
	r := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func mustParse(t testing.TB, b []byte) *Packet {
	t.Helper()
	var p Packet
	if f := Parse(b, &p); f != OK {
		t.Fatalf("Parse: %v of % x", f, b[:min(len(b), 80)])
	}
	return &p
}

// refSum is RFC 1071 as it is written down.
func refSum(b []byte, initial uint32) uint16 {
	sum := uint64(initial)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint64(b[i])<<8 | uint64(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint64(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// refL4Valid computes an L4 checksum slowly, from the addresses that Parse reports.
func refL4Valid(b []byte, p *Packet) bool {
	l4 := b[p.L4:p.Len]
	if p.Proto == ProtoUDP {
		l4 = l4[:UDP(l4).Length()]
	}
	var pseudo []byte
	if p.Proto != ProtoICMP {
		pseudo = append(p.Src.AsSlice(), p.Dst.AsSlice()...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(l4)))
		pseudo = append(pseudo, 0, 0, 0, p.Proto)
	}
	return refSum(append(pseudo, l4...), 0) == 0xffff
}

// makePartial writes the partial checksum that a kernel leaves in a packet for its device.
func makePartial(b []byte, p *Packet) Virtio {
	writePartial(b, p)
	return Virtio{Flags: NeedsCsum, CsumStart: p.L4, CsumOffset: uint16(csumOffset(p.Proto)), HdrLen: uint16(HeaderLen(b, p))}
}

// makeSuper makes packet b a superframe of segments with size payload bytes.
func makeSuper(b []byte, p *Packet, size int) Virtio {
	v := makePartial(b, p)
	v.GSOSize = uint16(size)
	switch {
	case p.Proto == ProtoUDP:
		v.GSOType = GSOUDPL4
	case p.Version == 4:
		v.GSOType = GSOTCPv4
	default:
		v.GSOType = GSOTCPv6
	}
	if p.Proto == ProtoTCP && TCP(b[p.L4:]).Flags()&TCPCwr != 0 {
		v.GSOType |= GSOECN
	}
	return v
}
