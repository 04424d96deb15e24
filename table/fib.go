package table

import (
	"encoding/binary"
	"net/netip"
)

// fib is the routes of one network in the form that answers fastest. Like the
// tree beside it, it is persistent: a change copies the nodes on the way to it.
//
// It is a trie of bytes. A node looks at one byte of the address: hops has, for
// each value of that byte, the longest route that ends within it; kids leads on
// to the routes that go further. A node may stand deeper than right below its
// parent (skip): then the bytes between are the same for everything below and
// are compared at once. Where only a few routes go further, a list of them is
// smaller than a node and as fast.
//
//	10.0.0.0/8, 10.244.1.0/24, 10.244.2.0/23 and forty pods in 10.244.1.0/24:
//
//	byte 0        byte 2 (skip: 10.244)        byte 3
//	hops[10] ─▶ /8
//	kids[10] ──▶  hops[1] ─▶ .1.0/24
//	              hops[2] ─▶ .2.0/23
//	              hops[3] ─▶ .2.0/23
//	              kids[1] ──────────────────▶  hops[5] ─▶ .1.5/32 …
//
// On the way down the last hop seen is the answer: there is no way back up, and
// a change touches one node, never those below it.
type fib[H any] struct {
	v4, v6     *node[H]
	any4, any6 *H // the routes of length 0, which end before the first byte
}

// key is an address as two words, its first byte on top. IPv4 fills the upper
// half of hi.
type key struct{ hi, lo uint64 }

func keyOf(a netip.Addr) key {
	if a.Is4() {
		b := a.As4()
		return key{hi: uint64(binary.BigEndian.Uint32(b[:])) << 32}
	}
	b := a.As16()
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// maskOf covers the first n bits.
func maskOf(n int) key {
	if n <= 64 {
		return key{hi: ^(^uint64(0) >> n)}
	}
	return key{^uint64(0), ^(^uint64(0) >> (n - 64))}
}

func (k key) and(m key) key { return key{k.hi & m.hi, k.lo & m.lo} }

// outside reports whether a differs from k in the bits of m.
func (k key) outside(a, m key) bool { return (a.hi^k.hi)&m.hi|(a.lo^k.lo)&m.lo != 0 }

// at returns byte i.
func (k key) at(i int) byte {
	if i < 8 {
		return byte(k.hi >> (56 - 8*i))
	}
	return byte(k.lo >> (120 - 8*i))
}

// with returns k with byte i changed.
func (k key) with(i int, b byte) key {
	if i < 8 {
		k.hi = k.hi&^(0xff<<(56-8*i)) | uint64(b)<<(56-8*i)
	} else {
		k.lo = k.lo&^(0xff<<(120-8*i)) | uint64(b)<<(120-8*i)
	}
	return k
}

// addr is the way back from keyOf.
func (k key) addr(is4 bool) netip.Addr {
	if is4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(k.hi>>32))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.hi)
	binary.BigEndian.PutUint64(b[8:], k.lo)
	return netip.AddrFrom16(b)
}

// node is laid out for the reader: what it needs first is in one cache line,
// and the line of its hop can be fetched at the same time.
type node[H any] struct {
	key   key          // the bytes before this one, zero behind
	mask  key          // those of them that no parent has looked at
	kids  *[256]kid[H] // nil: nothing goes further
	low   bool         // the byte is in key.lo
	shift uint8        // where in that word
	depth uint8        // which byte of the address this is
	used  uint16       // kids in use
	count int32        // routes in hops and below
	owner uint64       // the transaction that may change this node in place
	hops  [256]*H
}

// kid is what goes further from one value of a node's byte: a node, or a list
// of few routes, or (both nil) nothing.
type kid[H any] struct {
	node *node[H]
	few  *few[H]
}

// few is a list of routes, longest first. Elements are immutable and shared.
type few[H any] struct {
	key, mask key
	hop       *H
	next      *few[H]
	bits      int
}

// route returns the longest match for a, or nil.
func (f *fib[H]) route(a netip.Addr) *H {
	switch {
	case a.Is4():
		b := a.As4()
		return f.v4.lookup(key{hi: uint64(binary.BigEndian.Uint32(b[:])) << 32}, f.any4)
	case a.IsValid():
		b := a.As16()
		return f.v6.lookup(key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}, f.any6)
	}
	return nil
}

// lookup returns the longest match for k in n and below, else best.
func (n *node[H]) lookup(k key, best *H) *H {
	for n != nil && !n.key.outside(k, n.mask) {
		word := k.hi
		if n.low {
			word = k.lo
		}
		b := byte(word >> (n.shift & 63))
		if h := n.hops[b]; h != nil {
			best = h
		}
		if n.kids == nil {
			break
		}
		kid := &n.kids[b]
		for r := kid.few; r != nil; r = r.next {
			if !r.key.outside(k, r.mask) {
				return r.hop
			}
		}
		n = kid.node
	}
	return best
}
