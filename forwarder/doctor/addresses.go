package doctor

import (
	"fmt"
	"strings"
)

// fewLeft is the share of a node's addresses from which on their end is near.
const fewLeft = 0.9

// checkAddresses counts by family, as the next CIDR of a family is taken when one is full. Those that wait after their pod has gone are
// given all the same when no other is left.
func (x *examination) checkAddresses() {
	const name = "addresses"
	if len(x.ipam.CIDRs) == 0 {
		x.skip(name, "the daemon does not tell them")
		return
	}
	var few, left []string
	r := OK
	for _, four := range []bool{true, false} {
		var size, taken float64 // an IPv6 CIDR has more than fit a uint64
		var in []string
		for _, c := range x.ipam.CIDRs {
			if c.Prefix.Addr().Is4() == four && c.Size > 0 {
				size, taken = size+float64(c.Size), taken+float64(c.Allocated)+float64(c.Leaked)
				in = append(in, c.Prefix.String())
			}
		}
		cidrs := strings.Join(in, ", ")
		switch {
		case size == 0:
		case taken >= size:
			few, r = append(few, fmt.Sprintf("all %.0f addresses of %s are given to pods: the next pod is refused", size, cidrs)), Failure
		case taken >= fewLeft*size:
			few = append(few, fmt.Sprintf("%.0f of %.0f addresses of %s are given to pods", taken, size, cidrs))
			if r == OK {
				r = Warning
			}
		default:
			left = append(left, fmt.Sprintf("%.0f given of %s", taken, cidrs))
		}
	}
	switch {
	case len(few)+len(left) == 0:
		x.skip(name, "no pod CIDR of this node has an address for a pod")
	case r == OK:
		x.ok(name, "%s", strings.Join(left, "; "))
	default:
		x.add(name, r, "penstockctl ipam lists whose they are: delete pods that nobody needs, or give the node one more pod CIDR (node.podCIDRs here, podCIDRs of this node on its peers; a reload takes both)",
			"%s", strings.Join(few, "; "))
	}
}
