package encap

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/ip4defrag"
	"github.com/google/gopacket/layers"
)

// fragments runs Fragments over b and returns the fragments as packets.
func fragments(t testing.TB, b []byte, mtu int) [][]byte {
	t.Helper()
	p := mustParse(t, b)
	var f Fragments
	if fault := f.Init(b, p, mtu); fault != OK {
		t.Fatalf("Init with MTU %d: %v", mtu, fault)
	}
	var out [][]byte
	hdr := make([]byte, 60)
	for {
		n, payload, ok := f.Next(hdr)
		if !ok {
			break
		}
		out = append(out, append(bytes.Clone(hdr[:n]), payload...))
	}
	if len(out) != f.Count() {
		t.Fatalf("%d fragments, Count says %d", len(out), f.Count())
	}
	return out
}

// reassemble is the slow reference: fragments in any order, each byte must be there exactly once. It
// returns the payload, and whether the end is there.
func reassemble(t testing.TB, frags [][]byte) (payload []byte, whole bool) {
	t.Helper()
	mem, have := make([]byte, 65536), make([]int, 65536)
	end := 0
	for _, b := range frags {
		p := mustParse(t, b)
		h := IPv4(b)
		for i, c := range b[p.L4:p.Len] {
			mem[h.FragOffset()+i] = c
			have[h.FragOffset()+i]++
		}
		end = max(end, h.FragOffset()+p.Len-int(p.L4))
		whole = whole || !h.MF()
	}
	for i := range end {
		if have[i] != 1 {
			t.Fatalf("payload byte %d is there %d times", i, have[i])
		}
	}
	return mem[:end], whole
}

func TestFragmentsReassemble(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	opts := []layers.IPv4Option{
		{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}},           // record route: not copied
		{OptionType: 148, OptionLength: 4, OptionData: []byte{0, 0}}, {OptionType: 1}, // router alert: copied
	}
	for _, withOpts := range []bool{false, true} {
		for _, n := range []int{0, 1, 7, 8, 9, 547, 548, 549, 1471, 1472, 1473, 2999, 20000, 65400} {
			for _, mtu := range []int{68, 69, 75, 76, 77, 576, 1400, 1450, 1472, 1500, 65535} {
				f := flow{id: 777, tos: 3}
				if withOpts {
					f.ipOpts = opts
				}
				b := f.udp(t, pattern(n))
				p := mustParse(t, b)
				got := fragments(t, append(b, 5, 5, 5), mtu)
				for i, g := range got {
					q := mustParse(t, g)
					h := IPv4(g)
					if len(g) > mtu || h.ID() != 777 || q.Src != p.Src || q.Dst != p.Dst || q.TOS != 3 || q.TTL != 64 || q.Proto != 17 || h.DF() {
						t.Fatalf("%d bytes, MTU %d, fragment %d of %d bytes: %+v", n, mtu, i, len(g), q)
					}
					if i < len(got)-1 && len(g)+8 <= mtu {
						t.Errorf("%d bytes, MTU %d, fragment %d has room left: %d", n, mtu, i, len(g))
					}
					if i > 0 && withOpts && !bytes.Equal(h.Options(), []byte{148, 4, 0, 0}) {
						t.Fatalf("fragment %d has options % x", i, h.Options())
					}
				}
				if !bytes.Equal(got[0][20:p.L4], b[20:p.L4]) {
					t.Fatalf("the first fragment's options changed")
				}
				if p.Len <= mtu && len(got) != 1 {
					t.Fatalf("%d fragments of what fits", len(got))
				}
				r.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
				payload, whole := reassemble(t, got)
				if !whole || !bytes.Equal(payload, b[p.L4:p.Len]) {
					t.Fatalf("%d bytes, MTU %d: reassembled differs", n, mtu)
				}
				// Fragments of fragments are fragments of the whole.
				var again [][]byte
				for _, g := range got {
					again = append(again, fragments(t, g, 100)...)
				}
				payload, whole = reassemble(t, again)
				if !whole || !bytes.Equal(payload, b[p.L4:p.Len]) {
					t.Fatalf("%d bytes, MTU %d then 100: reassembled differs", n, mtu)
				}
			}
		}
	}
}

// gopacket's reassembly agrees.
func TestFragmentsAgainstGopacket(t *testing.T) {
	b := flow{id: 9}.udp(t, pattern(5000))
	d := ip4defrag.NewIPv4Defragmenter()
	for i, g := range fragments(t, b, 1400) {
		ip := gopacket.NewPacket(g, layers.LayerTypeIPv4, gopacket.Default).Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		whole, err := d.DefragIPv4WithTimestamp(ip, time.Unix(int64(i), 0))
		if err != nil {
			t.Fatal(err)
		}
		if i == 3 && (whole == nil || !bytes.Equal(whole.Payload, b[20:])) {
			t.Error("gopacket does not get the packet back")
		}
	}
}

func TestFragmentsRefuses(t *testing.T) {
	df := flow{df: true}.udp(t, pattern(3000))
	v4 := flow{}.udp(t, pattern(3000))
	v6 := flow{v6: true}.udp(t, pattern(3000))
	for _, c := range []struct {
		b    []byte
		mtu  int
		want Fault
	}{{df, 1400, FaultDontFragment}, {v6, 1400, FaultDontFragment}, {v4, 27, FaultBadMTU}, {v4, 0, FaultBadMTU}, {v4, -1, FaultBadMTU}, {v4, 28, OK}} {
		var f Fragments
		if got := f.Init(c.b, mustParse(t, c.b), c.mtu); got != c.want {
			t.Errorf("MTU %d: %v, want %v", c.mtu, got, c.want)
		}
	}
}
