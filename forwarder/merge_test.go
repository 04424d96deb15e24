package forwarder

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// cutWrite gives the packets that a write to a pod stands for: a superframe is
// cut as the pod's kernel cuts it, by hand and not by encap. Lengths in the
// headers stay those of the whole.
func cutWrite(t testing.TB, p ring.FakePacket, link int) (ips [][]byte) {
	t.Helper()
	b, v := p.Data[link:], p.Virtio
	if v.GSOType == ring.GSONone {
		if v.Flags&ring.NeedsCsum != 0 {
			at := int(v.CsumStart) - link
			b = append([]byte{}, b...)
			c := ^slowSum(b[at:])
			b[at+int(v.CsumOffset)], b[at+int(v.CsumOffset)+1] = byte(c>>8), byte(c)
		}
		return [][]byte{b}
	}
	l4 := int(v.CsumStart) - link
	hdr := l4 + 8
	if b[l4-20+9] == 6 && b[0]>>4 == 4 || b[0]>>4 == 6 && b[6] == 6 {
		hdr = l4 + int(b[l4+12]>>4)*4
	}
	if int(v.HdrLen) != hdr+link {
		t.Errorf("HdrLen %d, headers are %d", v.HdrLen, hdr+link)
	}
	for at := hdr; at < len(b); at += int(v.GSOSize) {
		seg := append(append([]byte{}, b[:hdr]...), b[at:min(len(b), at+int(v.GSOSize))]...)
		ips = append(ips, seg)
	}
	return ips
}

// seqs lists what arrived in a pod: "<sport>:<number>" of each packet, where
// the number is the first payload byte; several packets of one write are joined by +.
func seqs(t testing.TB, writes []ring.FakePacket, link int) (s []string) {
	t.Helper()
	for _, w := range writes {
		one := ""
		for i, ip := range cutWrite(t, w, link) {
			if i > 0 {
				one += "+"
			}
			var p encap.Packet
			b := append([]byte{}, ip...)
			if b[0]>>4 == 4 {
				b[2], b[3] = byte(len(b)>>8), byte(len(b))
				b = mangle(b, func(b []byte) []byte { return b })
			} else {
				b[4], b[5] = byte((len(b)-40)>>8), byte(len(b)-40)
			}
			if whole := b[6]&0x3f == 0 && b[7] == 0; b[0]>>4 == 4 && b[9] == encap.ProtoUDP && whole {
				b[24], b[25] = byte((len(b)-20)>>8), byte(len(b)-20)
			}
			if f := encap.Parse(b, &p); f != encap.OK {
				t.Fatalf("write: %s", f)
			}
			name := "f"
			if p.Frag == encap.NotFrag {
				name = fmt.Sprint(p.SrcPort)
			}
			n := byte(0)
			if h := encap.HeaderLen(b, &p); h < len(b) {
				n = b[h]
			}
			one += fmt.Sprintf("%s:%d", name, n)
		}
		s = append(s, one)
	}
	return s
}

// numbered is a datagram of n bytes of flow sport whose first byte is number.
func numbered(sport uint16, number byte, n int, edit ...func(*layers.IPv4)) []byte {
	ip := udpPacket(podB, podA1, sport, 9, n, edit...)
	ip[28] = number
	ip[26], ip[27] = 0, 0
	pseudo := append(append([]byte{}, ip[12:20]...), 0, 17, byte((n+8)>>8), byte(n+8))
	c := ^slowSum(append(pseudo, ip[20:]...))
	ip[26], ip[27] = byte(c>>8), byte(c)
	return ip
}

// TestMergeOrder: what is merged and what is not, and that the packets of a
// flow reach the pod in their order.
func TestMergeOrder(t *testing.T) {
	frag := func(number byte) []byte {
		ip := numbered(1, number, 64)
		return fragmentOf(ip, 0, 40) // its "payload" begins with the ports: number 0
	}
	icmp := raw4(podB, podA1, 1, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0})
	zero := mangle(numbered(1, 50, 20), func(b []byte) []byte { b[26], b[27] = 0, 0; return b })
	ports, crowd := []uint16{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, crowded(t, mergeWays+2)
	for _, c := range []struct {
		name string
		ips  [][]byte
		want []string
	}{
		{"one flow", [][]byte{numbered(1, 1, 20), numbered(1, 2, 20), numbered(1, 3, 20)}, []string{"1:1+1:2+1:3"}},
		{"last shorter", [][]byte{numbered(1, 1, 20), numbered(1, 2, 10), numbered(1, 3, 20)}, []string{"1:1+1:2", "1:3"}},
		{"longer", [][]byte{numbered(1, 1, 20), numbered(1, 2, 30), numbered(1, 3, 20)}, []string{"1:1", "1:2+1:3"}},
		{"two flows", [][]byte{numbered(1, 1, 20), numbered(2, 1, 20), numbered(1, 2, 20), numbered(2, 2, 20)}, []string{"1:1+1:2", "2:1+2:2"}},
		{"no checksum between", [][]byte{numbered(1, 1, 20), numbered(1, 2, 20), zero, numbered(1, 3, 20), numbered(1, 4, 20)}, []string{"1:1+1:2", "1:50", "1:3+1:4"}},
		{"fragment between", [][]byte{numbered(1, 1, 20), numbered(2, 1, 20), frag(9), numbered(1, 2, 20), numbered(2, 2, 20)}, []string{"1:1", "2:1", "f:0", "1:2", "2:2"}},
		{"ICMP between", [][]byte{numbered(1, 1, 20), icmp, numbered(1, 2, 20)}, []string{"1:1+1:2", "0:0"}},
		{"another TOS", [][]byte{numbered(1, 1, 20), numbered(1, 2, 20, func(ip *layers.IPv4) { ip.TOS = 2 }), numbered(1, 3, 20)}, []string{"1:1", "1:2", "1:3"}},
		{"no payload", [][]byte{numbered(1, 1, 20), udpPacket(podB, podA1, 1, 9, 0), numbered(1, 2, 20)}, []string{"1:1", "1:0", "1:2"}},
		{"flows in turn", inTurn(ports, 4), strings.Fields("1:1+1:2+1:3+1:4 2:1+2:2+2:3+2:4 3:1+3:2+3:3+3:4 4:1+4:2+4:3+4:4 " +
			"5:1+5:2+5:3+5:4 6:1+6:2+6:3+6:4 7:1+7:2+7:3+7:4 8:1+8:2+8:3+8:4 9:1+9:2+9:3+9:4 10:1+10:2+10:3+10:4")},
		{"more flows in a set than slots", inTurn(crowd, 2), strings.Fields(fmt.Sprintf("%d:1+%[1]d:2 %d:1+%[2]d:2 %d:1 %d:1 %d:1+%[5]d:2 %d:1+%[6]d:2 %[3]d:2 %[4]d:2",
			crowd[0], crowd[1], crowd[2], crowd[3], crowd[4], crowd[5]))},
	} {
		for _, attach := range []string{AttachVeth, AttachTUN} {
			t.Run(c.name+"/"+attach, func(t *testing.T) {
				r := newRig(t, testSettings(encap.KindVXLAN))
				pod := r.attach(attach, "a1", podA1)
				r.receive(encap.KindVXLAN, 0, c.ips[:min(len(c.ips), inboxMessages)]...)
				r.turn()
				r.receive(encap.KindVXLAN, 0, c.ips[min(len(c.ips), inboxMessages):]...)
				r.turn()
				link := 0
				if attach == AttachVeth {
					link = 14
				}
				if got := seqs(t, pod.Sent(), link); fmt.Sprint(got) != fmt.Sprint(c.want) {
					t.Errorf("writes\n%s, want\n%s", got, c.want)
				}
				r.check(nil)
				r.expect(0, uint64(len(c.ips)), 0)
			})
		}
	}
}

// TestMergeAtRandom: of hundreds of flows each keeps its order, none loses or doubles a datagram, and the arena never grows.
func TestMergeAtRandom(t *testing.T) {
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := newRig(t, testSettings(encap.KindVXLAN))
		pod := r.attach(AttachTUN, "a1", podA1)
		sizes := []int{20}
		if seed%3 == 0 {
			sizes = []int{20, 20, 20, 20, 10 + rnd.IntN(40)}
		}
		flows, sent := 1+rnd.IntN(400), map[uint16]int{}
		var ips [][]byte
		for range 5000 {
			sport := uint16(1000 + rnd.IntN(flows))
			if rnd.IntN(3) == 0 {
				sport = uint16(1000 + rnd.IntN(min(flows, 6)))
			}
			ip := numbered(sport, byte(sent[sport]), sizes[rnd.IntN(len(sizes))], func(ip *layers.IPv4) {
				if rnd.IntN(40) == 0 {
					ip.TOS = 2
				}
			})
			if rnd.IntN(50) == 0 {
				ip = mangle(ip, func(b []byte) []byte { b[26], b[27] = 0, 0; return b })
			}
			sent[sport]++
			ips = append(ips, ip)
		}
		for len(ips) > 0 {
			n := 1
			for n < len(ips) && n < 90 && len(ips[n]) == len(ips[0]) {
				n++
			}
			if n > 1 {
				r.receiveRun(encap.KindVXLAN, ips[:n]...)
			} else {
				r.receive(encap.KindVXLAN, 0, ips[0])
			}
			ips = ips[n:]
		}
		for range 5000/inboxMessages + 1 {
			r.turn()
		}
		got := map[uint16]int{}
		for _, write := range pod.Sent() {
			for _, ip := range cutWrite(t, write, 0) {
				sport := binary.BigEndian.Uint16(ip[20:])
				if ip[28] != byte(got[sport]) {
					t.Fatalf("seed %d: number %d of flow %d came where %d was due", seed, ip[28], sport, byte(got[sport]))
				}
				got[sport]++
			}
		}
		if !maps.Equal(got, sent) {
			t.Errorf("seed %d: some came too often or not at all", seed)
		}
		if a := &r.f.workers[0].arena; cap(a.deliveries) != arenaRuns || cap(a.pieces) != arenaPieces {
			t.Errorf("seed %d: the arena has grown", seed)
		}
		r.check(nil)
	}
}

// inTurn are rounds of one datagram of each flow.
func inTurn(sports []uint16, rounds int) (ips [][]byte) {
	for i := range rounds {
		for _, sport := range sports {
			ips = append(ips, numbered(sport, byte(1+i), 20))
		}
	}
	return ips
}

// crowded are n source ports whose flows share a set of merges.
func crowded(t testing.TB, n int) (sports []uint16) {
	var first encap.Packet
	for sport := uint16(1); len(sports) < n; sport++ {
		var p encap.Packet
		if fault := encap.Parse(numbered(sport, 1, 20), &p); fault != encap.OK {
			t.Fatal(fault)
		}
		if len(sports) == 0 {
			first = p
		}
		if p.Hash%mergeSets == first.Hash%mergeSets {
			sports = append(sports, sport)
		}
	}
	return sports
}

// TestMergeTCP: a received run of segments becomes one superframe, whose
// headers gopacket agrees with, and cutting it gives the same segments.
func TestMergeTCP(t *testing.T) {
	for family, a := range families {
		for _, attach := range []string{AttachVeth, AttachTUN} {
			for _, run := range []bool{false, true} {
				t.Run(fmt.Sprint(family, attach, run), func(t *testing.T) {
					r := newRig(t, testSettings(encap.KindVXLAN))
					pod := r.attach(attach, "a1", podA1, podA1v6)
					var ips [][]byte
					var stream []byte
					for i := range 10 {
						n := 1000
						if i == 9 {
							n = 300
						}
						ip := tcpPacket(a.b, a.a, uint32(1+i*1000), n, func(h *layers.TCP) { h.PSH = i == 9 })
						ips, stream = append(ips, ip), append(stream, ip[len(ip)-n:]...)
					}
					if run {
						r.receiveRun(encap.KindVXLAN, ips...)
					} else {
						r.receive(encap.KindVXLAN, 0, ips...)
					}
					r.turn()
					got := pod.Sent()
					if len(got) != 1 {
						t.Fatalf("%d writes", len(got))
					}
					link := 0
					if attach == AttachVeth {
						link = 14
					}
					b, v := got[0].Data[link:], got[0].Virtio
					hdr := len(b) - len(stream)
					if v.GSOSize != 1000 || int(v.CsumStart) != hdr-20+link || v.CsumOffset != 16 || v.Flags != ring.NeedsCsum ||
						v.GSOType != map[string]uint8{"v4": ring.GSOTCPv4, "v6": ring.GSOTCPv6}[family] || int(v.HdrLen) != hdr+link {
						t.Errorf("metadata %+v", v)
					}
					if !bytes.Equal(b[hdr:], stream) {
						t.Error("stream differs")
					}
					// With its checksum completed it is a valid long packet.
					l4 := hdr - 20
					c := ^slowSum(b[l4:])
					b[l4+16], b[l4+17] = byte(c>>8), byte(c)
					if o := decode(t, b); !o.tcp.PSH || o.tcp.Seq != 1 {
						t.Errorf("header %+v", o.tcp)
					}
					r.check(nil)
					r.expect(0, 10, 0)
					if m := r.f.Counters().Merged; m != 9 {
						t.Errorf("merged %d", m)
					}
				})
			}
		}
	}
}

// TestNoMerge: not with the switch off, and not into ports that cannot take it.
func TestNoMerge(t *testing.T) {
	for _, c := range []struct {
		name           string
		merge, offload bool
		udp            bool
		want           int
	}{
		{"switched off", false, true, false, 5},
		{"plain tun", true, false, false, 5},
		{"datagrams switched off", false, true, true, 5},
		{"datagrams, plain tun", true, false, true, 5},
		{"merged", true, true, true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testSettings(encap.KindUDP)
			s.Offload.MergeWrites, s.Offload.TUNOffload = c.merge, c.offload
			r := newRig(t, s)
			pod := r.attach(AttachTUN, "a1", podA1)
			var ips [][]byte
			for i := range 5 {
				if c.udp {
					ips = append(ips, numbered(1, byte(i), 100))
				} else {
					ips = append(ips, tcpPacket(podB, podA1, uint32(1+100*i), 100))
				}
			}
			r.receiveRun(encap.KindUDP, ips...)
			r.turn()
			got := pod.Sent()
			if len(got) != c.want {
				t.Fatalf("%d writes, want %d", len(got), c.want)
			}
			if c.want == 5 {
				for _, g := range got {
					if decode(t, g.Data); g.Virtio != (ring.Virtio{}) {
						t.Errorf("metadata %+v", g.Virtio)
					}
				}
			}
			r.check(nil)
		})
	}
	t.Run("port without uso", func(t *testing.T) {
		r := newRig(t, testSettings(encap.KindUDP))
		pod := r.attach(AttachTUN, "a1", podA1)
		r.f.ports[0].uso = false
		r.receiveRun(encap.KindUDP, numbered(1, 1, 100), numbered(1, 2, 100))
		r.receiveRun(encap.KindUDP, tcpPacket(podB, podA1, 1, 100), tcpPacket(podB, podA1, 101, 100))
		r.turn()
		if got := seqs(t, pod.Sent(), 0); len(got) != 3 {
			t.Errorf("writes %s", got)
		}
		r.check(nil)
	})
}

// TestWriteErrors: a write that the port refuses costs the frames in it, by name.
func TestWriteErrors(t *testing.T) {
	for _, c := range writeErrors {
		t.Run(c.err.Error(), func(t *testing.T) {
			r := newRig(t, testSettings(encap.KindUDP))
			pod := r.attach(AttachTUN, "a1", podA1)
			r.receive(encap.KindUDP, 0, numbered(1, 1, 20), numbered(2, 1, 20), numbered(2, 2, 20), numbered(3, 1, 20))
			pod.Fail(1, c.err)
			r.turn()
			if got := seqs(t, pod.Sent(), 0); fmt.Sprint(got) != "[1:1 3:1]" {
				t.Errorf("writes %s", got)
			}
			r.check(map[Reason]uint64{c.want: 2})
			if p := r.f.Ports()[0]; p.Got.Packets != 2 || p.Dropped != 2 {
				t.Errorf("port counts %+v", p.PortCounters)
			}
			// The same towards the host.
			r.hosts[0].Fail(0, c.err)
			r.receive(encap.KindUDP, 0, udpPacket(podB, hostAddr, 1, 2, 3))
			r.turn()
			r.check(map[Reason]uint64{c.want: 3})
		})
	}
}

// TestDeliverSegmentsErrors: a superframe that is cut for a plain port counts
// once, delivered only if all its segments were.
func TestDeliverSegmentsErrors(t *testing.T) {
	for fail := range 4 {
		s := testSettings(encap.KindUDP)
		s.Offload.TUNOffload = false
		r := newRig(t, s)
		from, to := r.veth("a1", podA1), r.attach(AttachTUN, "a2", podA2)
		ip := tcpPacket(podA1, podA2, 1, 3000)
		from.Inject(fromVeth(ip, partial(ip, 1000)), fromPod(udpPacket(podA1, podA2, 1, 2, 3)))
		to.Fail(fail, errAgain)
		r.turn()
		if n := len(to.Sent()); n != 3 {
			t.Errorf("%d writes", n)
		}
		r.check(map[Reason]uint64{DropPortFull: 1})
		r.expect(0, 1, 0)
	}
}

// TestMergeNested: a pod's own tunnel may leave the checksum inside it to whoever delivers. Over the native stream that is said of each packet, and a
// merge could not say it of any but the first: each is written by itself, between the same flow's merges, in order.
func TestMergeNested(t *testing.T) {
	x := newNativePair(t, encap.KindVXLAN)
	x.way(false)
	const at = 20 + 8 + 22 // behind the pod's own UDP, VXLAN and Ethernet headers
	var want [][]byte
	for i, left := range []bool{true, true, false, false, true} {
		inside := udpPacket(podA2, podB, uint16(5+i), 6, 100)
		whole := ipPacket(podA1, podB, layers.IPProtocolUDP, &layers.UDP{SrcPort: 40000, DstPort: 4789}, append([]byte{8, 0, 0, 0, 0, 0, 1, 21: 0}, inside...))
		want = append(want, whole[28:])
		p := ring.FakePacket{Data: bytes.Clone(whole)}
		if left {
			p.Virtio = partial(p.Data[at:], 0)
			p.Virtio.CsumStart += at
		}
		x.podA.Inject(p)
	}
	x.a.turn()
	x.receive(x.a.f.workers[0].native.sock.(*ring.FakeSocket).Sent()...)
	writes := x.podB.Sent()
	var got [][]byte
	for _, w := range writes {
		for _, ip := range cutWrite(t, w, 0) {
			got = append(got, ip[28:])
		}
	}
	if len(writes) != 4 || !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%d writes, %d packets, want 4 and %d with the checksum inside complete:\n%x\n%x", len(writes), len(got), len(want), got, want)
	}
	x.b.check(nil)
}
