package encap

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket/layers"
)

func netAddr16(b ...byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }

func TestVirtioCheck(t *testing.T) {
	f4, f6 := flow{}, flow{v6: true}
	tcp4, tcp6 := f4.tcp(t, layers.TCP{ACK: true}, pattern(3000)), f6.tcp(t, layers.TCP{ACK: true}, pattern(3000))
	udp4, udp6 := f4.udp(t, pattern(3000)), f6.udp(t, pattern(3000))
	syn := f4.tcp(t, layers.TCP{SYN: true}, pattern(3000))
	rst := f4.tcp(t, layers.TCP{RST: true, ACK: true}, pattern(3000))
	frag := edit(f4.udp(t, pattern(3000)), func(b []byte) { b[6] = 0x20 })
	gre := f4.raw(t, 47, pattern(100))
	short := edit(append(f4.udp(t, pattern(3000)), 0), func(b []byte) { IPv4(b).setTotalLen(len(b)) })
	tests := []struct {
		name string
		b    []byte
		v    Virtio
		want Fault
	}{
		{"nothing", tcp4, Virtio{}, OK},
		{"nothing, with leftovers", tcp4, Virtio{GSOSize: 9, CsumStart: 60000, CsumOffset: 60000, HdrLen: 60000}, OK},
		{"valid", tcp4, Virtio{Flags: DataValid}, OK},
		{"unknown flag", tcp4, Virtio{Flags: 4}, FaultBadVirtio},
		{"partial tcp4", tcp4, Virtio{1, 0, 0, 0, 20, 16}, OK},
		{"partial udp6", udp6, Virtio{1, 0, 0, 0, 40, 6}, OK},
		{"partial and valid", udp6, Virtio{3, 0, 0, 0, 40, 6}, OK},
		{"udp offset in tcp", tcp4, Virtio{1, 0, 0, 0, 20, 6}, FaultBadVirtio},
		{"ports as checksum", udp4, Virtio{1, 0, 0, 0, 20, 2}, FaultBadVirtio},
		{"start in the IP header", udp4, Virtio{1, 0, 0, 0, 10, 6}, FaultBadVirtio},
		{"start in the L4 header", udp4, Virtio{1, 0, 0, 0, 22, 4}, FaultBadVirtio},
		{"start in tcp's payload", tcp4, Virtio{1, 0, 0, 0, 60, 4}, FaultBadVirtio},
		{"start in udp's payload", udp4, Virtio{1, 0, 0, 0, 56, 16}, OK},
		{"start behind the ports", gre, Virtio{1, 0, 0, 0, 28, 16}, OK},
		{"start in gre", gre, Virtio{1, 0, 0, 0, 44, 16}, OK},
		{"gre itself", gre, Virtio{1, 0, 0, 0, 20, 2}, FaultBadVirtio},
		{"last word", udp4, Virtio{1, 0, 0, 0, 3000, 26}, OK},
		{"beyond the end", udp4, Virtio{1, 0, 0, 0, 3000, 27}, FaultBadVirtio},
		{"far beyond the end", udp4, Virtio{1, 0, 0, 0, 65535, 65535}, FaultBadVirtio},
		{"partial fragment", frag, Virtio{1, 0, 0, 0, 20, 6}, FaultBadVirtio},
		{"fragment", frag, Virtio{}, OK},
		{"tso4", tcp4, Virtio{1, 1, 0, 1000, 20, 16}, OK},
		{"tso4 ecn", tcp4, Virtio{1, 0x81, 0, 1000, 20, 16}, OK},
		{"tso6", tcp6, Virtio{1, 4, 0, 1000, 40, 16}, OK},
		{"tso6 ecn", tcp6, Virtio{1, 0x84, 0, 1000, 40, 16}, OK},
		{"uso4", udp4, Virtio{1, 5, 0, 1000, 20, 6}, OK},
		{"uso6", udp6, Virtio{1, 5, 0, 1000, 40, 6}, OK},
		{"uso ecn", udp6, Virtio{1, 0x85, 0, 1000, 40, 6}, FaultBadVirtio},
		{"tso4 in IPv6", tcp6, Virtio{1, 1, 0, 1000, 40, 16}, FaultBadVirtio},
		{"tso6 in IPv4", tcp4, Virtio{1, 4, 0, 1000, 20, 16}, FaultBadVirtio},
		{"tso of udp", udp4, Virtio{1, 1, 0, 1000, 20, 6}, FaultBadVirtio},
		{"uso of tcp", tcp4, Virtio{1, 5, 0, 1000, 20, 16}, FaultBadVirtio},
		{"ufo", udp4, Virtio{1, 3, 0, 1000, 20, 6}, FaultBadVirtio},
		{"tunnel type", tcp4, Virtio{1, 0x21, 0, 1000, 20, 16}, FaultBadVirtio},
		{"ecn alone", tcp4, Virtio{1, 0x80, 0, 1000, 20, 16}, FaultBadVirtio},
		{"tso without checksum", tcp4, Virtio{0, 1, 0, 1000, 20, 16}, FaultBadVirtio},
		{"tso nested", udp4, Virtio{1, 1, 0, 1000, 56, 16}, FaultBadVirtio},
		{"tso by 0", tcp4, Virtio{1, 1, 0, 0, 20, 16}, FaultBadVirtio},
		{"tso by 7", tcp4, Virtio{1, 1, 0, 7, 20, 16}, FaultBadVirtio},
		{"tso by 8", tcp4, Virtio{1, 1, 0, 8, 20, 16}, OK},
		{"tso larger than the packet", tcp4, Virtio{1, 1, 0, 65535, 20, 16}, OK},
		{"uso by 0", udp4, Virtio{1, 5, 0, 0, 20, 6}, FaultBadVirtio},
		{"uso in 129", udp4, Virtio{1, 5, 0, 23, 20, 6}, FaultBadVirtio},
		{"uso in 125", udp4, Virtio{1, 5, 0, 24, 20, 6}, OK},
		{"uso of a part", short, Virtio{1, 5, 0, 1000, 20, 6}, FaultBadVirtio},
		{"tso of fragment", frag, Virtio{1, 5, 0, 1000, 20, 6}, FaultBadVirtio},
		{"tso of SYN", syn, Virtio{1, 1, 0, 1000, 20, 16}, FaultBadVirtio},
		{"tso of RST", rst, Virtio{1, 1, 0, 1000, 20, 16}, FaultBadVirtio},
	}
	for _, tt := range tests {
		if got := tt.v.Check(tt.b, mustParse(t, tt.b)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestRecoverSuperframe(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		f := flow{v6: v6, sport: 1, dport: 2}
		head := 40
		if v6 {
			head = 60
		}
		for _, partial := range []bool{false, true} {
			// TCP: cut at the path's MTU, options taken into account.
			b := f.tcp(t, layers.TCP{ACK: true, CWR: true, Options: timestamps(1, 2)}, pattern(30000))
			want := refCut(t, b, 1400-head-12)
			p := mustParse(t, b)
			if partial {
				makePartial(b, p)
			}
			v, fault := RecoverSuperframe(b, p, 77, 1400)
			if fault != OK || v.GSOType&GSOECN == 0 {
				t.Fatalf("tcp: %v %+v", fault, v)
			}
			if got := cut(t, b, p, v); !equal(got, want) {
				t.Errorf("tcp v6=%v partial=%v: segments differ", v6, partial)
			}
			plain := f.tcp(t, layers.TCP{ACK: true}, pattern(30000))
			if v, fault := RecoverSuperframe(plain, mustParse(t, plain), 0, 1400); fault != OK || v.GSOType&GSOECN != 0 {
				t.Errorf("tcp without CWR: %v %+v", fault, v)
			}
			// UDP: cut at the borders that the socket told.
			b = f.udp(t, pattern(3100))
			want = refCut(t, b, 500)
			p = mustParse(t, b)
			if partial {
				makePartial(b, p)
			}
			kept := bytes.Clone(b)
			if _, fault := RecoverSuperframe(b, p, 0, 1400); fault != FaultBadGRO {
				t.Errorf("udp without size: %v", fault)
			}
			if !bytes.Equal(b, kept) {
				t.Error("changed though refused")
			}
			v, fault = RecoverSuperframe(b, p, 500, 1400)
			if fault != OK {
				t.Fatal(fault)
			}
			if got := cut(t, b, p, v); !equal(got, want) {
				t.Errorf("udp v6=%v partial=%v: segments differ", v6, partial)
			}
			one := f.udp(t, pattern(100))
			if v, fault := RecoverSuperframe(one, mustParse(t, one), 1, 1400); fault != OK || v.GSOSize != 1 {
				t.Errorf("messages of one byte: %v %+v", fault, v)
			}
			// Small messages make a superframe that is shorter than the MTU.
			b = f.udp(t, pattern(300))
			p = mustParse(t, b)
			if v, fault := RecoverSuperframe(b, p, 100, 1400); fault != OK || v.GSOType != GSOUDPL4 || v.GSOSize != 100 {
				t.Errorf("three small messages: %v %+v", fault, v)
			}
			// What is no superframe keeps its checksum.
			for name, b := range map[string][]byte{"tcp": f.tcp(t, layers.TCP{SYN: true}, nil), "udp": f.udp(t, pattern(9))} {
				p := mustParse(t, b)
				want := Virtio{}
				if partial {
					want = makePartial(b, p)
					want.HdrLen = 0
				}
				kept := bytes.Clone(b)
				if v, fault := RecoverSuperframe(b, p, 0, 1400); fault != OK || v != want || !bytes.Equal(b, kept) {
					t.Errorf("single %s: %v, %+v, want %+v", name, fault, v, want)
				}
				b[len(b)-1] ^= 1
				if name == "udp" && !partial {
					if _, fault := RecoverSuperframe(b, p, 0, 1400); fault != FaultBadChecksum {
						t.Errorf("flipped bit: %v", fault)
					}
				}
			}
		}
	}
	tcp := flow{}.tcp(t, layers.TCP{ACK: true}, pattern(9000))
	udp := flow{}.udp(t, pattern(9000))
	none := flow{}.udp(t, pattern(9000))
	UDP(none[20:]).setChecksum(0)
	smallNone := flow{}.udp(t, pattern(90))
	UDP(smallNone[20:]).setChecksum(0)
	flipped := bytes.Clone(tcp)
	flipped[500] ^= 0x40
	syn := flow{}.tcp(t, layers.TCP{SYN: true}, pattern(9000))
	frag := edit(udp, func(b []byte) { b[7] = 1 })
	binary.BigEndian.PutUint16(frag[2:], uint16(len(frag)))
	for _, tt := range []struct {
		name     string
		b        []byte
		gso, mtu int
		want     Fault
	}{
		{"tcp with an MTU without room", tcp, 0, 47, FaultBadGRO},
		{"tcp with MTU 0", tcp, 0, 0, FaultBadGRO},
		{"tcp with negative MTU", tcp, 0, -5, FaultBadGRO},
		{"flipped bit in a superframe", flipped, 0, 1400, FaultBadChecksum},
		{"udp with too many messages", udp, 20, 1400, FaultBadGRO},
		{"udp with a negative size", udp, -20, 1400, FaultBadGRO},
		{"udp without checksum", none, 1000, 1400, FaultBadGRO},
		{"single udp without checksum", smallNone, 0, 1400, OK},
		{"syn", syn, 0, 1400, FaultBadGRO},
		{"long fragment", frag, 1000, 1400, FaultBadGRO},
		{"short fragment", frag, 1000, 9100, OK},
		{"long echo", flow{}.echo(t, 1, pattern(3000)), 100, 1400, FaultBadGRO},
		{"echo", flow{}.echo(t, 1, pattern(300)), 0, 1400, OK},
		{"echo as long as the MTU", flow{}.echo(t, 1, pattern(1372)), 0, 1400, OK},
		{"echo one longer", flow{}.echo(t, 1, pattern(1373)), 0, 1400, FaultBadGRO},
		{"tcp with an MTU for 8 bytes", flow{}.tcp(t, layers.TCP{ACK: true}, pattern(900)), 0, 48, OK},
		{"gre", flow{}.raw(t, 47, pattern(300)), 0, 1400, OK},
	} {
		if _, got := RecoverSuperframe(tt.b, mustParse(t, tt.b), tt.gso, tt.mtu); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func equal(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
