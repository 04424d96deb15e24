package table

import (
	"iter"
	"net/netip"

	"github.com/gaissmai/bart"
)

// hop wraps the caller's pointer. bart copies values by their Clone method if
// they have one; a struct without methods keeps it from cloning next hops,
// whose identity is what the forwarder asks for.
type hop[H any] struct{ h *H }

// tree is a persistent map from prefixes to values: bart's copy-on-write, with
// a short cut for large transactions. The zero tree is empty.
type tree[V any] struct {
	t *bart.Table[V] // nil: empty; shared with Views unless owned

	// A transaction's own bookkeeping; both are zero in a View.
	owned bool // t was made by this transaction and may be changed in place
	ops   int  // changes made by copying a path
}

// cloneAfter is the number of path copies, as a fraction of the tree's size,
// after which copying the whole tree once is cheaper. A path copy costs about
// as much as copying 40 to 260 prefixes (BenchmarkUpdate).
const cloneAfter = 200

// prepare decides between path copies and one whole copy, and reports whether
// t may be changed in place.
func (x *tree[V]) prepare() bool {
	if x.owned {
		return true
	}
	if x.t == nil {
		x.t, x.owned = new(bart.Table[V]), true
		return true
	}
	if x.ops++; x.ops*cloneAfter > x.t.Size() {
		x.t, x.owned = x.t.Clone(), true
		return true
	}
	return false
}

func (x *tree[V]) set(p netip.Prefix, v V) {
	if x.prepare() {
		x.t.Insert(p, v)
	} else {
		x.t = x.t.InsertPersist(p, v)
	}
}

func (x *tree[V]) delete(p netip.Prefix) {
	if x.prepare() {
		x.t.Delete(p)
	} else {
		x.t = x.t.DeletePersist(p)
	}
}

// publish returns the tree as a View may keep it.
func (x *tree[V]) publish() tree[V] { return tree[V]{t: x.t} }

// exact returns the value of exactly this prefix.
func (x *tree[V]) exact(p netip.Prefix) (v V, ok bool) {
	if x.t == nil {
		return v, false
	}
	return x.t.Get(p)
}

// match returns the value of the longest prefix that covers a.
func (x *tree[V]) match(a netip.Addr) (v V, ok bool) {
	if x.t == nil {
		return v, false
	}
	return x.t.Lookup(a)
}

func (x *tree[V]) size() int {
	if x.t == nil {
		return 0
	}
	return x.t.Size()
}

// sorted iterates in the order of netip.Prefix: IPv4 first, by address, then by
// length.
func (x *tree[V]) sorted() iter.Seq2[netip.Prefix, V] {
	if x.t == nil {
		return func(func(netip.Prefix, V) bool) {}
	}
	return x.t.AllSorted()
}

// frozen is sorted for a transaction, which may change the tree while it is
// being ranged over: from now on changes go to a copy.
func (x *tree[V]) frozen() iter.Seq2[netip.Prefix, V] {
	x.owned = false
	return x.sorted()
}
