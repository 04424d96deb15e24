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
//
// AsSlice does not allocate here, as the slice does not escape. As16 would take
// 12 ns instead of 3: the compiler copies its result by one load of 16 bytes
// right after two stores of 8, for which the processor waits.
func (f *fib[H]) route(a netip.Addr) *H {
	if a.Is4() {
		b := a.As4()
		return f.v4.lookup4(uint64(binary.BigEndian.Uint32(b[:]))<<32, f.any4)
	}
	b := a.AsSlice()
	if b == nil {
		return nil
	}
	return f.v6.lookup6(binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:16]), f.any6)
}

// lookup4 returns the longest match in n and below, else best.
func (n *node[H]) lookup4(hi uint64, best *H) *H {
	for n != nil && (hi^n.key.hi)&n.mask.hi == 0 {
		b := byte(hi >> (n.shift & 63))
		if h := n.hops[b]; h != nil {
			best = h
		}
		if n.kids == nil {
			break
		}
		kid := &n.kids[b]
		for r := kid.few; r != nil; r = r.next {
			if (hi^r.key.hi)&r.mask.hi == 0 {
				return r.hop
			}
		}
		n = kid.node
	}
	return best
}

// lookup6 is lookup4 for both words.
func (n *node[H]) lookup6(hi, lo uint64, best *H) *H {
	for n != nil && (hi^n.key.hi)&n.mask.hi|(lo^n.key.lo)&n.mask.lo == 0 {
		word := hi
		if n.low {
			word = lo
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
			if (hi^r.key.hi)&r.mask.hi|(lo^r.key.lo)&r.mask.lo == 0 {
				return r.hop
			}
		}
		n = kid.node
	}
	return best
}
