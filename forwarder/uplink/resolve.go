package uplink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

// Link is where superframes to a peer leave, and what their Ethernet header says.
type Link struct {
	Device          string
	Index           int
	MTU             int // bytes: of the device (hostnet.LinkMTU), or of the route if that is less
	Source, NextHop [6]byte
}

// snapshot is what all peers' ways depend on, read once for all of them.
type snapshot struct {
	markRule bool
	policies []netlink.XfrmPolicy
	links    map[int]netlink.Link
	mtus     map[int]int // of links
}

func takeSnapshot(v6 bool) (*snapshot, error) {
	family := netlink.FAMILY_V4
	if v6 {
		family = netlink.FAMILY_V6
	}
	s := &snapshot{links: map[int]netlink.Link{}, mtus: map[int]int{}}
	rules, err := dump.All(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if err != nil {
		return nil, fmt.Errorf("cannot read the routing rules: %w", err)
	}
	for _, r := range rules {
		s.markRule = s.markRule || r.Mark != 0
	}
	if s.policies, err = dump.All(func() ([]netlink.XfrmPolicy, error) { return netlink.XfrmPolicyList(family) }); err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("cannot read the xfrm policies: %w", err)
	}
	return s, nil
}

// way is what the routing says of a peer: the device and the next hop on it, or
// why superframes cannot go there.
type way struct {
	link *Link // without NextHop
	hop  netip.Addr
	why  string
}

// route asks the kernel's routing for the way to a peer.
func (s *snapshot) route(local, peer netip.Addr) way {
	if s.markRule {
		return way{why: "a routing rule looks at marks, which a redirected frame does not have"}
	}
	for _, p := range s.policies {
		if p.Dir == netlink.XFRM_DIR_OUT && covers(p.Src, local) && covers(p.Dst, peer) {
			return way{why: "an xfrm policy protects this path, and a redirected frame would leave in clear"}
		}
	}
	routes, err := netlink.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{SrcAddr: local.AsSlice()})
	if err != nil || len(routes) == 0 {
		return way{why: fmt.Sprintf("no route to %s", peer)}
	}
	r := routes[0]
	switch {
	case r.Type != unix.RTN_UNICAST && r.Type != 0 || r.LinkIndex == 0:
		return way{why: "the route is not to another machine"}
	case r.Encap != nil || r.MPLSDst != nil:
		return way{why: "the route encapsulates by itself"}
	case r.Via != nil:
		return way{why: "the next hop is of another address family"}
	}
	link, err := s.link(r.LinkIndex)
	if err != nil {
		return way{why: "the uplink has gone"}
	}
	a := link.Attrs()
	switch {
	case a.EncapType != "ether" || len(a.HardwareAddr) != 6:
		return way{why: fmt.Sprintf("the uplink %s is not an Ethernet device", a.Name)}
	case a.Flags&net.FlagUp == 0:
		return way{why: fmt.Sprintf("the uplink %s is down", a.Name)}
	}
	hop := peer
	if len(r.Gw) != 0 {
		hop, _ = netip.AddrFromSlice(r.Gw)
		hop = hop.Unmap()
	}
	mtu, err := s.mtu(local, peer, &r, link)
	if err != nil {
		return way{why: fmt.Sprintf("the MTU of the route to %s cannot be read: %v", peer, err)}
	}
	return way{link: &Link{Device: a.Name, Index: a.Index, MTU: mtu, Source: [6]byte(a.HardwareAddr)}, hop: hop}
}

// mtu is the MTU of a way: of its device, or of its route if somebody has given that a smaller one. The kernel's answer r may have one that
// was learned by an ICMP error instead, of which the forwarder judges by itself: the route as it was written says.
func (s *snapshot) mtu(local, peer netip.Addr, r *netlink.Route, link netlink.Link) (int, error) {
	index := link.Attrs().Index
	mtu, ok := s.mtus[index]
	if !ok {
		mtu = hostnet.LinkMTU(link, peer.Is6())
		s.mtus[index] = mtu
	}
	if r.MTU == 0 {
		return mtu, nil
	}
	written, err := netlink.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{SrcAddr: local.AsSlice(), FIBMatch: true})
	if err == nil && len(written) > 0 && written[0].MTU > 0 {
		mtu = min(mtu, written[0].MTU)
	}
	return mtu, err
}

func (s *snapshot) link(index int) (netlink.Link, error) {
	if l := s.links[index]; l != nil {
		return l, nil
	}
	l, err := netlink.LinkByIndex(index)
	if err == nil {
		s.links[index] = l
	}
	return l, err
}

// covers reports whether a selector's prefix, nil for any, has a in it.
func covers(n *net.IPNet, a netip.Addr) bool { return n == nil || n.Contains(a.AsSlice()) }

// neighbours is the usable entries of the neighbour table, by device and address.
type neighbours map[neighbourKey]netlink.Neigh

type neighbourKey struct {
	index int
	addr  netip.Addr
}

func readNeighbours(v6 bool) (neighbours, error) {
	family := netlink.FAMILY_V4
	if v6 {
		family = netlink.FAMILY_V6
	}
	list, err := dump.All(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
	if err != nil {
		return nil, fmt.Errorf("cannot read the neighbour table: %w", err)
	}
	const usable = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT | netlink.NUD_NOARP
	ns := make(neighbours, len(list))
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.State&usable != 0 && len(n.HardwareAddr) == 6 {
			ns[neighbourKey{n.LinkIndex, a.Unmap()}] = n
		}
	}
	return ns, nil
}

// resolve completes a way by its neighbour: the Link, or why there is none.
// A neighbour that is not there is resolved by the first packet that the sockets
// send to it; netlink then tells.
func (ns neighbours) resolve(w way) (*Link, string) {
	if w.link == nil {
		return nil, w.why
	}
	n, ok := ns[neighbourKey{w.link.Index, w.hop}]
	if !ok {
		return nil, fmt.Sprintf("the next hop %s on %s is not resolved yet", w.hop, w.link.Device)
	}
	l := *w.link
	l.NextHop = [6]byte(n.HardwareAddr)
	return &l, ""
}

// stale reports that the kernel would verify the neighbour if it were used.
func (ns neighbours) stale(w way) bool {
	if w.link == nil {
		return false
	}
	return ns[neighbourKey{w.link.Index, w.hop}].State&netlink.NUD_STALE != 0
}

// use tells the kernel that the neighbour is used, as sending would: it verifies
// it (NTF_USE).
func use(index int, hop netip.Addr) error {
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: hop.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE})
}
