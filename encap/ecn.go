package encap

// Values of the ECN field, the low two bits of TOS (RFC 3168 section 5).
const (
	ecnNotECT = 0
	ecnECT1   = 1
	ecnECT0   = 2
	ecnCE     = 3
	ecnMask   = 3
)

// ECNEncap returns the outer TOS for an inner one: ECN copied (the normal mode of RFC 6040 section 4.1),
// DSCP copied or 0.
func ECNEncap(inner uint8, copyDSCP bool) (outer uint8) {
	if copyDSCP {
		return inner
	}
	return inner & ecnMask
}

// ECNDecap returns the inner TOS after decapsulation by RFC 6040 section 4.2, figure 4; the inner DSCP
// stays. drop says that the path marked congestion on a packet whose sender would not see the mark.
func ECNDecap(outer, inner uint8) (newInner uint8, drop bool) {
	switch outer & ecnMask {
	case ecnCE:
		if inner&ecnMask == ecnNotECT {
			return inner, true
		}
		return inner | ecnCE, false
	case ecnECT1:
		if inner&ecnMask == ecnECT0 {
			return inner&^ecnMask | ecnECT1, false
		}
	}
	return inner, false
}
