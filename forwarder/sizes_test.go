package forwarder

import "testing"

func TestSizes(t *testing.T) {
	var s sizes
	for _, n := range []uint64{0, 1, 2, 3, 4, 5, 1024, 1025, 1 << 40} {
		s.note(n)
	}
	var l sizeLedger
	l.publish(&s)
	var out Sizes
	l.addTo(&out)
	want := Sizes{Count: 8}
	want.UpTo[0], want.UpTo[1], want.UpTo[2], want.UpTo[3], want.UpTo[10] = 1, 1, 2, 1, 1
	if out != want || s != (sizes{}) {
		t.Errorf("%+v, want %+v; left %v", out, want, s)
	}
}
