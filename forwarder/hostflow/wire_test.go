package hostflow

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func FuzzDecode(f *testing.F) {
	seed := func(e entry) {
		b := attr([]byte{unix.AF_INET, 0, 0, 0}, ctaTupleOrig|nested, encodeTuple(e.orig))
		b = attr(b, ctaTupleReply|nested, encodeTuple(e.reply))
		f.Add(attr(b, ctaZone, bytes16(3)))
	}
	seed(service(1))
	a, b := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	seed(entry{orig: ctTuple{proto: 58, src: a, dst: b, icmpType: 128, icmpID: 1}, reply: ctTuple{proto: 58, src: b, dst: a, icmpType: 129, icmpID: 2}})
	f.Add([]byte{2, 0, 0, 0, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		keep := bytes.Clone(b)
		var e entry
		ok := decode(b, &e)
		if !bytes.Equal(b, keep) {
			t.Fatal("decode wrote to its input")
		}
		if !ok {
			return
		}
		k := e.reply.tuple()
		if !k.Src.IsValid() || !k.Dst.IsValid() || k.Src.Is4In6() || k.Src.Is4() != k.Dst.Is4() || k.Proto == 0 {
			t.Fatalf("accepted %v", k)
		}
		if !askable(&k) {
			return
		}
		// What we ask for is what we would recognise.
		var back ctTuple
		found := false
		attrs(request(&k, 5)[genHeader:], func(typ uint16, v []byte) bool {
			if typ == ctaTupleReply {
				found = decodeTuple(v, &back)
			}
			return true
		})
		if (k.Proto == unix.IPPROTO_ICMP) == k.Src.Is4() || k.Proto != unix.IPPROTO_ICMPV6 && k.Proto != unix.IPPROTO_ICMP {
			if !found || back.tuple() != k {
				t.Fatalf("asked for %v, got %v", k, back.tuple())
			}
		}
	})
}

func TestTupleOfPackets(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for _, c := range []struct {
		in   ctTuple
		want Tuple
	}{
		{ctTuple{proto: 6, src: a, dst: b, srcPort: 1, dstPort: 2}, Tuple{6, a, b, 1, 2}},
		{ctTuple{proto: 132, src: a, dst: b, srcPort: 1, dstPort: 2}, Tuple{132, a, b, 1, 2}},
		{ctTuple{proto: 1, src: a, dst: b, icmpType: 0, icmpID: 7}, Tuple{1, a, b, 7, 7}},
		{ctTuple{proto: 1, src: a, dst: b, icmpType: 14, icmpID: 7}, Tuple{1, a, b, 0, 0}}, // a time stamp: encap sees no ports
		{ctTuple{proto: 47, src: a, dst: b, srcPort: 1, dstPort: 2}, Tuple{47, a, b, 0, 0}},
	} {
		if got := c.in.tuple(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.in, got, c.want)
		}
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	e := service(1)
	b := attr([]byte{unix.AF_INET, 0, 0, 0}, ctaTupleOrig|nested, encodeTuple(e.orig))
	b = attr(b, ctaTupleReply|nested, encodeTuple(e.reply))
	var got entry
	if n := testing.AllocsPerRun(100, func() {
		if !decode(b, &got) {
			t.Fatal("not decoded")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got != e {
		t.Errorf("got %+v, want %+v", got, e)
	}
}
