package encap

import "testing"

// The whole of RFC 6040 figure 4 and of its section 4.1 (normal mode), with every DSCP.
func TestECN(t *testing.T) {
	const not, ect1, ect0, ce, drop = 0, 1, 2, 3, -1
	decap := []struct{ inner, outer, want int }{
		{not, not, not}, {not, ect0, not}, {not, ect1, not}, {not, ce, drop},
		{ect0, not, ect0}, {ect0, ect0, ect0}, {ect0, ect1, ect1}, {ect0, ce, ce},
		{ect1, not, ect1}, {ect1, ect0, ect1}, {ect1, ect1, ect1}, {ect1, ce, ce},
		{ce, not, ce}, {ce, ect0, ce}, {ce, ect1, ce}, {ce, ce, ce},
	}
	for _, c := range decap {
		for dscp := 0; dscp < 256; dscp += 4 {
			for outerDSCP := 0; outerDSCP < 256; outerDSCP += 4 {
				got, dropped := ECNDecap(uint8(outerDSCP|c.outer), uint8(dscp|c.inner))
				if dropped != (c.want == drop) || !dropped && int(got) != dscp|c.want {
					t.Fatalf("outer %d, inner %d, DSCP %#x/%#x: %#x, drop %v", c.outer, c.inner, outerDSCP, dscp, got, dropped)
				}
			}
		}
	}
	for tos := range 256 {
		if got := ECNEncap(uint8(tos), true); int(got) != tos {
			t.Errorf("encap %#x with DSCP: %#x", tos, got)
		}
		if got := ECNEncap(uint8(tos), false); int(got) != tos&3 {
			t.Errorf("encap %#x without DSCP: %#x", tos, got)
		}
	}
}
