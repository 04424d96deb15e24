package encap

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// cut runs Segments over a superframe and returns the segments as packets.
func cut(t testing.TB, b []byte, p *Packet, v Virtio) [][]byte {
	t.Helper()
	var s Segments
	if f := s.Init(b, p, v); f != OK {
		t.Fatalf("Init: %v, virtio %+v", f, v)
	}
	var out [][]byte
	hdr := make([]byte, s.HeaderLen())
	for {
		payload, ok := s.Next(hdr)
		if !ok {
			break
		}
		out = append(out, append(bytes.Clone(hdr), payload...))
	}
	if len(out) != s.Count() {
		t.Fatalf("%d segments, Count says %d", len(out), s.Count())
	}
	longest := 0
	for _, o := range out {
		longest = max(longest, len(o))
	}
	if longest != s.SegmentLen() {
		t.Fatalf("longest segment %d, SegmentLen says %d", longest, s.SegmentLen())
	}
	return out
}

// refCut is the slow reference: it decodes the superframe with gopacket, cuts the payload and lets
// gopacket write each segment with all lengths and checksums.
func refCut(t testing.TB, b []byte, size int) [][]byte {
	t.Helper()
	first := layers.LayerTypeIPv4
	if b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	pkt := gopacket.NewPacket(b, first, gopacket.Default)
	if e := pkt.ErrorLayer(); e != nil {
		t.Fatal(e.Error())
	}
	var payload []byte
	tcp, _ := pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
	udp, _ := pkt.Layer(layers.LayerTypeUDP).(*layers.UDP)
	if tcp != nil {
		payload = tcp.Payload
	} else {
		payload = udp.Payload
	}
	ip4, _ := pkt.Layer(first).(*layers.IPv4)
	ip6, _ := pkt.Layer(first).(*layers.IPv6)
	var out [][]byte
	for at := 0; at < len(payload) || at == 0; at += size {
		part := payload[at:min(at+size, len(payload))]
		var ip gopacket.NetworkLayer
		var ls []gopacket.SerializableLayer
		if ip4 != nil {
			c := *ip4
			c.Id += uint16(at / size)
			ip, ls = &c, append(ls, &c)
		} else {
			c := *ip6
			ip, ls = &c, append(ls, &c)
		}
		if tcp != nil {
			c := *tcp
			c.Seq += uint32(at)
			if at > 0 {
				c.CWR = false
			}
			if at+size < len(payload) {
				c.FIN, c.PSH = false, false
			}
			_ = c.SetNetworkLayerForChecksum(ip)
			ls = append(ls, &c)
		} else {
			c := *udp
			_ = c.SetNetworkLayerForChecksum(ip)
			ls = append(ls, &c)
		}
		out = append(out, serialize(t, append(ls, gopacket.Payload(part))...))
	}
	return out
}

func TestSegmentsAgainstGopacket(t *testing.T) {
	options := []layers.IPv4Option{{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}}
	for _, v6 := range []bool{false, true} {
		for _, n := range []int{0, 1, 499, 500, 501, 1000, 2999, 30001, 62000} {
			for _, size := range []int{500, 501, 1448, 62000} {
				f := flow{v6: v6, sport: 40000, dport: 80, tos: 0x2a, id: 0xfff0, df: true}
				for name, b := range map[string][]byte{
					"tcp": f.tcp(t, layers.TCP{Seq: 0xfffffa00, Ack: 7, ACK: true, PSH: true, FIN: true, CWR: true, ECE: true,
						Window: 999, Options: timestamps(11, 22)}, pattern(n)),
					"tcp, no options": f.tcp(t, layers.TCP{Seq: 5, ACK: true}, pattern(n)),
					"tcp, IP options": flow{v6: v6, ipOpts: options, sport: 1, dport: 2}.tcp(t, layers.TCP{ACK: true, URG: true, Urgent: 3}, pattern(n)),
					"udp":             f.udp(t, pattern(n)),
				} {
					t.Run(fmt.Sprintf("%s v6=%v %d by %d", name, v6, n, size), func(t *testing.T) {
						p := mustParse(t, b)
						v := makeSuper(b, p, size)
						kept := bytes.Clone(b)
						if p.Proto == ProtoUDP && n > size*maxUDPSegments {
							return
						}
						got := cut(t, append(b, 1, 2, 3), p, v)
						if !bytes.Equal(b, kept) {
							t.Fatal("the superframe was changed")
						}
						want := refCut(t, b, size)
						if len(got) != len(want) {
							t.Fatalf("%d segments, want %d", len(got), len(want))
						}
						for i := range got {
							if !bytes.Equal(got[i], want[i]) {
								h := min(len(got[i]), 80)
								t.Fatalf("segment %d differs:\n got %x\nwant %x", i, got[i][:h], want[i][:min(len(want[i]), 80)])
							}
							if q := mustParse(t, got[i]); CheckL4(got[i], q) == ChecksumBad || !refL4Valid(got[i], q) {
								t.Fatalf("segment %d: bad checksum", i)
							}
						}
					})
				}
			}
		}
	}
}

// Extension headers go into every segment, and with a routing header the checksum stays that of the final
// destination, which only the sender's partial checksum knows.
func TestSegmentsExtensions(t *testing.T) {
	ext := []byte{6, 2, 4, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8}
	b := flow{v6: true, ext: ext, extFirst: extRouting}.tcp(t, layers.TCP{ACK: true}, pattern(3000))
	p := mustParse(t, b)
	// Partial for the final destination, which here is the one gopacket used.
	final := netAddr16(1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8)
	q := *p
	q.Dst = final
	TCP(b[p.L4:]).setChecksum(Fold(PseudoSum(&q, p.Len-int(p.L4))))
	v := Virtio{Flags: NeedsCsum, GSOType: GSOTCPv6, GSOSize: 1000, CsumStart: p.L4, CsumOffset: tcpCsumOffset}
	segs := cut(t, b, p, v)
	if len(segs) != 3 {
		t.Fatalf("%d segments", len(segs))
	}
	for i, s := range segs {
		r := mustParse(t, s)
		if !bytes.Equal(s[40:64], ext) || len(s) != 40+24+20+1000 {
			t.Errorf("segment %d: extension header changed", i)
		}
		r.Dst = final
		if !refL4Valid(s, r) {
			t.Errorf("segment %d: bad checksum", i)
		}
	}
}

func TestSegmentsRefuses(t *testing.T) {
	var s Segments
	b := flow{}.tcp(t, layers.TCP{ACK: true}, pattern(3000))
	p := mustParse(t, b)
	if f := s.Init(b, p, makePartial(b, p)); f != FaultBadVirtio {
		t.Errorf("no GSO type: %v", f)
	}
	if _, ok := s.Next(nil); ok {
		t.Error("Next gave a segment after a fault")
	}
	ext := make([]byte, 8*32)
	ext[0], ext[1] = ProtoTCP, 31
	b = flow{v6: true, ext: ext, extFirst: extDestination}.tcp(t, layers.TCP{ACK: true}, pattern(3000))
	p = mustParse(t, b)
	if f := s.Init(b, p, makeSuper(b, p, 1000)); f != FaultLongHeader {
		t.Errorf("long extension header: %v", f)
	}
}
