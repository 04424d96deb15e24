package table

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// MaxVNI is the highest VNI: 24 bits on the wire (RFC 7348 section 5).
const MaxVNI = 1<<24 - 1

// A Txn is a next View in the making. Its reads see its own writes; readers of
// the table see none of them until Update has returned. It belongs to one
// goroutine.
type Txn[H any] struct {
	base     *View[H]
	networks map[uint32]*NetworkTxn[H] // those asked for
	peers    index[H]
	changed  bool
	err      error // the first thing that the table cannot hold
	ended    bool
}

func begin[H any](v *View[H]) *Txn[H] {
	return &Txn[H]{base: v, networks: make(map[uint32]*NetworkTxn[H]), peers: v.peers}
}

func (x *Txn[H]) end() { x.ended = true }

// live catches a transaction that was kept: what it would change is published.
func (x *Txn[H]) live() {
	if x.ended {
		panic("table: a transaction was used after its Update had ended")
	}
}

// owner marks FIB nodes made by this transaction. A transaction that failed may
// have used the number before, but what it made is out of reach.
func (x *Txn[H]) owner() uint64 { return x.base.generation + 1 }

// refuse reports whether h or err keeps a write from being done, and notes why.
func (x *Txn[H]) refuse(what string, h *H, err error) bool {
	x.live()
	if err == nil && h == nil {
		err = errors.New("it has no next hop: use the matching Delete to take it away")
	}
	if err != nil && x.err == nil {
		x.err = fmt.Errorf("table: cannot set %s: %w", what, err)
	}
	return err != nil
}

// Network returns the pending state of a network, never nil. The network exists
// for readers as soon as it has a route or a station, and as long.
func (x *Txn[H]) Network(vni uint32) *NetworkTxn[H] {
	x.live()
	n := x.networks[vni]
	if n == nil {
		n = &NetworkTxn[H]{txn: x, vni: vni}
		if b := x.base.Network(vni); b != nil {
			n.routes, n.stations = b.routes, b.stations
		}
		x.networks[vni] = n
	}
	return n
}

// Networks iterates over the networks that have a route or a station now, by
// ascending VNI.
func (x *Txn[H]) Networks() iter.Seq[*NetworkTxn[H]] {
	x.live()
	for n := range x.base.Networks() {
		x.Network(n.vni)
	}
	all := slices.Sorted(maps.Keys(x.networks))
	return func(yield func(*NetworkTxn[H]) bool) {
		for _, vni := range all {
			if n := x.networks[vni]; !n.isEmpty() && !yield(n) {
				return
			}
		}
	}
}

// SetPeer keeps h for a peer's underlay address.
func (x *Txn[H]) SetPeer(a netip.Addr, h *H) {
	var err error
	if !a.IsValid() {
		err = errors.New("its address is missing")
	}
	if x.refuse("peer "+a.String(), h, err) {
		return
	}
	x.peers.set(x.owner(), hostPrefix(a), h)
	x.changed = true
}

// DeletePeer takes a peer away, if it is there.
func (x *Txn[H]) DeletePeer(a netip.Addr) {
	x.live()
	if x.peers.delete(x.owner(), hostPrefix(a)) {
		x.changed = true
	}
}

// Peer is View.Peer on the pending state.
func (x *Txn[H]) Peer(a netip.Addr) *H {
	return x.peers.match(a.Unmap())
}

// Peers iterates over the peers as they are now, by ascending address.
func (x *Txn[H]) Peers() iter.Seq2[netip.Addr, *H] { return peersOf(x.peers.rib.frozen()) }

// commit makes the next View, or nil if nothing has changed.
func (x *Txn[H]) commit() *View[H] {
	v := &View[H]{generation: x.base.generation + 1, networks: x.base.networks, peers: x.peers.publish()}
	for _, n := range x.networks {
		switch {
		case !n.changed:
			continue
		case n.isEmpty():
			v.networks.delete(vniPrefix(n.vni))
		default:
			v.networks.set(vniPrefix(n.vni), n.publish())
		}
		x.changed = true
	}
	if !x.changed {
		return nil
	}
	v.networks = v.networks.publish()
	for _, v.home = range v.networks.sorted() {
		break
	}
	return v
}

func hostPrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen())
}
