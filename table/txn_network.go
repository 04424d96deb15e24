package table

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
)

// A NetworkTxn is one network within a Txn: what holds for that holds for it.
type NetworkTxn[H any] struct {
	txn      *Txn[H]
	vni      uint32
	routes   index[H]
	stations index[H]
	changed  bool
}

// VNI returns the network's number.
func (n *NetworkTxn[H]) VNI() uint32 { return n.vni }

func (n *NetworkTxn[H]) touch() { n.txn.live(); n.changed = true }

func (n *NetworkTxn[H]) isEmpty() bool { return n.routes.size() == 0 && n.stations.size() == 0 }

func (n *NetworkTxn[H]) publish() *Network[H] {
	return &Network[H]{vni: n.vni, routes: n.routes.publish(), stations: n.stations.publish()}
}

func (n *NetworkTxn[H]) checkVNI() error {
	if n.vni > MaxVNI {
		return fmt.Errorf("VNI %d does not exist: a VNI has 24 bits", n.vni)
	}
	return nil
}

// SetRoute adds a route or replaces the one of the same prefix. Bits of p behind
// its length are ignored.
func (n *NetworkTxn[H]) SetRoute(p netip.Prefix, h *H) {
	err := n.checkVNI()
	switch {
	case err != nil:
	case !p.IsValid():
		err = errors.New("the prefix is missing or its length is wrong")
	case p.Addr().Is4In6():
		err = errors.New("it is an IPv4-mapped prefix: give it as IPv4")
	}
	if n.txn.refuse("route "+p.String(), h, err) {
		return
	}
	n.routes.set(n.txn.owner(), p.Masked(), h)
	n.touch()
}

// DeleteRoute takes away the route of exactly this prefix, if it is there.
func (n *NetworkTxn[H]) DeleteRoute(p netip.Prefix) {
	n.txn.live()
	if n.routes.delete(n.txn.owner(), p.Masked()) {
		n.touch()
	}
}

// SetStation says behind which next hop a MAC lives.
func (n *NetworkTxn[H]) SetStation(m MAC, h *H) {
	if n.txn.refuse(fmt.Sprintf("station %x", m), h, n.checkVNI()) {
		return
	}
	n.stations.set(n.txn.owner(), macPrefix(m), h)
	n.touch()
}

// DeleteStation forgets a MAC, if it is there.
func (n *NetworkTxn[H]) DeleteStation(m MAC) {
	n.txn.live()
	if n.stations.delete(n.txn.owner(), macPrefix(m)) {
		n.touch()
	}
}

// Route is Network.Route on the pending state.
func (n *NetworkTxn[H]) Route(a netip.Addr) *H { return n.routes.match(a) }

// Station is Network.Station on the pending state.
func (n *NetworkTxn[H]) Station(m MAC) *H {
	return n.stations.match(macAddr(m))
}

// Routes iterates over the routes as they are now, in the order of
// Network.Routes. Routes may be set and deleted meanwhile.
func (n *NetworkTxn[H]) Routes() iter.Seq2[netip.Prefix, *H] { return routesOf(n.routes.rib.frozen()) }

// Stations iterates over the stations as they are now, by ascending MAC.
// Stations may be set and deleted meanwhile.
func (n *NetworkTxn[H]) Stations() iter.Seq2[MAC, *H] { return stationsOf(n.stations.rib.frozen()) }

// RouteCount returns the number of routes.
func (n *NetworkTxn[H]) RouteCount() int { return n.routes.size() }

// StationCount returns the number of stations.
func (n *NetworkTxn[H]) StationCount() int { return n.stations.size() }
