package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

// metric6 is the metric that the kernel gives IPv6 routes by itself (IP6_RT_PRIO_USER). Written out, so that what we
// list compares equal to what we asked for. IPv4 has 0.
const metric6 = 1024

// applyRoutes makes the routes of the cluster's prefixes to our device and removes ours that nobody wants any more,
// then the addresses that were their source.
func applyRoutes(c *Config, r *Report) error {
	link, err := ownLink(c.Device)
	if err != nil {
		return nil // applyDevice has said it
	}
	index := link.Attrs().Index
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := applyFamily(c, family, index, r); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		errs = append(errs, removeStaleAddresses(c, link, r))
	}
	return errors.Join(errs...)
}

func applyFamily(c *Config, family, index int, r *Report) error {
	all, err := mainRoutes(family)
	if err != nil {
		return err
	}
	wanted := make(map[netip.Prefix]netlink.Route)
	for _, p := range c.routed() {
		if p.Addr().Is4() != (family == netlink.FAMILY_V4) {
			continue
		}
		src, ok := c.source(p)
		if !ok {
			r.find(Finding{Severity: Warning, Subject: "route " + p.String(),
				Problem: fmt.Sprintf("this node has no pods of the family of %s, so the host has no address to reach them from and gets no route", p),
				Remedy:  "add a prefix of that family to node.podCIDRs, or take it out of network.cidrs"})
			continue
		}
		wanted[p] = ourRoute(p, src, index)
	}
	var errs []error
	for _, p := range c.routed() {
		if want, ok := wanted[p]; ok {
			if err := putRoute(c, family, p, want, all, r); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, have := range all {
		p := prefix(have.Dst, family)
		if have.Protocol != RouteProtocol || same(have, wanted[p]) {
			continue
		}
		if want, ok := wanted[p]; ok && have.Priority == want.Priority {
			continue // putRoute has replaced it
		}
		if err := netlink.RouteDel(&have); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("cannot remove the stale route %s: %w", p, err))
			continue
		}
		r.remove("route %s", p)
	}
	var w Ways
	c.strays(index, family, all, []netip.Addr{c.Address}, &w)
	for _, s := range w.Others {
		if !s.Underlay { // which may lie in the pods' network
			r.find(Finding{Severity: Warning, Subject: "routes to " + s.To,
				Problem: fmt.Sprintf("the host sends %s to %s and not to %s: it and routed pods do not reach pods there through Penstock", s, s.To, c.Device), Remedy: cmp.Or(LeftOver(s.To), "penstockctl doctor (host-routes) says whether a peer has pods there, and what to do")})
		}
	}
	return errors.Join(errs...)
}

// putRoute adds one route, or replaces ours in one step. It never replaces somebody else's.
func putRoute(c *Config, family int, p netip.Prefix, want netlink.Route, all []netlink.Route, r *Report) error {
	have := holder(p, family, all)
	switch {
	case have == nil:
	case have.Protocol != RouteProtocol:
		return taken(p, have)
	case same(*have, want):
		return nil
	}
	act := netlink.RouteAdd
	if have != nil {
		act = netlink.RouteReplace
	}
	if err := act(&want); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("somebody else added the route %s meanwhile; remove it, or the host cannot reach pods", p)
		}
		return fmt.Errorf("cannot add the route %s dev %s src %s: %w", p, c.Device, want.Src, err)
	}
	r.add("route %s dev %s src %s", p, c.Device, want.Src)
	return nil
}

// metric is the metric of our route to p.
func metric(p netip.Prefix) int {
	if p.Addr().Is6() {
		return metric6
	}
	return 0
}

func ourRoute(p netip.Prefix, src netip.Addr, index int) netlink.Route {
	rt := netlink.Route{
		LinkIndex: index, Dst: ipNet(p), Src: src.AsSlice(),
		Table: unix.RT_TABLE_MAIN, Protocol: RouteProtocol, Type: unix.RTN_UNICAST,
		Family: netlink.FAMILY_V4, Scope: netlink.SCOPE_LINK,
	}
	if p.Addr().Is6() {
		rt.Family, rt.Scope, rt.Priority = netlink.FAMILY_V6, netlink.SCOPE_UNIVERSE, metric(p)
	}
	return rt
}

// same compares what matters in a route of ours. A want that does not exist (the zero Route) is the same as nothing.
func same(have, want netlink.Route) bool {
	return have.LinkIndex == want.LinkIndex && have.Src.Equal(want.Src) && have.Priority == want.Priority &&
		have.Protocol == want.Protocol && have.Type == want.Type && len(have.Gw) == 0 && have.MultiPath == nil
}

func mainRoutes(family int) ([]netlink.Route, error) {
	list, err := dump.All(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if noFamily(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the routes of the main table: %w", err)
	}
	return list, nil
}

// noFamily: a kernel without IPv6 has no routes of it.
func noFamily(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)
}

func describe(rt netlink.Route) string {
	s := fmt.Sprintf("proto %d", rt.Protocol)
	if link, err := netlink.LinkByIndex(rt.LinkIndex); err == nil {
		s = fmt.Sprintf("dev %s, %s", link.Attrs().Name, s)
	}
	if len(rt.Gw) > 0 {
		s = fmt.Sprintf("via %s, %s", rt.Gw, s)
	}
	return s
}
