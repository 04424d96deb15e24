package table

import (
	"encoding/binary"
	"iter"
	"net/netip"
)

// A View is one state of the table. It never changes and stays valid for as
// long as it is held. Its next hops are the caller's: lent to every reader, so
// nobody may write to one that has been given to the table.
type View[H any] struct {
	generation uint64
	home       *Network[H] // that of the lowest VNI: on most nodes the only one
	networks   tree[*Network[H]]
	peers      index[H]
}

// Generation counts the Updates that led to this View; 0 is the empty table.
// Two Views of one Table with the same generation are the same View.
func (v *View[H]) Generation() uint64 { return v.generation }

// Network returns the network of that VNI, or nil if it has neither route nor
// station. A nil Network answers every question with nothing.
func (v *View[H]) Network(vni uint32) *Network[H] {
	if n := v.home; n == nil || n.vni == vni {
		return n
	}
	n, _ := v.networks.match(vniAddr(vni))
	return n
}

// Peer returns the next hop kept for a peer's underlay address. An address that
// a dual-stack socket gave as IPv4-mapped is taken for IPv4; a zone is ignored.
func (v *View[H]) Peer(a netip.Addr) *H {
	return v.peers.match(a.Unmap())
}

// Networks iterates over the networks by ascending VNI.
func (v *View[H]) Networks() iter.Seq[*Network[H]] {
	return func(yield func(*Network[H]) bool) {
		for _, n := range v.networks.sorted() {
			if !yield(n) {
				return
			}
		}
	}
}

// Peers iterates over the peers by ascending address.
func (v *View[H]) Peers() iter.Seq2[netip.Addr, *H] { return peersOf(v.peers.rib.sorted()) }

// PeerCount returns the number of peers.
func (v *View[H]) PeerCount() int { return v.peers.size() }

// A Network is what one VNI's View knows: routes and stations. Like its View it
// never changes. A nil Network is an empty one.
type Network[H any] struct {
	vni      uint32
	routes   index[H]
	stations index[H]
}

// VNI returns the network's number.
func (n *Network[H]) VNI() uint32 {
	if n == nil {
		return 0
	}
	return n.vni
}

// Route returns the next hop of the longest prefix that covers a, or nil. It is
// the question asked for every packet.
//
// An IPv4-mapped IPv6 address is an IPv6 address here: a pod that sends to one
// does not reach the IPv4 pod.
func (n *Network[H]) Route(a netip.Addr) *H {
	if n == nil {
		return nil
	}
	return n.routes.match(a)
}

// Station returns the next hop behind which that MAC lives (the FDB), or nil.
func (n *Network[H]) Station(m MAC) *H {
	if n == nil {
		return nil
	}
	return n.stations.match(macAddr(m))
}

// Routes iterates over all routes: IPv4 first, by address, then by length.
func (n *Network[H]) Routes() iter.Seq2[netip.Prefix, *H] {
	if n == nil {
		return func(func(netip.Prefix, *H) bool) {}
	}
	return routesOf(n.routes.rib.sorted())
}

// Stations iterates over all stations by ascending MAC.
func (n *Network[H]) Stations() iter.Seq2[MAC, *H] {
	if n == nil {
		return func(func(MAC, *H) bool) {}
	}
	return stationsOf(n.stations.rib.sorted())
}

// RouteCount returns the number of routes.
func (n *Network[H]) RouteCount() int {
	if n == nil {
		return 0
	}
	return n.routes.size()
}

// StationCount returns the number of stations.
func (n *Network[H]) StationCount() int {
	if n == nil {
		return 0
	}
	return n.stations.size()
}

// macAddr and macPrefix lay a MAC into the first 48 bits of an IPv6 address.
func macAddr(m MAC) netip.Addr {
	var b [16]byte
	copy(b[:], m[:])
	return netip.AddrFrom16(b)
}

func macPrefix(m MAC) netip.Prefix { return netip.PrefixFrom(macAddr(m), 48) }

// vniAddr and vniPrefix take a VNI for an IPv4 address.
func vniAddr(vni uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], vni)
	return netip.AddrFrom4(b)
}

func vniPrefix(vni uint32) netip.Prefix { return netip.PrefixFrom(vniAddr(vni), 32) }

func routesOf[H any](all iter.Seq2[netip.Prefix, hop[H]]) iter.Seq2[netip.Prefix, *H] {
	return func(yield func(netip.Prefix, *H) bool) {
		for p, r := range all {
			if !yield(p, r.h) {
				return
			}
		}
	}
}

func stationsOf[H any](all iter.Seq2[netip.Prefix, hop[H]]) iter.Seq2[MAC, *H] {
	return func(yield func(MAC, *H) bool) {
		for p, s := range all {
			b := p.Addr().As16()
			if !yield(MAC(b[:6]), s.h) {
				return
			}
		}
	}
}

func peersOf[H any](all iter.Seq2[netip.Prefix, hop[H]]) iter.Seq2[netip.Addr, *H] {
	return func(yield func(netip.Addr, *H) bool) {
		for p, s := range all {
			if !yield(p.Addr(), s.h) {
				return
			}
		}
	}
}
