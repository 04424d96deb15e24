// Package feed says what keeps the tables true: a source of peers.
//
//	static ─┐
//	etcd   ─┼─ Feed.Run ──[]Peer──▶ sink (the forwarder: peers → next hops → table.Update)
//	kube   ─┘
//
// A feed knows nodes and their prefixes, never packets. It hands over the whole
// list of peers each time; what changed is the table's business, and the
// forwarder takes over each list entirely or not at all.
package feed

import (
	"context"
	"net/netip"
	"slices"
)

// A Peer is another node and the pods behind it.
type Peer struct {
	Name     string
	Address  netip.Addr     // on the underlay
	PodCIDRs []netip.Prefix // of its pods; they overlap with no other peer's
	MAC      [6]byte        // of its VTEP; zero: derived from address and VNI (design section 5)
	Encap    string         // udp, vxlan or ipip; empty: as ours
	Port     uint16         // its UDP port; 0: as ours
	VNI      uint32         // 0: as ours
}

// Equal reports whether two peers are the same in everything.
func (p Peer) Equal(o Peer) bool {
	return p.Name == o.Name && p.Address == o.Address && p.MAC == o.MAC &&
		p.Encap == o.Encap && p.Port == o.Port && p.VNI == o.VNI &&
		slices.Equal(p.PodCIDRs, o.PodCIDRs)
}

// Clone returns a peer that shares no memory with p.
func (p Peer) Clone() Peer {
	p.PodCIDRs = slices.Clone(p.PodCIDRs)
	return p
}

// A Feed is a source of peers.
type Feed interface {
	// Run hands over the list of peers, at first and whenever it changes, until
	// ctx ends; then it returns nil. Calls of sink never overlap and none comes
	// after Run has returned. The list becomes the sink's own.
	//
	// An error of sink means that the list was refused and the one before still
	// holds. A feed that cannot go on returns an error that says why.
	Run(ctx context.Context, sink func([]Peer) error) error
}
