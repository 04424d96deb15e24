package encap

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// seeds are packets of every kind that the parsers know, whole, as superframes and broken.
func seeds(f *testing.F) (out [][]byte) {
	for _, v6 := range []bool{false, true} {
		fl := flow{v6: v6, sport: 40000, dport: 80, id: 7}
		out = append(out,
			fl.tcp(f, layers.TCP{ACK: true, PSH: true, Options: timestamps(1, 2)}, pattern(3000)),
			fl.tcp(f, layers.TCP{SYN: true, Options: []layers.TCPOption{{OptionType: 1}, mss(1460)}}, nil),
			fl.udp(f, pattern(100)), fl.udp(f, nil), fl.echo(f, 9, pattern(20)),
			fl.raw(f, ProtoSCTP, pattern(40)), fl.raw(f, 47, pattern(40)))
	}
	opts := []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}}, {OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	out = append(out,
		flow{ipOpts: opts}.udp(f, pattern(300)),
		edit(flow{}.udp(f, pattern(96)), func(b []byte) { b[6] = 0x20 }),
		edit(flow{}.udp(f, pattern(96)), func(b []byte) { b[6], b[7] = 0x20, 9 }),
		flow{v6: true, ext: []byte{60, 0, 5, 2, 0, 0, 1, 0, 17, 0, 1, 4, 0, 0, 0, 0}, extFirst: 0}.udp(f, pattern(30)),
		flow{v6: true, ext: []byte{17, 0, 0, 1, 0, 0, 0, 9}, extFirst: 44}.udp(f, pattern(32)),
		flow{v6: true, ext: []byte{17, 0, 0, 0, 0, 0, 0, 9}, extFirst: 44}.udp(f, pattern(32)),
		flow{v6: true, ext: []byte{6, 2, 4, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}, extFirst: 43}.tcp(f, layers.TCP{ACK: true}, pattern(30)))
	for _, b := range out {
		for _, k := range []ICMPKind{PacketTooBig, TimeExceeded} {
			dst := make([]byte, MaxICMPError)
			src := gateway4
			if b[0]>>4 == 6 {
				src = gateway6
			}
			out = append(out, dst[:ICMPError(dst, b, mustParse(f, b), k, 1400, src)])
		}
	}
	return out
}

// exact returns a copy of b without spare capacity, so that a slice beyond the end panics; of an IPv4
// packet with the header checksum mended, as no fuzzer finds one.
func exact(b []byte, mend bool) []byte {
	c := make([]byte, len(b))
	copy(c, b)
	if h := IPv4(c); mend && len(h) >= 20 && h.Version() == 4 && h.HeaderLen() >= 20 && h.HeaderLen() <= len(h) {
		h.updateChecksum()
	}
	return c
}

// checkPacket holds what Parse promises against the bytes.
func checkPacket(t *testing.T, b []byte, p *Packet) {
	t.Helper()
	if p.Len > len(b) || int(p.L4) > p.Len || p.Version != b[0]>>4 || p.Len > 65575 ||
		!p.Src.IsValid() || p.Src.Is4() != (p.Version == 4) || p.Dst.Is4() != (p.Version == 4) {
		t.Fatalf("impossible packet %+v of %d bytes", p, len(b))
	}
	if p.Frag != NotFrag && (p.SrcPort != 0 || p.DstPort != 0 || int(p.L4) == p.Len) {
		t.Fatalf("fragment with ports or without payload: %+v", p)
	}
	if n := HeaderLen(b[:p.Len:p.Len], p); n < int(p.L4) || n > p.Len {
		t.Fatalf("headers of %d bytes in %+v", n, p)
	}
}

// checkAgainstGopacket compares what Parse found in an accepted packet with gopacket's decoder, where
// that gets as far.
func checkAgainstGopacket(t *testing.T, b []byte, p *Packet) {
	t.Helper()
	src, dst, proto, ttl, tos := netip.Addr{}, netip.Addr{}, layers.IPProtocol(0), uint8(0), uint8(0)
	var payload []byte
	if p.Version == 4 {
		var ip layers.IPv4
		if ip.DecodeFromBytes(bytes.Clone(b[:p.Len]), gopacket.NilDecodeFeedback) != nil {
			return // it wants the end-of-options byte where the standard does not
		}
		src, _ = netip.AddrFromSlice(ip.SrcIP)
		dst, _ = netip.AddrFromSlice(ip.DstIP)
		proto, ttl, tos, payload = ip.Protocol, ip.TTL, ip.TOS, ip.Payload
		if p.DF != (ip.Flags&layers.IPv4DontFragment != 0) || (p.Frag == LaterFrag) != (ip.FragOffset != 0) {
			t.Fatalf("fragment flags: %+v, gopacket %+v", p, ip)
		}
	} else {
		var ip layers.IPv6
		if b[6] == extHopByHop || ip.DecodeFromBytes(bytes.Clone(b[:p.Len]), gopacket.NilDecodeFeedback) != nil {
			return
		}
		src, _ = netip.AddrFromSlice(ip.SrcIP)
		dst, _ = netip.AddrFromSlice(ip.DstIP)
		proto, ttl, tos, payload = ip.NextHeader, ip.HopLimit, ip.TrafficClass, ip.Payload
	}
	if p.Src != src || p.Dst != dst || p.TTL != ttl || p.TOS != tos {
		t.Fatalf("%+v, gopacket %v %v %v %v", p, src, dst, ttl, tos)
	}
	if p.Version == 6 && p.L4 != IPv6Len { // extension headers
		return
	}
	if uint8(proto) != p.Proto {
		t.Fatalf("protocol %d, gopacket %d", p.Proto, proto)
	}
	if !bytes.Equal(payload, b[p.L4:p.Len]) {
		t.Fatalf("payload of %d bytes, gopacket %d", p.Len-int(p.L4), len(payload))
	}
	if p.Frag == NotFrag && (p.Proto == ProtoTCP || p.Proto == ProtoUDP) {
		if s, d := binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]); s != p.SrcPort || d != p.DstPort {
			t.Fatalf("ports %d %d, want %d %d", p.SrcPort, p.DstPort, s, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, uint8(3), uint16(1400))
	}
	f.Fuzz(func(t *testing.T, b []byte, tos uint8, mtu uint16) {
		var p Packet
		Parse(exact(b, false), &p)
		b = exact(b, true)
		if Parse(b, &p) != OK {
			return
		}
		checkPacket(t, b, &p)
		checkAgainstGopacket(t, b, &p)
		state := CheckL4(b, &p)
		if (state == ChecksumGood) != (state != ChecksumNone && state != ChecksumPartial && refL4Valid(b, &p)) {
			t.Fatalf("checksum is %v of %+v", state, p)
		}
		if MayAnswer(b, &p) {
			src := gateway4
			if p.Version == 6 {
				src = gateway6
			}
			dst := make([]byte, MaxICMPError)
			n := ICMPError(dst, b, &p, ICMPKind(tos%5), int(mtu), src)
			var e, q Packet
			if n == 0 || Parse(dst[:n], &e) != OK || CheckL4(dst[:n], &e) != ChecksumGood || MayAnswer(dst[:n], &e) {
				t.Fatalf("bad ICMP error of %d bytes about %+v", n, p)
			}
			if !QuotedFlow(dst[:n], &e, &q) {
				if p.L4 < 400 {
					t.Fatalf("the quote is not readable: %+v", p)
				}
			} else if q != p && p.L4 < 400 {
				t.Fatalf("quoted %+v of %+v", q, p)
			}
		}
		var q Packet
		QuotedFlow(b, &p, &q)

		ClampMSS(b, &p, Virtio{}, int(mtu))
		if s := CheckL4(b, &p); s != state && state == ChecksumGood && s != ChecksumPartial {
			t.Fatalf("the checksum was good and is %v after ClampMSS", s)
		}
		SetTOS(b, &p, tos)
		DecrementTTL(b, &p)
		var again Packet
		if fault := Parse(b, &again); fault != OK || again != p {
			t.Fatalf("after TOS and TTL: %v\n got %+v\nwant %+v", fault, again, p)
		}
	})
}

func FuzzVirtio(f *testing.F) {
	for i, b := range seeds(f) {
		p := mustParse(f, b)
		v := Virtio{Flags: NeedsCsum, CsumStart: p.L4, CsumOffset: uint16(max(csumOffset(p.Proto), 0))}
		if i%2 == 0 {
			v.GSOSize, v.GSOType = 500, GSOTCPv4
			if p.Proto == ProtoUDP {
				v.GSOType = GSOUDPL4
			} else if p.Version == 6 {
				v.GSOType = GSOTCPv6
			}
		}
		f.Add(b, v.Flags, v.GSOType, v.HdrLen, v.GSOSize, v.CsumStart, v.CsumOffset)
	}
	f.Fuzz(func(t *testing.T, b []byte, flags, gsoType uint8, hdrLen, gsoSize, csumStart, csumOffset uint16) {
		b = exact(b, true)
		var p Packet
		if Parse(b, &p) != OK {
			return
		}
		v := Virtio{flags, gsoType, hdrLen, gsoSize, csumStart, csumOffset}
		if v.Check(b, &p) != OK {
			// Misuse must not crash either.
			Complete(bytes.Clone(b), &p, &v)
			var s Segments
			if s.Init(b, &p, v) == OK {
				t.Fatal("Init takes what Check refuses")
			}
			return
		}
		if !v.IsGSO() {
			before := p
			Complete(b, &p, &v)
			var again Packet
			if Parse(b, &again) != OK || again != before {
				t.Fatalf("completing a checksum made %+v of %+v", again, before)
			}
			return
		}
		writePartial(b, &p) // a wrong one stays wrong in all segments; that is the sender's business
		var s Segments
		if fault := s.Init(b, &p, v); fault != OK {
			if fault != FaultLongHeader {
				t.Fatalf("Init: %v", fault)
			}
			return
		}
		hdr := make([]byte, s.HeaderLen())
		at := s.HeaderLen()
		for i := 0; ; i++ {
			payload, ok := s.Next(hdr)
			if !ok {
				if i != s.Count() || at != p.Len {
					t.Fatalf("%d of %d segments, %d of %d bytes", i, s.Count(), at, p.Len)
				}
				break
			}
			seg := append(bytes.Clone(hdr), payload...)
			var q Packet
			if fault := Parse(seg, &q); fault != OK || q.Len != len(seg) || len(seg) > s.SegmentLen() {
				t.Fatalf("segment %d: %v, %d bytes of %d", i, fault, len(seg), s.SegmentLen())
			}
			if !p.enroute && !refL4Valid(seg, &q) {
				t.Fatalf("segment %d: bad checksum", i)
			}
			if !bytes.Equal(payload, b[at:at+len(payload)]) {
				t.Fatalf("segment %d: another payload", i)
			}
			at += len(payload)
			q.Len, q.Hash = p.Len, p.Hash
			if q != p {
				t.Fatalf("segment %d: %+v of %+v", i, q, p)
			}
		}
	})
}

func FuzzRecoverSuperframe(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, 500, 1400)
	}
	f.Fuzz(func(t *testing.T, b []byte, gso, mtu int) {
		b = exact(b, true)
		var p Packet
		if Parse(b, &p) != OK {
			return
		}
		before := bytes.Clone(b)
		v, fault := RecoverSuperframe(b, &p, gso, mtu)
		if fault != OK {
			if !bytes.Equal(b, before) || v != (Virtio{}) {
				t.Fatalf("%v, but changed", fault)
			}
			return
		}
		if fault := v.Check(b, &p); fault != OK {
			t.Fatalf("%+v: %v", v, fault)
		}
		if v.IsGSO() {
			var s Segments
			if fault := s.Init(b, &p, v); fault != OK && fault != FaultLongHeader {
				t.Fatal(fault)
			} else if fault == OK && p.Proto == ProtoTCP && s.SegmentLen() > mtu {
				t.Fatalf("segments of %d bytes for MTU %d", s.SegmentLen(), mtu)
			}
		} else if p.Len > mtu && !(p.Proto == ProtoUDP && gso > 0) {
			t.Fatalf("%d bytes for MTU %d", p.Len, mtu)
		}
	})
}

func FuzzFragments(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, 576)
		f.Add(b, 68)
	}
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		b = exact(b, true)
		var p Packet
		var fr Fragments
		if Parse(b, &p) != OK || fr.Init(b, &p, mtu) != OK {
			return
		}
		hdr := make([]byte, 60)
		h := IPv4(b)
		at := int(p.L4)
		for i := 0; ; i++ {
			n, payload, ok := fr.Next(hdr)
			if !ok {
				if i != fr.Count() || at != p.Len {
					t.Fatalf("%d of %d fragments, %d of %d bytes", i, fr.Count(), at, p.Len)
				}
				return
			}
			g := append(bytes.Clone(hdr[:n]), payload...)
			var q Packet
			fault := Parse(g, &q)
			if p.Frag == NotFrag && fr.Count() == 1 && fault == OK && q != p {
				t.Fatalf("the only fragment is %+v of %+v", q, p)
			}
			last := i == fr.Count()-1
			if len(g) > mtu || fault != OK || IPv4(g).FragOffset() != h.FragOffset()+at-int(p.L4) ||
				IPv4(g).MF() != (!last || h.MF()) || !bytes.Equal(payload, b[at:at+len(payload)]) {
				t.Fatalf("fragment %d of %d, %d bytes for MTU %d: %v", i, fr.Count(), len(g), mtu, fault)
			}
			at += len(payload)
		}
	})
}

// FuzzMerge makes a stream of two packets and variations of them, merges it, cuts it, and compares.
func FuzzMerge(f *testing.F) {
	s := seeds(f)
	for i, b := range s {
		f.Add(b, s[(i+1)%len(s)], []byte{0, 1, 2, 3, 0, 0x80, 0x41, 0, 0})
	}
	f.Fuzz(func(t *testing.T, a, b []byte, script []byte) {
		if len(script) > 200 {
			return
		}
		sources := [][]byte{exact(a, true), exact(b, true)}
		var in, kept [][]byte
		df := false
		seq := uint32(0)
		for i, op := range script {
			c := bytes.Clone(sources[op&1])
			var p Packet
			if Parse(c, &p) != OK || CheckL4(c, &p) == ChecksumNone {
				continue
			}
			if cut := int(op >> 4); cut > 0 && p.Len-HeaderLen(c, &p) > cut { // another length
				p.Len -= cut
				c = c[:p.Len]
				if p.Version == 4 {
					IPv4(c).setTotalLen(p.Len)
				} else {
					IPv6(c).setPayloadLen(p.Len - 40)
				}
				if p.Proto == ProtoUDP {
					UDP(c[p.L4:]).setLength(p.Len - int(p.L4))
				}
			}
			if p.Version == 4 {
				binary.BigEndian.PutUint16(c[4:], uint16(i))
				IPv4(c).updateChecksum()
				df = df || p.DF
			}
			if p.Proto == ProtoTCP {
				TCP(c[p.L4:]).setSeq(seq)
				if op&2 != 0 {
					c[p.L4+13] &^= TCPPsh | TCPFin
				}
				seq += uint32(p.Len - HeaderLen(c, &p))
			}
			if csumOffset(p.Proto) >= 0 && p.Proto != ProtoSCTP {
				v := makePartial(c, &p)
				Complete(c, &p, &v)
				if h := TCP(c[p.L4:]); p.Proto == ProtoTCP && h.Checksum() == 0xffff {
					h.setChecksum(0) // of the two zeros, segmentation writes this one, as the kernel's does
				}
			}
			if Parse(c, &p) != OK {
				continue
			}
			in, kept = append(in, c), append(kept, bytes.Clone(c[:p.Len]))
		}
		frames, vs := join(t, new(Merge), in)
		var out [][]byte
		for i, b := range frames {
			if !vs[i].IsGSO() {
				out = append(out, b)
				continue
			}
			p := mustParse(t, b)
			out = append(out, cut(t, b, p, vs[i])...)
		}
		if len(out) != len(kept) {
			t.Fatalf("%d packets in, %d out", len(kept), len(out))
		}
		for i := range out {
			if df && out[i][0]>>4 == 4 {
				for _, b := range [][]byte{out[i], kept[i]} {
					binary.BigEndian.PutUint16(b[4:], 0)
					IPv4(b).updateChecksum()
				}
			}
			if !bytes.Equal(out[i], kept[i]) {
				t.Fatalf("packet %d differs:\n got %x\nwant %x", i, out[i], kept[i])
			}
		}
	})
}

func FuzzDecap(f *testing.F) {
	h := NewVXLANHeader(1, vtepB, vtepA)
	head := make([]byte, h.Len())
	for _, b := range seeds(f) {
		h.Put(head, b[0]>>4 == 6)
		f.Add(append(bytes.Clone(head), b...), uint8(1), uint32(1))
		f.Add(b, uint8(0), uint32(1))
		proto := ProtoIPIP
		if b[0]>>4 == 6 {
			proto = ProtoIPv6
		}
		f.Add(flow{}.raw(f, proto, b), uint8(2), uint32(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, kind uint8, vni uint32) {
		k := Kind(kind % 3)
		b = exact(b, false)
		off, fault := Decap(k, b, vni, vtepB)
		if fault != OK {
			return
		}
		if off >= len(b) || off < k.HeaderLen() || b[off]>>4 != 4 && b[off]>>4 != 6 {
			t.Fatalf("offset %d of %d", off, len(b))
		}
		if k == KindVXLAN && (b[0]&8 == 0 || VXLAN(b).VNI() != vni || Ethernet(b[8:]).Dst() != vtepB) {
			t.Fatal("accepted another's")
		}
		decapAgainstGopacket(t, k, b, off, vni)
		var p Packet
		Parse(b[off:], &p)
	})
}

// decapAgainstGopacket compares where the inner packet begins with what an independent decoder finds of that type.
func decapAgainstGopacket(t *testing.T, k Kind, b []byte, off int, vni uint32) {
	t.Helper()
	switch k {
	case KindVXLAN:
		var v layers.VXLAN
		var eth layers.Ethernet
		if err := v.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil || !v.ValidIDFlag || v.VNI != vni {
			t.Fatalf("gopacket: %+v, %v", v, err)
		}
		if err := eth.DecodeFromBytes(v.Payload, gopacket.NilDecodeFeedback); err != nil || !bytes.HasPrefix(b[off:], eth.Payload) {
			t.Fatalf("gopacket finds %d bytes inside, we %d: %v", len(eth.Payload), len(b)-off, err)
		}
	case KindIPIP:
		var ip layers.IPv4
		// Outer options, which the kernel has judged before the socket sees them, are skipped here and read by gopacket.
		if err := ip.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil && ip.IHL == 5 || int(ip.IHL)*4 != off || ip.Protocol != layers.IPProtocolIPv4 && ip.Protocol != layers.IPProtocolIPv6 {
			t.Fatalf("gopacket: %+v, %v; our offset %d", ip, err, off)
		}
	case KindUDP:
		if off != 0 {
			t.Fatalf("offset %d without a header", off)
		}
	}
}

func FuzzNeighbours(f *testing.F) {
	f.Add(arpRequestFrame(f, pod4a, link4))
	f.Add(arpRequestFrame(f, netip.IPv4Unspecified(), link4))
	f.Add(solicit{netip.MustParseAddr("fe80::abcd"), link6, link6, 255, 0, layers.ICMPv6Options{{Type: 1, Data: podMAC[:]}}, false}.frame(f))
	f.Add(solicit{netip.IPv6Unspecified(), netip.MustParseAddr("ff02::1:ff00:1"), link6, 255, 0, nil, false}.frame(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = exact(b, false)
		if len(b) >= 14+40+24 && b[12] == 0x86 { // no fuzzer finds the checksum
			n := min(len(b)-54, IPv6(b[14:]).PayloadLen())
			if n >= 24 {
				icmp := ICMP(b[54 : 54+n])
				icmp.setChecksum(0)
				icmp.setChecksum(^Fold(Sum(icmp, Sum(b[22:54], 58+uint32(n)))))
			}
		}
		dst := make([]byte, 100)
		if n := ARPReply(dst, b, link4, hostMAC); n != 0 {
			if n != ARPReplyLen || ARP(dst[14:]).Op() != 2 || ARP(dst[14:]).Sender() != link4 || ARPReply(make([]byte, 100), dst[:n], link4, hostMAC) != 0 {
				t.Fatalf("bad reply % x", dst[:n])
			}
		}
		if n := NeighbourAdvert(dst, b, link6, hostMAC); n != 0 {
			var p Packet
			if n != NeighbourAdvertLen || Parse(dst[14:n], &p) != OK || CheckL4(dst[14:n], &p) != ChecksumGood || p.TTL != 255 || p.Src != link6 {
				t.Fatalf("bad advertisement % x", dst[:n])
			}
		}
	})
}

func FuzzSum(f *testing.F) {
	f.Add([]byte("penstock"), uint32(0), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff}, 300), uint32(0xffffffff), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, initial uint32, skip uint8) {
		b = b[min(int(skip), len(b)):]
		if got, want := Fold(Sum(b, initial)), refSum(b, initial); got != want {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
	})
}
