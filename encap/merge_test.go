package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"
)

// join merges packets as long as they fit together and returns the superframes with their metadata, each
// copied together from first packet and payloads as a write would.
func join(t testing.TB, m *Merge, packets [][]byte) (out [][]byte, vs []Virtio) {
	t.Helper()
	var cur []byte
	var first []byte
	finish := func() {
		if m.Segments() == 0 {
			return
		}
		v := m.Finish()
		copy(cur, first) // Finish writes the header in place
		out, vs = append(out, cur), append(vs, v)
	}
	for _, b := range packets {
		p := mustParse(t, b)
		if m.Segments() > 0 {
			if payload, ok := m.Add(b, p); ok {
				cur = append(cur, payload...)
				if m.Len() != len(cur) {
					t.Fatalf("Len says %d of %d bytes", m.Len(), len(cur))
				}
				continue
			}
			finish()
		}
		if m.Start(b, p) {
			first, cur = b[:p.Len], bytes.Clone(b[:p.Len])
			continue
		}
		out, vs = append(out, b[:p.Len]), append(vs, Virtio{})
	}
	finish()
	return out, vs
}

// What is cut and merged again is what it was.
func TestMergeUndoesSegments(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, df := range []bool{false, true} {
			for _, size := range []int{1, 100, 1000, 1398} {
				for _, segments := range []int{2, 3, 44, 64} {
					for _, short := range []int{0, 1} {
						f := flow{v6: v6, sport: 3, dport: 4, tos: 1, id: 65530, df: df}
						n := size*segments - short
						if size == 1 && short == 1 || n > 65000 {
							continue
						}
						tcp := layers.TCP{Seq: 0xffffff00, Ack: 5, ACK: true, Window: 77, ECE: true, Options: timestamps(8, 9)}
						ended := tcp
						ended.PSH, ended.CWR = true, true
						fin := tcp
						fin.FIN = true
						for name, b := range map[string][]byte{
							"tcp": f.tcp(t, tcp, pattern(n)), "tcp psh cwr": f.tcp(t, ended, pattern(n)),
							"tcp fin": f.tcp(t, fin, pattern(n)), "udp": f.udp(t, pattern(n)),
						} {
							t.Run(fmt.Sprintf("%s v6=%v df=%v %d by %d", name, v6, df, n, size), func(t *testing.T) {
								p := mustParse(t, b)
								v := makeSuper(b, p, size)
								if v.GSOSize < minTCPSegment && p.Proto == ProtoTCP {
									return
								}
								got, vs := join(t, new(Merge), cut(t, b, p, v))
								if len(got) != 1 {
									t.Fatalf("%d superframes", len(got))
								}
								if !bytes.Equal(got[0], b) {
									t.Fatalf("merged differs:\n got %x\nwant %x", got[0][:60], b[:60])
								}
								if vs[0] != v {
									t.Fatalf("virtio %+v, want %+v", vs[0], v)
								}
							})
						}
					}
				}
			}
		}
	}
}

func TestMergeRules(t *testing.T) {
	f := flow{sport: 3, dport: 4, id: 10, ttl: 60, tos: 2}
	tcp := layers.TCP{Seq: 1000, Ack: 5, ACK: true, Window: 77, Options: timestamps(8, 9)}
	next := tcp
	next.Seq = 1100
	f2 := f
	f2.id = 11
	df, df2 := f, f
	df.df, df2.df, df2.id = true, true, 4711
	six := flow{v6: true, sport: 3, dport: 4}
	six2 := six
	with := func(change func(f *flow, tcp *layers.TCP)) []byte {
		f, tcp := f2, next
		change(&f, &tcp)
		return f.tcp(t, tcp, pattern(100))
	}
	tcp1 := f.tcp(t, tcp, pattern(100))
	udp1 := f.udp(t, pattern(100))
	zero := f2.udp(t, pattern(100))
	UDP(zero[20:]).setChecksum(0)
	label := six2.udp(t, pattern(100))
	label[3] ^= 1
	tail := append(f2.udp(t, pattern(90)), 1, 2)
	IPv4(tail).setTotalLen(len(tail))
	IPv4(tail).updateChecksum()
	for _, c := range []struct {
		name   string
		first  []byte
		second []byte
		want   bool
	}{
		{"next", tcp1, with(func(*flow, *layers.TCP) {}), true},
		{"next with PSH", tcp1, with(func(_ *flow, h *layers.TCP) { h.PSH = true }), true},
		{"next with FIN", tcp1, with(func(_ *flow, h *layers.TCP) { h.FIN = true }), true},
		{"hole", tcp1, with(func(_ *flow, h *layers.TCP) { h.Seq++ }), false},
		{"again", tcp1, with(func(_ *flow, h *layers.TCP) { h.Seq -= 100 }), false},
		{"ack", tcp1, with(func(_ *flow, h *layers.TCP) { h.Ack++ }), false},
		{"window", tcp1, with(func(_ *flow, h *layers.TCP) { h.Window++ }), false},
		{"timestamp", tcp1, with(func(_ *flow, h *layers.TCP) { h.Options = timestamps(9, 9) }), false},
		{"no options", tcp1, with(func(_ *flow, h *layers.TCP) { h.Options = nil }), false},
		{"SYN", tcp1, with(func(_ *flow, h *layers.TCP) { h.SYN = true }), false},
		{"RST", tcp1, with(func(_ *flow, h *layers.TCP) { h.RST = true }), false},
		{"URG", tcp1, with(func(_ *flow, h *layers.TCP) { h.URG = true }), false},
		{"ECE", tcp1, with(func(_ *flow, h *layers.TCP) { h.ECE = true }), false},
		{"CWR", tcp1, with(func(_ *flow, h *layers.TCP) { h.CWR = true }), false},
		{"NS", tcp1, with(func(_ *flow, h *layers.TCP) { h.NS = true }), false},
		{"source port", tcp1, with(func(f *flow, _ *layers.TCP) { f.sport++ }), false},
		{"destination port", tcp1, with(func(f *flow, _ *layers.TCP) { f.dport++ }), false},
		{"source", tcp1, with(func(f *flow, _ *layers.TCP) { f.src, f.dst = "10.244.1.9", "10.244.2.3" }), false},
		{"destination", tcp1, with(func(f *flow, _ *layers.TCP) { f.src, f.dst = "10.244.1.2", "10.244.2.9" }), false},
		{"TTL", tcp1, with(func(f *flow, _ *layers.TCP) { f.ttl++ }), false},
		{"TOS", tcp1, with(func(f *flow, _ *layers.TCP) { f.tos++ }), false},
		{"DF", tcp1, with(func(f *flow, _ *layers.TCP) { f.df = true }), false},
		{"identification", tcp1, with(func(f *flow, _ *layers.TCP) { f.id++ }), false},
		{"IP options", tcp1, with(func(f *flow, _ *layers.TCP) { f.ipOpts = []layers.IPv4Option{{OptionType: 1}} }), false},
		{"identification with DF", df.tcp(t, tcp, pattern(100)), df2.tcp(t, next, pattern(100)), true},
		{"shorter", tcp1, f2.tcp(t, next, pattern(1)), true},
		{"longer", tcp1, f2.tcp(t, next, pattern(101)), false},
		{"empty", tcp1, f2.tcp(t, next, nil), false},
		{"other protocol", tcp1, f2.udp(t, pattern(100)), false},
		{"other version", tcp1, six.tcp(t, next, pattern(100)), false},
		{"udp next", udp1, f2.udp(t, pattern(100)), true},
		{"udp shorter", udp1, f2.udp(t, pattern(5)), true},
		{"udp longer", udp1, f2.udp(t, pattern(101)), false},
		{"udp empty", udp1, f2.udp(t, nil), false},
		{"udp without checksum", udp1, zero, false},
		{"udp with bytes behind", udp1, tail, false},
		{"udp fragment", udp1, edit(f2.udp(t, pattern(96)), func(b []byte) { b[6] = 0x20 }), false},
		{"udp6", six.udp(t, pattern(100)), six2.udp(t, pattern(100)), true},
		{"flow label", six.udp(t, pattern(100)), label, false},
		{"hop limit", six.udp(t, pattern(100)), flow{v6: true, sport: 3, dport: 4, ttl: 63}.udp(t, pattern(100)), false},
		{"traffic class", six.udp(t, pattern(100)), flow{v6: true, sport: 3, dport: 4, tos: 1}.udp(t, pattern(100)), false},
		{"extension header", six.udp(t, pattern(100)), flow{v6: true, sport: 3, dport: 4, ext: []byte{17, 0, 1, 4, 0, 0, 0, 0}, extFirst: 60}.udp(t, pattern(92)), false},
	} {
		var m Merge
		first := bytes.Clone(c.first)
		if !m.Start(first, mustParse(t, first)) {
			t.Errorf("%s: Start refused the first", c.name)
			continue
		}
		payload, ok := m.Add(c.second, mustParse(t, c.second))
		if ok != c.want || ok && (len(payload) == 0 || !bytes.HasSuffix(c.second, payload)) {
			t.Errorf("%s: %v, want %v, payload of %d bytes", c.name, ok, c.want, len(payload))
		}
		if !ok {
			if v := m.Finish(); v != (Virtio{}) || !bytes.Equal(first, c.first) {
				t.Errorf("%s: a single packet was changed, %+v", c.name, v)
			}
		}
	}
	for name, b := range map[string][]byte{
		"SYN": f.tcp(t, layers.TCP{SYN: true, ACK: true}, pattern(9)), "RST": f.tcp(t, layers.TCP{RST: true, ACK: true}, pattern(9)),
		"FIN": f.tcp(t, layers.TCP{FIN: true, ACK: true}, pattern(9)), "PSH": f.tcp(t, layers.TCP{PSH: true, ACK: true}, pattern(9)),
		"URG": f.tcp(t, layers.TCP{URG: true, ACK: true}, pattern(9)), "no ACK": f.tcp(t, layers.TCP{}, pattern(9)),
		"pure ACK": f.tcp(t, layers.TCP{ACK: true}, nil), "7 bytes": f.tcp(t, layers.TCP{ACK: true}, pattern(7)), "empty datagram": f.udp(t, nil), "no checksum": zero, "bytes behind": tail,
		"echo": f.echo(t, 1, pattern(9)), "fragment": edit(f.udp(t, pattern(96)), func(b []byte) { b[6] = 0x20 }),
		"IP options":       flow{ipOpts: []layers.IPv4Option{{OptionType: 1}}}.udp(t, pattern(9)),
		"extension header": flow{v6: true, ext: []byte{17, 0, 1, 4, 0, 0, 0, 0}, extFirst: 60}.udp(t, pattern(92)),
	} {
		var m Merge
		if m.Start(b, mustParse(t, b)) || m.Segments() != 0 || !m.full || m.Finish() != (Virtio{}) {
			t.Errorf("Start took %s", name)
		}
	}
}

func TestMergeLimits(t *testing.T) {
	same := func(n, size int) (out [][]byte) {
		for i := range n {
			out = append(out, flow{id: uint16(i)}.udp(t, pattern(size)))
		}
		return out
	}
	count := func(m *Merge, packets [][]byte) (lens []int, full []bool) {
		for _, b := range packets {
			p := mustParse(t, b)
			if _, ok := m.Add(b, p); m.Segments() == 0 || !ok {
				m.Finish()
				m.Start(b, p)
				lens, full = append(lens, 0), append(full, false)
			}
			lens[len(lens)-1], full[len(full)-1] = m.Segments(), m.full
		}
		return lens, full
	}
	for _, c := range []struct {
		m       Merge
		n, size int
		want    string
	}{
		{Merge{}, 130, 10, "[64 64 2] [true true false]"},
		{Merge{MaxSegments: 128}, 130, 10, "[128 2] [true false]"},
		{Merge{MaxSegments: 500}, 130, 10, "[128 2] [true false]"},
		{Merge{MaxSegments: 1}, 2, 10, "[1 1] [true true]"},
		{Merge{}, 50, 1400, "[46 4] [true false]"}, // 46*1400+28 = 64428
		{Merge{MaxLen: 65535 - 1300}, 50, 1400, "[45 5] [true false]"},
		{Merge{MaxLen: 45*1400 + 28}, 50, 1400, "[45 5] [true false]"},
		{Merge{MaxLen: 45*1400 + 27}, 50, 1400, "[44 6] [true false]"},
		{Merge{MaxLen: 1 << 20}, 50, 1400, "[46 4] [true false]"},
		{Merge{MaxLen: 1000}, 2, 1400, "[1 1] [true true]"},
	} {
		lens, full := count(&c.m, same(c.n, c.size))
		if got := fmt.Sprint(lens, full); got != c.want {
			t.Errorf("%d of %d: %s, want %s", c.n, c.size, got, c.want)
		}
	}
	// A shorter one fills it, as does PSH.
	var m Merge
	a, b := flow{}.udp(t, pattern(10)), flow{id: 1}.udp(t, pattern(9))
	m.Start(a, mustParse(t, a))
	if m.full {
		t.Error("full with one")
	}
	if _, ok := m.Add(b, mustParse(t, b)); !ok || !m.full {
		t.Error("not full after a short one")
	}
	a = flow{}.tcp(t, layers.TCP{ACK: true}, pattern(minTCPSegment))
	if !m.Start(a, mustParse(t, a)) {
		t.Error("the smallest TCP segment does not start a merge")
	}
	push := layers.TCP{ACK: true, PSH: true, Seq: 10}
	a, b = flow{}.tcp(t, layers.TCP{ACK: true}, pattern(10)), flow{id: 1}.tcp(t, push, pattern(10))
	m.Start(a, mustParse(t, a))
	if _, ok := m.Add(b, mustParse(t, b)); !ok || !m.full {
		t.Error("not full after PSH")
	}
	m.Finish()
	if TCP(a[20:]).Flags() != TCPAck|TCPPsh {
		t.Errorf("PSH is lost: flags %#x", TCP(a[20:]).Flags())
	}
	if m.Segments() != 0 || !m.full {
		t.Error("not empty after Finish")
	}
}

func TestMergeSameFlow(t *testing.T) {
	var m Merge
	f := flow{sport: 1, dport: 2}
	a := f.tcp(t, layers.TCP{ACK: true}, pattern(10))
	if m.SameFlow(a, mustParse(t, a)) {
		t.Error("an empty Merge has a flow")
	}
	m.Start(a, mustParse(t, a))
	for _, c := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"same", a, true},
		{"pure ACK", f.tcp(t, layers.TCP{RST: true}, nil), true},
		{"with options", flow{sport: 1, dport: 2, ipOpts: []layers.IPv4Option{{OptionType: 1}}}.tcp(t, layers.TCP{}, nil), true},
		{"udp", f.udp(t, nil), false},
		{"other port", flow{sport: 1, dport: 3}.tcp(t, layers.TCP{}, nil), false},
		{"reverse", flow{sport: 2, dport: 1}.tcp(t, layers.TCP{}, nil), false},
		{"other address", flow{sport: 1, dport: 2, src: "10.244.1.3", dst: "10.244.2.3"}.tcp(t, layers.TCP{}, nil), false},
		{"fragment", edit(f.udp(t, pattern(16)), func(b []byte) { b[7] = 1 }), true},
		{"ipv6", flow{v6: true, sport: 1, dport: 2}.tcp(t, layers.TCP{}, nil), false},
		{"echo", f.echo(t, 1, nil), false},
	} {
		if got := m.SameFlow(c.b, mustParse(t, c.b)); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	m.Finish()
	six := flow{v6: true, sport: 1, dport: 2}
	b := six.udp(t, pattern(10))
	m.Start(b, mustParse(t, b))
	for dst, want := range map[string]bool{pod6b.String(): true, "fd00:10:244:2::4": false} {
		c := flow{v6: true, sport: 1, dport: 2, src: pod6a.String(), dst: dst}.udp(t, nil)
		if got := m.SameFlow(c, mustParse(t, c)); got != want {
			t.Errorf("to %s: %v", dst, got)
		}
	}
}

// Packets of a stream with everything that breaks superframes in it: whatever is merged and cut again are
// the same packets in the same order.
func TestMergeRandomStream(t *testing.T) {
	seed := uint32(1)
	rnd := func(n int) int { seed = seed*1664525 + 1013904223; return int(seed>>16) % n }
	for round := range 200 {
		f := flow{v6: round%2 == 1, sport: 1, dport: 2, id: uint16(rnd(65536)), df: rnd(2) == 0}
		udp := rnd(3) == 0
		seq, ack, ts := uint32(rnd(65536))<<16, uint32(7), uint32(1)
		size := 8 + rnd(1400)
		var in, kept [][]byte
		for range 150 {
			n := size
			switch rnd(12) {
			case 0:
				n = rnd(size + 1)
			case 1:
				ack++
			case 2:
				ts++
			case 3:
				f.tos = uint8(rnd(4))
			case 4:
				size = 8 + rnd(1400)
			case 5:
				f.id += 2
			}
			if udp {
				in = append(in, f.udp(t, pattern(n)))
			} else {
				h := layers.TCP{Seq: seq, Ack: ack, ACK: true, Options: timestamps(ts, 1), PSH: rnd(20) == 0, FIN: rnd(50) == 0,
					CWR: rnd(20) == 0, ECE: rnd(20) == 0, SYN: rnd(100) == 0}
				in = append(in, f.tcp(t, h, pattern(n)))
				seq += uint32(n)
			}
			f.id++
			kept = append(kept, bytes.Clone(in[len(in)-1]))
		}
		frames, vs := join(t, new(Merge), in)
		if len(frames) > 120 {
			t.Errorf("round %d: only %d merged", round, 150-len(frames))
		}
		var out [][]byte
		for i, b := range frames {
			if !vs[i].IsGSO() {
				out = append(out, b)
				continue
			}
			p := mustParse(t, b)
			if CheckL4(b, p) != ChecksumPartial {
				t.Fatalf("round %d: a merged packet's checksum is %v", round, CheckL4(b, p))
			}
			out = append(out, cut(t, b, p, vs[i])...)
		}
		if len(out) != len(kept) {
			t.Fatalf("round %d: %d packets in, %d out", round, len(kept), len(out))
		}
		for i := range out {
			if f.df && !f.v6 { // the identification means nothing then
				for _, b := range [][]byte{out[i], kept[i]} {
					binary.BigEndian.PutUint16(b[4:], 0)
					IPv4(b).updateChecksum()
				}
			}
			if !bytes.Equal(out[i], kept[i]) {
				t.Fatalf("round %d: packet %d differs:\n got %x\nwant %x", round, i, out[i][:min(80, len(out[i]))], kept[i][:min(80, len(kept[i]))])
			}
		}
	}
}
