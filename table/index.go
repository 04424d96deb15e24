package table

import "net/netip"

// index is a set of prefixes with their next hops, kept twice: the RIB for exact
// questions, the FIB for the one asked per packet. Routes, peers (prefixes of
// full length) and stations (MACs as prefixes of 48 bits) are all indexes; where
// all prefixes have the same length, longest match is exact match.
//
// It is persistent like its parts: a copy of the struct is a copy of the index.
type index[H any] struct {
	fib fib[H]
	rib tree[hop[H]]
}

// set adds or replaces p, which must be masked, for a transaction known by its
// owner number.
func (x *index[H]) set(owner uint64, p netip.Prefix, h *H) {
	_, replaced := x.rib.exact(p)
	x.rib.set(p, hop[H]{h})
	x.fib.set(owner, x.rib.t, p, h, replaced)
}

// delete takes p away and reports whether it was there.
func (x *index[H]) delete(owner uint64, p netip.Prefix) bool {
	if _, ok := x.rib.exact(p); !ok {
		return false
	}
	x.rib.delete(p)
	x.fib.delete(owner, x.rib.t, p)
	return true
}

// match returns the next hop of the longest prefix that covers a, or nil.
func (x *index[H]) match(a netip.Addr) *H { return x.fib.route(a) }

func (x *index[H]) size() int { return x.rib.size() }

// publish returns the index as a View may keep it.
func (x *index[H]) publish() index[H] { return index[H]{fib: x.fib, rib: x.rib.publish()} }
