package uplink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is where superframes to a peer leave, and what their Ethernet header says.
type Link struct {
	Device          string
	Index           int
	Source, NextHop [6]byte
}

// snapshot is what all peers' ways depend on, read once for all of them.
type snapshot struct {
	markRule bool
	policies []netlink.XfrmPolicy
	links    map[int]netlink.Link
}

func takeSnapshot(v6 bool) (*snapshot, error) {
	family := netlink.FAMILY_V4
	if v6 {
		family = netlink.FAMILY_V6
	}
	s := &snapshot{links: map[int]netlink.Link{}}
	rules, err := again(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if err != nil {
		return nil, fmt.Errorf("uplink: cannot read the routing rules: %w", err)
	}
	for _, r := range rules {
		s.markRule = s.markRule || r.Mark != 0
	}
	if s.policies, err = again(func() ([]netlink.XfrmPolicy, error) { return netlink.XfrmPolicyList(family) }); err != nil && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("uplink: cannot read the xfrm policies: %w", err)
	}
	return s, nil
}

// again repeats a dump that a change has interrupted.
func again[T any](dump func() ([]T, error)) (list []T, err error) {
	for range 5 {
		if list, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return list, err
}

// resolve finds the Link to a peer, or says why there is none. probe tells that
// the neighbour should be asked for (again).
func (s *snapshot) resolve(local, peer netip.Addr) (l *Link, why string, probe func() error) {
	if s.markRule {
		return nil, "a routing rule looks at marks, which a redirected frame does not have", nil
	}
	for _, p := range s.policies {
		if p.Dir == netlink.XFRM_DIR_OUT && covers(p.Src, local) && covers(p.Dst, peer) {
			return nil, "an xfrm policy protects this path, and a redirected frame would leave in clear", nil
		}
	}
	routes, err := netlink.RouteGetWithOptions(peer.AsSlice(), &netlink.RouteGetOptions{SrcAddr: local.AsSlice()})
	if err != nil || len(routes) == 0 {
		return nil, fmt.Sprintf("no route to %s", peer), nil
	}
	r := routes[0]
	if r.Type != unix.RTN_UNICAST && r.Type != 0 || r.LinkIndex == 0 {
		return nil, "the route is not to another machine", nil
	}
	if r.Encap != nil || r.MPLSDst != nil {
		return nil, "the route encapsulates by itself", nil
	}
	link, err := s.link(r.LinkIndex)
	if err != nil {
		return nil, "the uplink has gone", nil
	}
	a := link.Attrs()
	if a.EncapType != "ether" || len(a.HardwareAddr) != 6 {
		return nil, fmt.Sprintf("the uplink %s is not an Ethernet device", a.Name), nil
	}
	if a.Flags&net.FlagUp == 0 {
		return nil, fmt.Sprintf("the uplink %s is down", a.Name), nil
	}
	hop := peer
	if len(r.Gw) != 0 {
		hop, _ = netip.AddrFromSlice(r.Gw)
		hop = hop.Unmap()
	}
	if r.Via != nil {
		return nil, "the next hop is of another address family", nil
	}
	mac, state := neighbour(a.Index, hop)
	ask := func() error { return use(a.Index, hop) }
	if mac == nil {
		return nil, fmt.Sprintf("the next hop %s on %s is not resolved yet", hop, a.Name), ask
	}
	if state&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
		ask = nil
	}
	return &Link{Device: a.Name, Index: a.Index, Source: [6]byte(a.HardwareAddr), NextHop: [6]byte(mac)}, "", ask
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

// neighbour is the usable MAC of hop, nil if there is none now.
func neighbour(index int, hop netip.Addr) (net.HardwareAddr, int) {
	family := netlink.FAMILY_V4
	if hop.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := again(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, family) })
	if err != nil {
		return nil, 0
	}
	const usable = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT | netlink.NUD_NOARP
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap() == hop && n.State&usable != 0 && len(n.HardwareAddr) == 6 {
			return n.HardwareAddr, n.State
		}
	}
	return nil, 0
}

// use tells the kernel that the neighbour is used, as sending would: it resolves
// it if need be, and verifies it when it has become stale (NTF_USE).
func use(index int, hop netip.Addr) error {
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: hop.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE})
}
