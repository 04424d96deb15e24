package forwarder

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table"
	"github.com/penstock-net/penstock/table/feed"
)

// hop is a next hop: where packets for a prefix go. It is immutable once it
// stands in a published View.
type hop struct {
	kind hopKind
	peer *peer // hopPeer
	port *port // hopPort, hopRouted
}

type hopKind uint8

const (
	hopPeer    hopKind = iota
	hopPort            // a pod of this node
	hopSelf            // the host's own address among pods (penstock0)
	hopHost            // outside the cluster: the host's stack routes it
	hopNoRoute         // cluster address that nobody has
	hopNoPod           // own pod CIDR, but no such pod
	hopAwaited         // a pod of this node whose port is yet to come back
	hopRouted          // a pod of this node that the host's stack reaches by a route of its own
)

// peer is all that a worker needs to send to another node and to judge what
// comes from it. Immutable; a changed peer is a new one with the same state.
type peer struct {
	spec     feed.Peer
	to       ring.Sockaddr
	header   encap.Header // in front of the inner IP packet inside the datagram
	kind     encap.Kind
	vni      uint32
	own      encap.MAC // vxlan: our VTEP MAC in its VNI
	endpoint int       // index of lanes
	mtu      int       // largest inner packet by the underlay's MTU
	state    *peerState
	hop      *hop // the one hop that leads to it
}

// peerState is what outlives a reload: counters and what the path has taught us.
type peerState struct {
	index      int                        // place in every worker's transmits
	pathMTU    atomic.Int64               // learned (outer) << 40 | Unix seconds when it ends; 0: none
	routeMTU   atomic.Int64               // of the device by which the route leaves, bytes; 0: not known
	path       atomic.Pointer[UplinkPath] // how superframes reach it whole; nil: not
	direct     atomic.Pointer[UplinkPath] // how frames of a packet socket reach it; nil: not
	wantsWhole atomic.Bool                // something was to leave to it past the host's routing; the watcher of uplinks takes it back
	noSegment  atomic.Bool                // the route refused UDP_SEGMENT (EIO)

	nobodyListens atomic.Int64 // Unix seconds, when its node last said so of what we send; anyone may forge it, so only doctor reads it
	accounts      accounts     // by worker
	said          said         // that sending failed
	native        nativeState
}

// learnedLifetime is how long a path MTU from an error is believed.
const learnedLifetime = 10 * time.Minute

const (
	// minLearnedMTU: no ICMP error takes the outer path MTU below IPv6's minimum.
	minLearnedMTU = 1280
	// minDeviceMTU: nor does a device below what every host takes (RFC 791 section 3.1).
	minDeviceMTU = 576
)

// learn lowers the path MTU after an error that was about a packet of ours.
func (s *peerState) learn(outer int, now time.Time) bool {
	if old := s.learned(now.Unix()); old != 0 && old <= outer {
		return false
	}
	s.pathMTU.Store(int64(outer)<<40 | now.Add(learnedLifetime).Unix())
	return true
}

// learned is the outer path MTU that still holds, or 0.
func (s *peerState) learned(unix int64) int {
	v := s.pathMTU.Load()
	if v == 0 || unix >= v&(1<<40-1) {
		return 0
	}
	return int(v >> 40)
}

// innerMTU is the largest inner packet that fits to the peer now.
func (p *peer) innerMTU(unix int64) int {
	outer := p.state.outerMTU(unix)
	if outer == 0 {
		return p.mtu
	}
	return min(p.mtu, encap.PodMTU(outer, p.kind, p.spec.Address.Is6()))
}

// outerMTU is what is known of the way to the peer, which may be more than what the underlay takes; 0: nothing.
func (s *peerState) outerMTU(unix int64) int {
	route, learned := int(s.routeMTU.Load()), s.learned(unix)
	if route == 0 || learned != 0 && learned < route {
		return learned
	}
	return route
}

// Resolve fills what a feed's peer leaves to our own settings; what it returns with an error is filled as far as it goes.
func (s *Settings) Resolve(spec feed.Peer) (feed.Peer, encap.Kind, error) {
	kind := s.Encap
	if spec.Encap != "" {
		k, err := encap.ParseKind(spec.Encap)
		if err != nil {
			return spec, kind, fmt.Errorf("peer %s: %w", spec.Name, err)
		}
		kind = k
	}
	spec.Address = spec.Address.Unmap()
	spec.Encap = kind.String()
	switch {
	case kind == encap.KindIPIP:
		spec.Port = 0
	case spec.Port == 0 && kind == s.Encap:
		spec.Port = s.Port
	case spec.Port == 0:
		spec.Port = kind.DefaultPort()
	}
	if spec.VNI == 0 {
		spec.VNI = s.VNI
	}
	if encap.MAC(spec.MAC).IsZero() {
		spec.MAC = encap.VTEPMAC(spec.Address, spec.VNI)
	}
	switch {
	case !spec.Address.IsValid() || spec.Address.Is6() != s.Address.Is6():
		return spec, kind, fmt.Errorf("peer %s: its address %s is not of the family of node.address %s", spec.Name, spec.Address, s.Address)
	case spec.Address == s.Address:
		return spec, kind, fmt.Errorf("peer %s: its address %s is this node's own", spec.Name, spec.Address)
	case kind == encap.KindIPIP && s.Address.Is6():
		return spec, kind, fmt.Errorf("peer %s: ipip needs an IPv4 underlay", spec.Name)
	}
	return spec, kind, nil
}

// SetPeers replaces all peers: all or nothing. Packets keep flowing; those in
// hand go by the old peers, all later ones by the new.
func (f *Forwarder) SetPeers(peers []feed.Peer) error {
	f.control.Lock()
	defer f.control.Unlock()
	if f.stopped {
		return fmt.Errorf("the peers are as they were: the daemon is stopping")
	}
	return f.publish(peers)
}

// publish builds the whole table from peers, settings and ports, opens the
// endpoints that it needs, swaps the View, and closes what is no longer used.
// f.control is held.
func (f *Forwarder) publish(specs []feed.Peer) error {
	need := map[endpointKey]bool{f.ownEndpoint(): true}
	byAddress := map[netip.Addr]string{}
	next := make([]*peer, 0, len(specs))
	for _, spec := range specs {
		spec, kind, err := f.settings.Resolve(spec)
		if err != nil {
			return err
		}
		if other, twice := byAddress[spec.Address]; twice {
			return fmt.Errorf("peers %s and %s have the same address %s", other, spec.Name, spec.Address)
		}
		byAddress[spec.Address] = spec.Name
		need[endpointKey{kind, spec.Port}] = true
		next = append(next, f.newPeer(spec, kind))
	}

	opened, err := f.openEndpoints(need)
	if err != nil {
		return err
	}
	f.tunnelPorts.store(f.endpoints)
	fresh := f.adoptStates(next)
	f.onAll(func(w *worker) { w.growTransmits(f.peerSlots.size()) })
	for _, p := range next {
		if p.endpoint >= 0 {
			continue
		}
		p.endpoint = f.endpoints[endpointKey{p.kind, p.spec.Port}].index
	}
	if err := f.fillTable(next); err != nil {
		for _, p := range fresh {
			f.peerSlots.give(p.state.index)
		}
		f.closeEndpoints(opened)
		f.tunnelPorts.store(f.endpoints)
		return err
	}

	old := f.peers
	f.peers = make(map[netip.Addr]*peer, len(next))
	for _, p := range next {
		f.peers[p.spec.Address] = p
	}
	f.savePeers()
	f.feedPeers = slices.Clone(specs)
	// Every worker passes a batch border here: no one holds the old View any more.
	f.onAll(func(*worker) {})
	for a, p := range old {
		if f.peers[a] == nil {
			f.peerSlots.give(p.state.index)
		}
	}
	var unused []endpointKey
	for k := range f.endpoints {
		if !need[k] {
			unused = append(unused, k)
		}
	}
	f.closeEndpoints(unused)
	f.tunnelPorts.store(f.endpoints)
	return nil
}

// newPeer makes the peer of a resolved spec, or finds the one that we have
// already, so that what did not change is not written to the table again.
func (f *Forwarder) newPeer(spec feed.Peer, kind encap.Kind) *peer {
	s := &f.settings
	mtu := encap.PodMTU(s.UnderlayMTU, kind, s.Address.Is6())
	if old := f.peers[spec.Address]; old != nil && old.spec.Equal(spec) && old.kind == kind && old.mtu == mtu {
		return old
	}
	p := &peer{spec: spec, kind: kind, vni: spec.VNI, mtu: mtu, endpoint: -1, to: ring.NewSockaddr(netip.AddrPortFrom(spec.Address, spec.Port))}
	if kind == encap.KindVXLAN {
		p.own = encap.VTEPMAC(s.Address, spec.VNI)
		p.header = encap.NewVXLANHeader(spec.VNI, spec.MAC, p.own)
	}
	p.hop = &hop{kind: hopPeer, peer: p}
	return p
}

// adoptStates gives each peer the state of its predecessor at the same
// address, or a fresh one; it returns the peers with a fresh one.
func (f *Forwarder) adoptStates(next []*peer) (fresh []*peer) {
	for _, p := range next {
		if p.state != nil {
			continue // unchanged
		}
		if old := f.peers[p.spec.Address]; old != nil {
			p.state = old.state
			continue
		}
		p.state = &peerState{index: f.peerSlots.take(), accounts: f.newAccounts()}
		fresh = append(fresh, p)
	}
	return fresh
}

// fillTable publishes a View made of these peers, the settings and the ports.
// It changes only what differs, so that a small change of a big table is cheap.
func (f *Forwarder) fillTable(peers []*peer) error {
	routes, err := f.wantedRoutes(peers)
	if err != nil {
		return err
	}
	return f.table.Update(func(x *table.Txn[hop]) error {
		n := x.Network(f.settings.VNI)
		syncRoutes(n, routes)
		syncPeers(x, n, peers)
		return nil
	})
}

// wantedRoutes is where every prefix is to lead, or why that cannot be.
func (f *Forwarder) wantedRoutes(peers []*peer) (map[netip.Prefix]*hop, error) {
	s := &f.settings
	routes := map[netip.Prefix]*hop{
		netip.PrefixFrom(netip.IPv4Unspecified(), 0): f.hops.host,
		netip.PrefixFrom(netip.IPv6Unspecified(), 0): f.hops.host,
	}
	add := func(p netip.Prefix, h *hop, what string) error {
		p = p.Masked()
		if old := routes[p]; old != nil && old != h && old.kind != hopHost && old.kind != hopNoRoute {
			return fmt.Errorf("%s: %s is taken already", what, p)
		}
		routes[p] = h
		return nil
	}
	for _, c := range s.Cluster {
		if err := add(c, f.hops.noRoute, "network.cidrs"); err != nil {
			return nil, err
		}
	}
	for _, p := range peers {
		for _, c := range p.spec.PodCIDRs {
			for _, own := range s.PodCIDRs {
				if own.Overlaps(c) {
					return nil, fmt.Errorf("peer %s: %s overlaps this node's own pods %s", p.spec.Name, c, own)
				}
			}
			if !slices.ContainsFunc(s.Cluster, func(n netip.Prefix) bool { return n.Bits() <= c.Bits() && n.Contains(c.Addr()) }) {
				return nil, fmt.Errorf("peer %s: %s is not in the pods' network %s", p.spec.Name, c, s.Cluster)
			}
			if err := add(c, p.hop, "peer "+p.spec.Name); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range s.PodCIDRs {
		if err := add(c, f.hops.noPod, "node.podCIDRs"); err != nil {
			return nil, err
		}
	}
	for _, a := range s.hostAddresses() {
		routes[netip.PrefixFrom(a, a.BitLen())] = f.hops.self
	}
	for a := range f.awaited {
		if f.ownAddress(a) {
			routes[netip.PrefixFrom(a, a.BitLen())] = f.hops.awaited
		}
	}
	for _, p := range f.ports {
		for _, a := range p.addresses {
			routes[netip.PrefixFrom(a, a.BitLen())] = p.hop
		}
	}
	return routes, nil
}

// syncRoutes makes n's routes the wanted ones, of which it leaves those that were not there.
func syncRoutes(n *table.NetworkTxn[hop], wanted map[netip.Prefix]*hop) {
	for p, old := range n.Routes() {
		if wanted[p] == nil {
			n.DeleteRoute(p)
		} else if sameHop(old, wanted[p]) {
			delete(wanted, p)
		}
	}
	for p, h := range wanted {
		n.SetRoute(p, h)
	}
}

// syncPeers makes the table's peers and VTEPs these.
func syncPeers(x *table.Txn[hop], n *table.NetworkTxn[hop], peers []*peer) {
	wanted := map[netip.Addr]bool{}
	stations := map[table.MAC]bool{}
	for _, p := range peers {
		wanted[p.spec.Address] = true
		if x.Peer(p.spec.Address) != p.hop {
			x.SetPeer(p.spec.Address, p.hop)
		}
		if p.kind == encap.KindVXLAN {
			stations[p.spec.MAC] = true
			if n.Station(p.spec.MAC) != p.hop {
				n.SetStation(p.spec.MAC, p.hop)
			}
		}
	}
	for a := range x.Peers() {
		if !wanted[a] {
			x.DeletePeer(a)
		}
	}
	for m := range n.Stations() {
		if !stations[m] {
			n.DeleteStation(m)
		}
	}
}

// sameHop reports that replacing a by b would change nothing.
func sameHop(a, b *hop) bool {
	return a.kind == b.kind && a.port == b.port && a.peer == b.peer
}

// slots hands out small indices and takes them back.
type slots struct {
	free []int
	n    int
}

func (s *slots) take() int {
	if n := len(s.free); n > 0 {
		i := s.free[n-1]
		s.free = s.free[:n-1]
		return i
	}
	s.n++
	return s.n - 1
}

func (s *slots) give(i int) { s.free = append(s.free, i) }

// size is one more than the largest index ever taken.
func (s *slots) size() int { return s.n }
