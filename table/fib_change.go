package table

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// A list grows into a node when it has more than fewMost routes, and a node
// shrinks into a list when it has only fewLeast left. A node is 2 KiB, and 4 KiB
// more with kids: so that a route costs a few hundred bytes at worst.
const (
	fewMost  = 16
	fewLeast = 8
)

// change is one route being set or deleted.
type change[H any] struct {
	owner uint64
	rib   *bart.Table[hop[H]] // with the change already made
	p     netip.Prefix        // masked
	key   key
	depth int // the byte in which p ends
	delta int32
}

func (f *fib[H]) change(owner uint64, rib *bart.Table[hop[H]], p netip.Prefix, delta int32) change[H] {
	return change[H]{owner: owner, rib: rib, p: p, key: keyOf(p.Addr()), depth: (p.Bits() - 1) / 8, delta: delta}
}

// set follows a route that the RIB has just been given.
func (f *fib[H]) set(owner uint64, rib *bart.Table[hop[H]], p netip.Prefix, h *H, replaced bool) {
	root, all := f.root(p)
	if p.Bits() == 0 {
		*all = h
		return
	}
	c := f.change(owner, rib, p, 1)
	if replaced {
		c.delta = 0
	}
	*root = c.set(*root, 0, h)
}

// delete follows a route that the RIB has just lost.
func (f *fib[H]) delete(owner uint64, rib *bart.Table[hop[H]], p netip.Prefix) {
	root, all := f.root(p)
	if p.Bits() == 0 {
		*all = nil
		return
	}
	c := f.change(owner, rib, p, -1)
	if (*root).count == 1 {
		*root = nil
		return
	}
	*root = c.delete(*root)
}

func (f *fib[H]) root(p netip.Prefix) (root **node[H], all **H) {
	if p.Addr().Is4() {
		return &f.v4, &f.any4
	}
	return &f.v6, &f.any6
}

// set returns n with the route. n may be nil; its parent has looked at the first
// seen bytes.
func (c *change[H]) set(n *node[H], seen int, h *H) *node[H] {
	if n == nil {
		n = c.node(c.depth, seen)
	} else if d := fork(c.key, n.key, min(c.depth, int(n.depth))); d < int(n.depth) {
		n = c.above(n, d, seen)
	} else {
		n = c.own(n)
	}
	n.count += c.delta
	if c.depth == int(n.depth) {
		c.fill(n)
		return n
	}
	k := c.kid(n)
	if k.node != nil {
		k.node = c.set(k.node, int(n.depth)+1, h)
		return n
	}
	var length int
	if k.few, length = k.few.with(c.p.Bits(), c.key, h); length > fewMost {
		k.node, k.few = c.grow(k.few, int(n.depth)+1), nil
	}
	return n
}

// grow makes the node that a list has become too long for.
func (c *change[H]) grow(list *few[H], seen int) *node[H] {
	depth := c.depth
	for r := list; r != nil; r = r.next {
		depth = min(depth, fork(c.key, r.key, (r.bits-1)/8))
	}
	n := c.node(depth, seen)
	for r := list; r != nil; r = r.next {
		s := *c
		s.p, s.key, s.depth = r.prefix(c.p), r.key, (r.bits-1)/8
		n.count++
		if s.depth == depth {
			s.fill(n)
		} else {
			k := s.kid(n)
			k.few, _ = k.few.with(r.bits, r.key, r.hop)
		}
	}
	return n
}

// delete returns n without the route. More than one route is left in n.
func (c *change[H]) delete(n *node[H]) *node[H] {
	n = c.own(n)
	n.count--
	if c.depth == int(n.depth) {
		c.fill(n)
		return n
	}
	k := c.kid(n)
	switch {
	case k.node == nil:
		k.few = k.few.without(c.p.Bits(), c.key)
	case k.node.count-1 <= fewLeast:
		k.node, k.few = nil, c.collect(c.key, 8*int(n.depth)+8)
	default:
		k.node = c.delete(k.node)
	}
	if *k == (kid[H]{}) {
		if n.used--; n.used == 0 {
			n.kids = nil
		}
	}
	return n
}

// node makes an empty one at a byte of the changed route's path.
func (c *change[H]) node(depth, seen int) *node[H] {
	n := &node[H]{depth: uint8(depth), owner: c.owner}
	n.key = c.key.and(maskOf(8 * depth))
	n.low = depth >= 8
	n.shift = uint8(56 - 8*(depth%8))
	n.look(seen)
	return n
}

// look makes n compare the bytes from seen up to its own.
func (n *node[H]) look(seen int) {
	m, before := maskOf(8*int(n.depth)), maskOf(8*seen)
	n.mask = key{m.hi &^ before.hi, m.lo &^ before.lo}
}

// own returns n as this transaction may change it.
func (c *change[H]) own(n *node[H]) *node[H] {
	if n.owner == c.owner {
		return n
	}
	m := *n
	m.owner = c.owner
	if m.kids != nil {
		kids := *m.kids
		m.kids = &kids
	}
	return &m
}

// fork returns the first byte before the last at which two keys differ, or last.
func fork(a, b key, last int) int {
	for i := range last {
		if a.at(i) != b.at(i) {
			return i
		}
	}
	return last
}

// above makes a node at byte d that has n below it.
func (c *change[H]) above(n *node[H], d, seen int) *node[H] {
	m := c.node(d, seen)
	m.kids, m.used, m.count = new([256]kid[H]), 1, n.count
	k := &m.kids[n.key.at(d)]
	if n.count <= fewLeast {
		k.few = c.collect(n.key, 8*d+8)
		return m
	}
	k.node = c.own(n)
	k.node.look(d + 1)
	return m
}

// kid returns the one of n that the changed route belongs to, and counts it as
// used.
func (c *change[H]) kid(n *node[H]) *kid[H] {
	if n.kids == nil {
		n.kids = new([256]kid[H])
	}
	k := &n.kids[c.key.at(int(n.depth))]
	if *k == (kid[H]{}) {
		n.used++
	}
	return k
}

// fill asks the RIB again for all of n's hops that the changed route covers.
func (c *change[H]) fill(n *node[H]) {
	bits := 8*int(n.depth) + 8
	first := int(c.key.at(int(n.depth)))
	is4 := c.p.Addr().Is4()
	for b := first; b < first+1<<(bits-c.p.Bits()); b++ {
		slot := netip.PrefixFrom(c.key.with(int(n.depth), byte(b)).addr(is4), bits)
		n.hops[b] = nil
		if p, r, ok := c.rib.LookupPrefixLPM(slot); ok && p.Bits() > bits-8 {
			n.hops[b] = r.h
		}
	}
}

// collect lists the routes of the RIB that begin with the first bits of k and go
// further.
func (c *change[H]) collect(k key, bits int) (list *few[H]) {
	for p, r := range c.rib.Subnets(netip.PrefixFrom(k.addr(c.p.Addr().Is4()), bits)) {
		if p.Bits() > bits {
			list, _ = list.with(p.Bits(), keyOf(p.Addr()), r.h)
		}
	}
	return list
}

// with returns the list with a route added or replaced, and its length.
func (f *few[H]) with(bits int, k key, h *H) (list *few[H], length int) {
	n := &few[H]{key: k, mask: maskOf(bits), hop: h, next: f, bits: bits}
	if f == nil {
		return n, 1
	}
	if f.bits == n.bits && f.key == n.key {
		n.next = f.next
		return n, n.length()
	}
	if f.bits < n.bits {
		return n, n.length()
	}
	m := *f
	m.next, length = f.next.with(bits, k, h)
	return &m, length + 1
}

// without returns the list without a route.
func (f *few[H]) without(bits int, k key) *few[H] {
	switch {
	case f == nil:
		return nil
	case f.bits == bits && f.key == k:
		return f.next
	}
	m := *f
	m.next = f.next.without(bits, k)
	return &m
}

func (f *few[H]) length() (n int) {
	for ; f != nil; f = f.next {
		n++
	}
	return n
}

// prefix returns the route's own; like gives its address family.
func (f *few[H]) prefix(like netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(f.key.addr(like.Addr().Is4()), f.bits)
}
