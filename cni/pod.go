package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

var (
	all4 = netip.MustParsePrefix("0.0.0.0/0")
	all6 = netip.MustParsePrefix("::/0")
)

func gatewayOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return control.Gateway4
	}
	return control.Gateway6
}

func allOf(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return all4
	}
	return all6
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// configure gives the pod's interface what it needs: it has /32 and /128 addresses, so nobody is on its link but the gateway,
// whose MAC stands in a permanent entry; thus a pod never asks for a neighbour, and what asks all the same the daemon answers.
func (a *adding) configure(context.Context) error {
	if err := a.pod.do(a.setPodSysctls); err != nil {
		return fail(types.ErrIOFailure, "in the pod: %v", err)
	}
	var err error
	if a.link == nil {
		a.link, err = a.pod.route.LinkByName(a.IfName)
	}
	link := a.link
	if err == nil {
		err = a.pod.route.LinkSetUp(link)
	}
	if err != nil {
		return fail(types.ErrInternal, "%s in the pod cannot be brought up: %v", a.IfName, err)
	}
	index := link.Attrs().Index
	defaults, err := a.pod.defaults()
	if err != nil {
		return fail(types.ErrInternal, "the pod's routes cannot be read: %v", err)
	}
	var routes []*types.Route
	ways := map[int]bool{} // families whose answers leave by the interface
	for _, x := range a.ours {
		if err := a.pod.address(link, x); err != nil {
			return fail(types.ErrInternal, "%v", err)
		}
		if a.attach == control.AttachVeth {
			err := a.pod.route.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gatewayOf(x).AsSlice(), HardwareAddr: hostMAC})
			if err != nil {
				return fail(types.ErrInternal, "the entry for the gateway %s cannot be set in the pod: %v", gatewayOf(x), err)
			}
		}
		if f := family(x); !defaults[f] { // the interface is the pod's first of that family
			switch err := a.pod.addRoute(index, 0, allOf(x), nil); {
			case errors.Is(err, unix.EEXIST): // runtimes attach networks at once, and another ADD was quicker
			case err != nil:
				return fail(types.ErrInternal, "%v", err)
			default:
				ways[f] = true
				routes = append(routes, &types.Route{Dst: *netOf(allOf(x)), GW: gatewayOf(x).AsSlice()})
			}
			defaults[f] = true
		}
	}
	if err := a.answerThrough(index, ways); err != nil {
		return fail(types.ErrInternal, "%v", err)
	}
	more, err := a.moreRoutes()
	if err != nil {
		return err
	}
	for _, r := range more {
		if err := a.pod.addRoute(index, 0, prefixOf(r.Dst), r); err != nil {
			if errors.Is(err, unix.EEXIST) {
				return invalid("routes: there is a route to %s in the pod already", prefixOf(r.Dst))
			}
			return fail(types.ErrInternal, "%v", err)
		}
	}
	a.describe(link, append(routes, more...))
	return nil
}

// setPodSysctls works inside the pod's namespace.
func (a *adding) setPodSysctls() error {
	v4, v6 := "ipv4/conf/"+a.IfName+"/", "ipv6/conf/"+a.IfName+"/"
	set := [][2]string{
		{v6 + "accept_ra", "0"}, {v6 + "accept_dad", "0"}, {v6 + "dad_transmits", "0"},
		{v4 + "arp_notify", "1"}, {v6 + "ndisc_notify", "1"}, // the daemon hears of a new MAC before a packet of the pod tells it
	}
	if slices.ContainsFunc(a.ours, netip.Addr.Is6) {
		// Runtimes turn IPv6 off by default; an address survives that the interface goes down and up, as in IPv4.
		set = append(set, [2]string{v6 + "disable_ipv6", "0"}, [2]string{v6 + "keep_addr_on_down", "1"})
	}
	if readSysctl(v4+"rp_filter") == "1" || readSysctl("ipv4/conf/all/rp_filter") == "1" {
		set = append(set, [2]string{v4 + "rp_filter", "2"}) // strict refuses what comes by another interface than the default route's
	}
	for _, s := range set {
		if err := writeSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// address: usable at once; nobody else can have it, the daemon sees to that.
func (n *netns) address(link netlink.Link, x netip.Addr) error {
	a := &netlink.Addr{IPNet: netOf(netip.PrefixFrom(x, x.BitLen()))}
	if x.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := n.route.AddrAdd(link, a); err != nil {
		return fmt.Errorf("address %s cannot be added to %s in the pod: %w", x, link.Attrs().Name, err)
	}
	return nil
}

// defaults are the families that have a default route.
func (n *netns) defaults() (map[int]bool, error) {
	routes, err := n.route.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	have := map[int]bool{}
	for _, r := range routes {
		if isDefault(r.Dst) && r.Type == unix.RTN_UNICAST {
			have[r.Family] = true
		}
	}
	return have, nil
}

func isDefault(dst *net.IPNet) bool {
	if dst == nil {
		return true
	}
	ones, _ := dst.Mask.Size()
	return ones == 0
}

// addRoute adds a route by the gateway. Details are those of a route in the configuration.
func (n *netns) addRoute(index, table int, to netip.Prefix, details *types.Route) error {
	gw := gatewayOf(to.Addr())
	r := &netlink.Route{LinkIndex: index, Dst: netOf(to), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Table: table}
	if details != nil {
		r.MTU, r.AdvMSS, r.Priority = details.MTU, details.AdvMSS, details.Priority
		if details.Table != nil {
			r.Table = *details.Table
		}
	}
	if err := n.route.RouteAdd(r); err != nil {
		return fmt.Errorf("the route to %s cannot be added in the pod: %w", to, err)
	}
	return nil
}

// A further interface has a routing table of its own, in which answers find their way: by the default route they would leave
// through the first interface, where the daemon drops what is not that interface's address. Its number follows from the name, so
// that DEL finds the rules, which do not go with the interface.
func tableOf(name string) int { return int(0x7073_0000 | crc32(name)&0xffff) }

// crc32 is that of hash/crc32, which makes its tables whenever a program starts.
func crc32(s string) uint32 {
	crc := ^uint32(0)
	for i := range len(s) {
		crc ^= uint32(s[i])
		for range 8 {
			crc = crc>>1 ^ 0xedb88320&-(crc&1)
		}
	}
	return ^crc
}

const rulePriority = 7073

// answerThrough makes the table and its rules for the families that have no other way by the interface. Rules that are there are those of
// an interface of that name which went without DEL, for addresses that may be anybody's by now.
func (a *adding) answerThrough(index int, ways map[int]bool) error {
	rest := slices.DeleteFunc(slices.Clone(a.ours), func(x netip.Addr) bool { return ways[family(x)] })
	if len(rest) == 0 {
		return nil
	}
	clear := func() error { return a.pod.removeRules(a.IfName) }
	if err := clear(); err != nil {
		return err
	}
	a.undo.add(clear)
	table, routed := tableOf(a.IfName), map[int]bool{}
	for _, x := range rest {
		f := family(x)
		if !routed[f] { // an ipam plugin may give several addresses of a family
			if err := a.pod.addRoute(index, table, allOf(x), nil); err != nil {
				return err
			}
			routed[f] = true
		}
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table, r.Src = f, rulePriority, table, netOf(netip.PrefixFrom(x, x.BitLen()))
		if err := a.pod.route.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("the rule for answers from %s cannot be added in the pod: %w", x, err)
		}
	}
	return nil
}

// answers is whether what answerThrough has made is there. What cannot be read says nothing.
func (n *netns) answers(name string, index int, from netip.Addr) bool {
	table := tableOf(name)
	rules, err := n.route.RuleListFiltered(family(from), &netlink.Rule{Table: table, Src: netOf(netip.PrefixFrom(from, from.BitLen()))}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_SRC)
	if err != nil {
		return true
	}
	routes, err := n.route.RouteListFiltered(family(from), &netlink.Route{Table: table, LinkIndex: index}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
	return len(rules) > 0 && (err != nil || slices.ContainsFunc(routes, func(r netlink.Route) bool { return isDefault(r.Dst) }))
}

// removeRules undoes answerThrough; the routes go with the interface.
func (n *netns) removeRules(name string) error {
	var errs []error
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := n.route.RuleListFiltered(f, &netlink.Rule{Table: tableOf(name)}, netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			continue // a family that the kernel has not
		}
		for _, r := range rules {
			r.Family = f
			if err := n.route.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("a rule of %s cannot be removed in the pod: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// moreRoutes are those of the configuration and of a delegated ipam. The gateway an ipam names is that of another topology.
func (a *adding) moreRoutes() ([]*types.Route, error) {
	list := slices.Clone(a.conf.Routes)
	if a.result != nil {
		for _, r := range a.result.Routes {
			if !isDefault(&r.Dst) {
				list = append(list, r)
			}
		}
	}
	var routes []*types.Route
	for _, r := range list {
		dst := prefixOf(r.Dst)
		if !slices.ContainsFunc(a.ours, func(x netip.Addr) bool { return x.Is4() == dst.Addr().Is4() }) {
			if dst.Addr().Is6() && !hasIPv6() {
				continue
			}
			return nil, invalid("routes: the pod has no address of the family of %s", dst)
		}
		if err := checkRoute(r); err != nil { // an ipam plugin's
			return nil, err
		}
		r = r.Copy()
		r.Dst, r.GW = *netOf(dst), gatewayOf(dst.Addr()).AsSlice()
		routes = append(routes, r)
	}
	return routes, nil
}

// describe makes the result.
func (a *adding) describe(link netlink.Link, routes []*types.Route) {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: routes, DNS: a.conf.DNS}
	if r.DNS.IsEmpty() && a.result != nil {
		r.DNS = a.result.DNS
	}
	pod := &current.Interface{Name: a.IfName, Mac: link.Attrs().HardwareAddr.String(), Mtu: a.lease.MTU, Sandbox: a.Netns}
	if a.attach == control.AttachVeth { // the host has no end of a TUN
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: a.lease.Device, Mac: hostMAC.String(), Mtu: a.lease.MTU})
	}
	r.Interfaces = append(r.Interfaces, pod)
	for _, x := range a.ours {
		r.IPs = append(r.IPs, &current.IPConfig{
			Interface: current.Int(len(r.Interfaces) - 1), Address: *netOf(netip.PrefixFrom(x, x.BitLen())), Gateway: gatewayOf(x).AsSlice(),
		})
	}
	a.result = r
}
