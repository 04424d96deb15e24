package encap

import (
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"
)

var (
	sinkSum  uint32
	sinkInt  int
	sinkByte []byte
)

// paths are the operations of the packet path. Each is run by the benchmarks, and held to no allocation
// by the test.
func paths(t testing.TB) map[string]func() {
	tcp4 := flow{sport: 1, dport: 2, df: true}.tcp(t, layers.TCP{ACK: true, Options: timestamps(1, 2)}, pattern(1348))
	tcp6 := flow{v6: true, sport: 1, dport: 2}.tcp(t, layers.TCP{ACK: true, Options: timestamps(1, 2)}, pattern(1348))
	udp4 := flow{sport: 1, dport: 2, ttl: 255}.udp(t, pattern(64))
	super := flow{sport: 1, dport: 2, df: true}.tcp(t, layers.TCP{ACK: true, Options: timestamps(1, 2)}, pattern(64000))
	big := flow{sport: 1, dport: 2}.udp(t, pattern(9000))
	sp := mustParse(t, super)
	sv := makeSuper(super, sp, 1348)
	segments := cut(t, super, sp, sv)
	var segs []*Packet
	for _, s := range segments {
		segs = append(segs, mustParse(t, s))
	}
	first := append([]byte(nil), segments[0]...)
	recovered := append([]byte(nil), super...)
	u, bp := mustParse(t, udp4), mustParse(t, big)
	hdr := make([]byte, MaxHeaderLen)
	answer := make([]byte, MaxICMPError)
	head := NewVXLANHeader(1, vtepB, vtepA)
	wire := append(make([]byte, head.Len()), udp4...)
	head.Put(wire, false)
	arp := arpRequestFrame(t, pod4a, link4)
	var p, q Packet
	var s Segments
	var fr Fragments
	var m Merge
	return map[string]func(){
		"Parse/tcp4": func() { sinkInt += int(Parse(tcp4, &p)) },
		"Parse/tcp6": func() { sinkInt += int(Parse(tcp6, &p)) },
		"Parse/udp4": func() { sinkInt += int(Parse(udp4, &p)) },
		"Check":      func() { sinkInt += int(sv.Check(super, sp)) },
		"CheckL4/1400": func() {
			Parse(tcp4, &p)
			sinkInt += int(CheckL4(tcp4, &p))
		},
		"DecrementTTL": func() {
			if u.TTL == 1 {
				u.TTL = 255
			}
			DecrementTTL(udp4, u)
		},
		"SetTOS":     func() { SetTOS(udp4, u, u.TOS+1) },
		"Header.Put": func() { head.Put(wire, false) },
		"Decap": func() {
			off, _ := Decap(KindVXLAN, wire, 1, vtepB)
			sinkInt += off
		},
		"Segments/64000": func() {
			s.Init(super, sp, sv)
			for {
				b, ok := s.Next(hdr)
				if !ok {
					return
				}
				sinkByte = b
			}
		},
		"Fragments/9000": func() {
			fr.Init(big, bp, 1450)
			for {
				_, b, ok := fr.Next(hdr)
				if !ok {
					return
				}
				sinkByte = b
			}
		},
		"Merge/48": func() {
			copy(segments[0], first)
			m.Start(segments[0], segs[0])
			for i := 1; i < len(segments); i++ {
				sinkByte, _ = m.Add(segments[i], segs[i])
			}
			v := m.Finish()
			sinkInt += int(v.GSOSize)
		},
		"RecoverSuperframe/64000": func() {
			v, _ := RecoverSuperframe(recovered, sp, 0, 1400)
			sinkInt += int(v.GSOSize)
		},
		"ICMPError": func() {
			n := ICMPError(answer, tcp4, segs[0], PacketTooBig, 1400, gateway4)
			Parse(answer[:n], &p)
			QuotedFlow(answer[:n], &p, &q)
		},
		"ARPReply": func() { sinkInt += ARPReply(answer, arp, link4, hostMAC) },
	}
}

func TestNoAllocations(t *testing.T) {
	for name, run := range paths(t) {
		if n := testing.AllocsPerRun(100, run); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkPath(b *testing.B) {
	for name, run := range paths(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				run()
			}
		})
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{20, 40, 64, 200, 570, 1400, 65000} {
		buf := pattern(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				sinkSum += Sum(buf, 7)
			}
		})
	}
}
