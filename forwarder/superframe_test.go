package forwarder

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestSuperframeToPeer: a superframe leaves as the segments that the pod's own
// kernel would have made of it, judged by gopacket.
func TestSuperframeToPeer(t *testing.T) {
	for _, kind := range kinds {
		for family, addr := range families {
			for _, attach := range []string{AttachVeth, AttachTUN} {
				for _, c := range []struct{ n, gso int }{{60000, 1390}, {1390 * 40, 1390}, {2000, 1390}, {1390, 1390}, {100, 1390}, {30000, 536}} {
					t.Run(fmt.Sprintf("%s/%s/%s/tcp/%d", kind, family, attach, c.n), func(t *testing.T) {
						r := newRig(t, testSettings(kind))
						pod := r.attach(attach, "a1", podA1, podA1v6)
						ip := tcpPacket(addr.a, addr.b, 0xffffff00, c.n, func(h *layers.TCP) { h.PSH, h.CWR, h.ECE = true, true, true })
						payload := append([]byte{}, ip[len(ip)-c.n:]...)
						inject(pod, attach, ip, partial(ip, c.gso), ring.GSOECN)
						r.turn()
						ips := inner(t, kind, datagrams(t, r.sends()))
						count := (c.n + c.gso - 1) / c.gso
						if len(ips) != count {
							t.Fatalf("%d segments, want %d", len(ips), count)
						}
						var got []byte
						for i, b := range ips {
							o := decode(t, b)
							if o.tcp.Seq != 0xffffff00+uint32(i*c.gso) {
								t.Errorf("segment %d: sequence number %d", i, o.tcp.Seq)
							}
							if o.tcp.CWR != (i == 0) || o.tcp.PSH != (i == count-1) || !o.tcp.ECE || !o.tcp.ACK {
								t.Errorf("segment %d: CWR %t PSH %t", i, o.tcp.CWR, o.tcp.PSH)
							}
							if o.ip4 != nil && (o.ip4.TTL != 63 || o.ip4.Id != uint16(i)) || o.ip6 != nil && o.ip6.HopLimit != 63 {
								t.Errorf("segment %d: IP header %+v %+v", i, o.ip4, o.ip6)
							}
							got = append(got, o.payload...)
						}
						if !bytes.Equal(got, payload) {
							t.Error("payload differs")
						}
						r.check(nil)
						r.expect(1, 0, 0)
						if n := r.f.Counters().Segmented; n != 1 {
							t.Errorf("counted %d superframes", n)
						}
					})
				}
				t.Run(fmt.Sprintf("%s/%s/%s/udp", kind, family, attach), func(t *testing.T) {
					r := newRig(t, testSettings(kind))
					pod := r.attach(attach, "a1", podA1, podA1v6)
					ip := udpPacket(addr.a, addr.b, 1, 2, 50*1200+7)
					payload := append([]byte{}, ip[len(ip)-50*1200-7:]...)
					inject(pod, attach, ip, partial(ip, 1200), 0)
					r.turn()
					ips := inner(t, kind, datagrams(t, r.sends()))
					if len(ips) != 51 {
						t.Fatalf("%d messages, want 51", len(ips))
					}
					for i, b := range ips {
						if o := decode(t, b); !bytes.Equal(o.payload, payload[i*1200:min(len(payload), (i+1)*1200)]) {
							t.Errorf("message %d of %d bytes differs", i, len(o.payload))
						}
					}
					r.check(nil)
					r.expect(1, 0, 0)
				})
			}
		}
	}
}

// inject writes a packet into a port of either kind; more is or'ed into its GSO type.
func inject(q *ring.FakeQueue, attach string, ip []byte, v ring.Virtio, more uint8) {
	v.GSOType |= more
	if attach == AttachTUN {
		q.Inject(ring.FakePacket{Data: ip, Virtio: v})
		return
	}
	q.Inject(fromVeth(ip, v))
}

// TestSuperframesBackToBack: many superframes in one batch fill every limit of
// the worker's memory on the way; nothing is lost or changes its place.
func TestSuperframesBackToBack(t *testing.T) {
	for _, c := range []struct {
		gso  int
		kind encap.Kind
		runs bool
	}{{1398, encap.KindVXLAN, true}, {9, encap.KindUDP, true}, {100, encap.KindIPIP, false}, {100, encap.KindVXLAN, false}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			s := testSettings(c.kind)
			s.Offload.UDPSegment = c.runs
			r := newRig(t, s)
			pod := r.attach(AttachTUN, "a1", podA1)
			var want []byte
			for i := range 30 {
				n := 65495 - i
				ip := tcpPacket(podA1, podB, uint32(1+len(want)), n)
				want = append(want, ip[40:]...)
				inject(pod, AttachTUN, ip, partial(ip, c.gso), 0)
			}
			r.turn()
			var got []byte
			for _, b := range inner(t, c.kind, datagrams(t, r.sends())) {
				var p encap.Packet
				if encap.Parse(b, &p) != encap.OK || encap.CheckL4(b, &p) != encap.ChecksumGood {
					t.Fatal("a segment is broken")
				}
				if seq := int(encap.TCP(b[20:]).Seq()); seq != 1+len(got) {
					t.Fatalf("sequence number %d, want %d", seq, 1+len(got))
				}
				got = append(got, b[40:]...)
			}
			if !bytes.Equal(got, want) {
				t.Error("the stream differs")
			}
			r.check(nil)
			r.expect(30, 0, 0)
		})
	}
}

// TestPartialChecksum: a checksum that a pod left to its device is complete on the wire.
func TestPartialChecksum(t *testing.T) {
	for family, addr := range families {
		for _, kind := range kinds {
			r := newRig(t, testSettings(kind))
			pod := r.veth("a1", podA1, podA1v6)
			u, c := udpPacket(addr.a, addr.b, 1, 2, 333), tcpPacket(addr.a, addr.b, 1, 777)
			pod.Inject(fromVeth(u, partial(u, 0)), fromVeth(c, partial(c, 0)))
			r.turn()
			for _, b := range inner(t, kind, datagrams(t, r.sends())) {
				decode(t, b) // judges the checksums
			}
			r.check(nil)
			if r.forwarded("wire", kind.String()) != 2 {
				t.Errorf("%s %s: not both left", kind, family)
			}
		}
	}
}

// TestSuperframeToPod: between pods of one node, and to the host, a superframe
// stays whole where the port takes it and is cut where not.
func TestSuperframeToPod(t *testing.T) {
	for _, c := range []struct {
		name        string
		from, to    string
		tunOffload  bool
		udp         bool
		gso, frames int
	}{
		{"veth to veth", AttachVeth, AttachVeth, true, false, 1380, 1},
		{"veth to tun", AttachVeth, AttachTUN, true, false, 1380, 1},
		{"tun to veth", AttachTUN, AttachVeth, true, false, 1380, 1},
		{"tun to tun", AttachTUN, AttachTUN, true, true, 1380, 1},
		{"veth to a plain tun", AttachVeth, AttachTUN, false, false, 1380, 8},
		{"datagrams to a plain tun", AttachVeth, AttachTUN, false, true, 1380, 8},
	} {
		for family := range families {
			t.Run(c.name+"/"+family, func(t *testing.T) {
				s := testSettings(encap.KindVXLAN)
				s.Offload.TUNOffload = c.tunOffload
				r := newRig(t, s)
				src, dst := podA1, podA2
				if family == "v6" {
					src, dst = podA1v6, podA2v6
				}
				from := r.attach(c.from, "a1", src)
				to := r.attach(c.to, "a2", dst)
				ip := tcpPacket(src, dst, 5, 11000)
				if c.udp {
					ip = udpPacket(src, dst, 1, 2, 11000)
				}
				want := append([]byte{}, ip[len(ip)-11000:]...)
				v := partial(ip, c.gso)
				v.Flags |= ring.DataValid
				inject(from, c.from, ip, v, 0)
				r.turn()
				got := to.Sent()
				if len(got) != c.frames {
					t.Fatalf("%d frames, want %d", len(got), c.frames)
				}
				var stream []byte
				for _, g := range got {
					link := 0
					if c.to == AttachVeth {
						link = 14
						if typ := uint16(g.Data[12])<<8 | uint16(g.Data[13]); typ != map[string]uint16{"v4": 0x0800, "v6": 0x86dd}[family] {
							t.Errorf("type %04x", typ)
						}
						if encap.MAC(g.Data[0:6]) != macA1 || encap.MAC(g.Data[6:12]) != GatewayMAC {
							t.Errorf("MACs % x", g.Data[:12])
						}
					}
					if c.frames > 1 {
						stream = append(stream, decode(t, g.Data).payload...)
						if g.Virtio != (ring.Virtio{}) {
							t.Errorf("metadata %+v on a segment", g.Virtio)
						}
						continue
					}
					hdr := len(ip) - 11000
					w := v
					w.Flags, w.CsumStart, w.HdrLen = ring.NeedsCsum, w.CsumStart+uint16(link), uint16(hdr+link)
					if g.Virtio != w {
						t.Errorf("metadata %+v, want %+v", g.Virtio, w)
					}
					stream = g.Data[link+hdr:]
				}
				if !bytes.Equal(stream, want) {
					t.Error("payload differs")
				}
				r.check(nil)
				r.expect(0, 1, 0)
			})
		}
	}
}
