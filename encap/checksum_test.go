package encap

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/google/gopacket/layers"
)

func TestSumAgainstReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	fills := map[string]func(b []byte){
		"random": func(b []byte) {
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		},
		"ones":  func(b []byte) { copy(b, bytes.Repeat([]byte{0xff}, len(b))) },
		"zeros": func([]byte) {},
		"sparse": func(b []byte) { // carries at the borders of words and blocks
			for i := range b {
				if r.Uint32()%2 == 0 {
					b[i] = 0xff
				}
			}
		},
	}
	mem := make([]byte, 65600)
	for name, fill := range fills {
		for n := 0; n < 1100; n++ {
			b := mem[n%9:][:n] // unaligned, too
			clear(b)
			fill(b)
			for _, initial := range []uint32{0, 1, 0xffff, 0x10000, r.Uint32(), 0xffffffff} {
				if got, want := Fold(Sum(b, initial)), refSum(b, initial); got != want {
					t.Fatalf("%s, %d bytes, initial %#x: %#04x, want %#04x", name, n, initial, got, want)
				}
			}
		}
		b := mem[:65535]
		fill(b)
		if got, want := Fold(Sum(b, 0)), refSum(b, 0); got != want {
			t.Errorf("%s, %d bytes: %#04x, want %#04x", name, len(b), got, want)
		}
	}
}

// Sums of parts are the sum of the whole if the parts begin at even places.
func TestSumOfParts(t *testing.T) {
	b := pattern(4001)
	want := Fold(Sum(b, 0))
	for cut := 0; cut < len(b); cut += 2 {
		if got := Fold(Sum(b[cut:], Sum(b[:cut], 0))); got != want {
			t.Fatalf("cut at %d: %#04x, want %#04x", cut, got, want)
		}
	}
}

func TestFold(t *testing.T) {
	for _, c := range []struct {
		sum  uint32
		want uint16
	}{{0, 0}, {0xffff, 0xffff}, {0x10000, 1}, {0x1ffff, 1}, {0xffffffff, 0xffff}, {0xffff0001, 1}, {0xfffeffff, 0xfffe}} {
		if got := Fold(c.sum); got != c.want {
			t.Errorf("Fold(%#x) = %#x, want %#x", c.sum, got, c.want)
		}
	}
}

// RFC 1624: the incremental update must give what computing anew gives, for every old and new word and in
// the corner where its predecessor, RFC 1141, gave the other zero.
func TestUpdateCorners(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	words := []uint16{0, 1, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff}
	for range 200_000 {
		words = append(words[:9], uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32()))
		rest, old, new := words[r.IntN(12)], words[r.IntN(12)], words[r.IntN(12)]
		if rest == 0 {
			rest = 1 // a header is never all zeros
		}
		was := ^Fold(uint32(rest) + uint32(old))
		if got, want := update16(was, old, new), ^Fold(uint32(rest)+uint32(new)); got != want {
			t.Fatalf("rest %#x, %#x to %#x: %#x, want %#x", rest, old, new, got, want)
		}
	}
	// The example of RFC 1624 section 4.
	if got := update16(0xdd2f, 0x5555, 0x3285); got != 0x0000 {
		t.Errorf("RFC 1624's example: %#04x, want 0x0000", got)
	}
}

func TestDecrementTTLEveryHeader(t *testing.T) {
	for ttl := 0; ttl < 256; ttl++ {
		for proto := 0; proto < 256; proto++ {
			b := make([]byte, 20)
			b[0], b[3], b[8], b[9] = 0x45, 20, byte(ttl), byte(proto)
			copy(b[12:], "\x0a\x00\x00\x01\x0a\x00\x00\x02")
			// Move the checksum through its whole range as well.
			binary.BigEndian.PutUint16(b[4:], uint16(ttl*257+proto*251))
			IPv4(b).updateChecksum()
			p := &Packet{Version: 4, TTL: uint8(ttl), Len: 20}
			DecrementTTL(b, p)
			want := max(ttl-1, 0)
			if int(b[8]) != want || int(p.TTL) != want || refSum(b, 0) != 0xffff {
				t.Fatalf("ttl %d proto %d: now %d, sum %#x", ttl, proto, b[8], refSum(b, 0))
			}
			got := IPv4(b).Checksum()
			IPv4(b).updateChecksum()
			if got != IPv4(b).Checksum() {
				t.Fatalf("ttl %d proto %d: checksum %#x, computed anew %#x", ttl, proto, got, IPv4(b).Checksum())
			}
		}
	}
	b := flow{v6: true, ttl: 7}.udp(t, nil)
	p := mustParse(t, b)
	DecrementTTL(b, p)
	if b[7] != 6 || p.TTL != 6 {
		t.Errorf("hop limit %d, want 6", b[7])
	}
}

func TestSetTOS(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for from := 0; from < 256; from += 5 {
			for to := 0; to < 256; to++ {
				b := flow{v6: v6, tos: uint8(from)}.udp(t, []byte("x"))
				p := mustParse(t, b)
				SetTOS(b, p, uint8(to))
				q := mustParse(t, b) // verifies the header checksum
				if q.TOS != uint8(to) || *p != *q {
					t.Fatalf("v6 %v %d to %d: %+v", v6, from, to, q)
				}
				if v6 && IPv6(b).FlowLabel() != 0x12345 {
					t.Fatalf("flow label %#x", IPv6(b).FlowLabel())
				}
			}
		}
	}
}

func TestCompleteAndCheckL4(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		f := flow{v6: v6, sport: 1000, dport: 2000}
		for _, n := range []int{0, 1, 2, 7, 63, 1400, 1401, 60000} {
			for name, b := range map[string][]byte{
				"tcp": f.tcp(t, layers.TCP{Seq: 1, ACK: true}, pattern(n)),
				"udp": f.udp(t, pattern(n)),
			} {
				want := bytes.Clone(b)
				p := mustParse(t, b)
				if got := CheckL4(b, p); got != ChecksumGood {
					t.Fatalf("%s v6=%v %d: gopacket's checksum is %v", name, v6, n, got)
				}
				v := makePartial(b, p)
				if got := CheckL4(b, p); got != ChecksumPartial {
					t.Fatalf("%s v6=%v %d: partial checksum is %v", name, v6, n, got)
				}
				if f := v.Check(b, p); f != OK {
					t.Fatalf("%s v6=%v %d: %v", name, v6, n, f)
				}
				b = append(b, 0xaa, 0xbb) // padding is not summed
				Complete(b, p, &v)
				if !bytes.Equal(b[:p.Len], want) || v != (Virtio{HdrLen: v.HdrLen}) {
					t.Fatalf("%s v6=%v %d: completed differs from gopacket's, v %+v", name, v6, n, v)
				}
				if n > 0 {
					b[p.Len-1] ^= 4
					if got := CheckL4(b, p); got != ChecksumBad {
						t.Fatalf("%s v6=%v %d: flipped bit is %v", name, v6, n, got)
					}
				}
			}
			b := f.echo(t, 5, pattern(n))
			p := mustParse(t, b)
			if got := CheckL4(b, p); got != ChecksumGood {
				t.Fatalf("echo v6=%v %d: %v", v6, n, got)
			}
			b[p.L4+1] ^= 1
			if got := CheckL4(b, p); got != ChecksumBad {
				t.Fatalf("echo v6=%v %d: flipped bit is %v", v6, n, got)
			}
		}
	}
}

// A computed UDP checksum of zero goes out as 0xffff.
func TestCompleteUDPZero(t *testing.T) {
	f := flow{sport: 1, dport: 2}
	b := f.udp(t, []byte{0, 0})
	// Let the payload take up what is missing to make the sum 0xffff.
	c := UDP(b[20:]).Checksum()
	b = f.udp(t, []byte{byte(c >> 8), byte(c)})
	p := mustParse(t, b)
	v := makePartial(b, p)
	Complete(b, p, &v)
	if got := UDP(b[20:]).Checksum(); got != 0xffff {
		t.Errorf("checksum %#04x, want 0xffff", got)
	}
	if got := CheckL4(b, p); got != ChecksumGood {
		t.Errorf("0xffff is %v", got)
	}
	UDP(b[20:]).setChecksum(0)
	if got := CheckL4(b, p); got != ChecksumNone {
		t.Errorf("0 is %v", got)
	}
}

func TestCheckL4None(t *testing.T) {
	frag := flow{}.udp(t, pattern(80))
	binary.BigEndian.PutUint16(frag[6:], ipv4MF)
	IPv4(frag).updateChecksum()
	// A routing header with segments left: the final destination is in it.
	routed := flow{v6: true, ext: []byte{17, 2, 4, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8},
		extFirst: extRouting}.udp(t, pattern(80))
	for name, b := range map[string][]byte{
		"fragment": frag, "gre": flow{}.raw(t, 47, pattern(50)), "routing header": routed,
		"short icmp": flow{}.raw(t, ProtoICMP, pattern(4)), "icmp in IPv6": flow{v6: true}.raw(t, ProtoICMP, pattern(40)),
	} {
		if got := CheckL4(b, mustParse(t, b)); got != ChecksumNone {
			t.Errorf("%s: %v, want none", name, got)
		}
	}
}

// UDP may end before IP does; what is behind it is not in the checksum.
func TestCheckL4ShortUDP(t *testing.T) {
	b := flow{}.udp(t, []byte("hello"))
	b = append(b, 1, 2, 3)
	IPv4(b).setTotalLen(len(b))
	IPv4(b).updateChecksum()
	p := mustParse(t, b)
	if got := CheckL4(b, p); got != ChecksumGood {
		t.Errorf("%v, want good", got)
	}
}

func TestCompleteSCTP(t *testing.T) {
	b := flow{}.raw(t, ProtoSCTP, pattern(100))
	p := mustParse(t, b)
	v := Virtio{Flags: NeedsCsum, CsumStart: p.L4, CsumOffset: sctpCsumOffset}
	if f := v.Check(b, p); f != OK {
		t.Fatal(f)
	}
	Complete(b, p, &v)
	// RFC 9260 appendix A: computed over the packet with the field zero, stored low byte first.
	got := binary.LittleEndian.Uint32(b[28:])
	clear(b[28:32])
	if want := crc32.Checksum(b[20:], crc32.MakeTable(0x82f63b78)); got != want {
		t.Errorf("CRC32c %#08x, want %#08x", got, want)
	}
}

// A pod's own tunnel: the outer UDP checksum is there, the inner TCP checksum is partial.
func TestCompleteNested(t *testing.T) {
	inner := flow{src: "192.168.0.1", dst: "192.168.0.2", sport: 5, dport: 6}.tcp(t, layers.TCP{ACK: true}, pattern(300))
	want := bytes.Clone(inner)
	ip := mustParse(t, inner)
	iv := makePartial(inner, ip)
	b := flow{sport: 4789, dport: 4789}.udp(t, append(make([]byte, 8), inner...))
	p := mustParse(t, b)
	v := Virtio{Flags: NeedsCsum, CsumStart: 20 + 8 + 8 + iv.CsumStart, CsumOffset: iv.CsumOffset}
	if f := v.Check(b, p); f != OK {
		t.Fatal(f)
	}
	Complete(b, p, &v)
	if !bytes.Equal(b[36:], want) {
		t.Error("the inner packet is not as it was before its checksum was left partial")
	}
}

func TestPseudoSum(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		b := flow{v6: v6}.udp(t, pattern(100))
		p := mustParse(t, b)
		for _, n := range []int{0, 8, 108, 65535, 65575} {
			if got, want := Fold(PseudoSum(p, n)), Fold(pseudoSum(b, p, n)); got != want {
				t.Errorf("v6=%v %d: %#x from addresses, %#x from bytes", v6, n, got, want)
			}
		}
	}
}
