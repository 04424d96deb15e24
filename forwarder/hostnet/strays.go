package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

// A Stray is a part of the pods' network that somebody else's routes in the main table take to one place that is not our device:
// what the host and routed pods send there does not come to us.
type Stray struct {
	To       string // a device, or "nowhere (blackhole)"
	Underlay bool   // the kernel made the routes, for an address of that device, or the node reaches its gateway or peers' nodes by them
	Routes   []netip.Prefix
}

// Nowhere is whether the routes lead to no device at all.
func (s Stray) Nowhere() bool { return strings.HasPrefix(s.To, nowhere) }

const nowhere = "nowhere ("

// Remedy is what to do about routes that take pods' packets. It is not for the others: what is at work there, as the way to the gateway,
// would be lost.
func (s Stray) Remedy() string {
	if r := LeftOver(s.To); r != "" {
		return r
	}
	r := fmt.Sprintf("if nobody needs it any more: ip route del %s", s.Routes[0])
	if len(s.Routes) > 1 {
		r += ", and likewise the others"
	}
	return r
}

// String is a list for a sentence.
func (s Stray) String() string {
	const most = 3
	var list []string
	for _, p := range s.Routes[:min(most, len(s.Routes))] {
		list = append(list, p.String())
	}
	if n := len(s.Routes) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list, ", "), n)
	}
	return strings.Join(list, ", ")
}

// LeftOver says how to be rid of a device that may be flannel's; empty if it is none of flannel's.
func LeftOver(device string) string {
	switch {
	case device == "cni0":
		return "if it is left over from flannel: ip link del cni0, when its pods are gone"
	case strings.HasPrefix(device, "flannel"):
		return fmt.Sprintf("if it is left over from flannel: ip link del %s, when flanneld has gone", device)
	}
	return ""
}

// Taken says that somebody else's route stands where one of ours belongs. We never replace it, so the daemon does not start.
type Taken struct {
	Route  netip.Prefix
	By     string // as in "dev flannel0, proto 3"
	Device string
}

func (t Taken) Problem() string {
	return fmt.Sprintf("the route %s belongs to somebody else (%s)", t.Route, t.By)
}

// Remedy is what to do about it.
func (t Taken) Remedy() string {
	r := "remove it, or the host cannot reach pods"
	if more := LeftOver(t.Device); more != "" {
		r += "; " + more
	}
	return r
}

func (t Taken) Error() string { return t.Problem() + "; " + t.Remedy() }

// Ways is where the main table sends what is for pods.
type Ways struct {
	Taken   []Taken
	Missing []netip.Prefix // that ought to lead to our device, and do not
	Others  []Stray        // of other nodes' pods
	Own     []Stray        // of this node's
	Rules   bool           // routing rules lead to further tables, which were not looked at

	ours []netip.Prefix // that lead to our device
}

// FindWays looks at the main routing table: one dump a family, however many peers there are. It changes nothing, and the device
// need not be there. underlay are the addresses of this node and its peers.
func FindWays(device string, podCIDRs, cluster []netip.Prefix, underlay []netip.Addr) (w Ways, err error) {
	c := Config{Device: device, PodCIDRs: podCIDRs, Cluster: cluster}
	index := -1 // of no device
	if link, err := netlink.LinkByName(device); err == nil {
		index = link.Attrs().Index
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := mainRoutes(family)
		if err != nil {
			return w, err
		}
		for _, p := range c.routed() {
			if _, ok := c.source(p); !ok || p.Addr().Is4() != (family == netlink.FAMILY_V4) {
				continue
			}
			switch have := holder(p, family, all); {
			case have == nil:
				w.Missing = append(w.Missing, p)
			case have.Protocol != RouteProtocol:
				w.Taken = append(w.Taken, taken(p, have))
			}
		}
		c.strays(index, family, all, underlay, &w)
		rules, err := dump.All(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
		if err != nil && !noFamily(err) {
			return w, fmt.Errorf("cannot list the routing rules: %w", err)
		}
		w.Rules = w.Rules || slices.ContainsFunc(rules, func(r netlink.Rule) bool {
			return r.Table != unix.RT_TABLE_UNSPEC && (r.Table < unix.RT_TABLE_DEFAULT || r.Table > unix.RT_TABLE_LOCAL)
		})
	}
	return w, nil
}

// Loses reports whether a route of a Stray takes packets for pods of p: the longest prefix decides.
func (w *Ways) Loses(route, p netip.Prefix) bool {
	return route.Overlaps(p) && !slices.ContainsFunc(w.ours, func(o netip.Prefix) bool {
		return o.Bits() > route.Bits() && covered(p, []netip.Prefix{o})
	})
}

// strays sorts a family's routes inside the pods' network by where they lead.
func (c *Config) strays(index, family int, all []netlink.Route, underlay []netip.Addr, w *Ways) {
	routed := c.routed()
	underlay = append(gateways(all, family), underlay...)
	for _, r := range all {
		p := prefix(r.Dst, family)
		switch {
		case !covered(p, routed) || r.Flags&unix.RTNH_F_DEAD != 0:
			continue
		case r.Type == unix.RTN_UNICAST && r.LinkIndex == index:
			w.ours = append(w.ours, p)
			continue
		case slices.Contains(routed, p) && r.Priority >= metric(p):
			continue // Taken, or of no effect beside ours
		}
		list := &w.Others
		if covered(p, c.PodCIDRs) {
			list = &w.Own
		}
		to, needed := leadsTo(&r), r.Protocol == unix.RTPROT_KERNEL || slices.ContainsFunc(underlay, p.Contains)
		i := slices.IndexFunc(*list, func(s Stray) bool { return s.To == to && s.Underlay == needed })
		if i < 0 {
			i, *list = len(*list), append(*list, Stray{To: to, Underlay: needed})
		}
		(*list)[i].Routes = append((*list)[i].Routes, p)
	}
}

// gateways are the next hops of the default routes.
func gateways(all []netlink.Route, family int) (list []netip.Addr) {
	for _, r := range all {
		if prefix(r.Dst, family).Bits() != 0 {
			continue
		}
		hops := []net.IP{r.Gw}
		for _, h := range r.MultiPath {
			hops = append(hops, h.Gw)
		}
		for _, h := range hops {
			if a, ok := netip.AddrFromSlice(h); ok {
				list = append(list, a.Unmap())
			}
		}
	}
	return list
}

// leadsTo names the device of a route, or what becomes of packets without one.
func leadsTo(r *netlink.Route) string {
	index := r.LinkIndex
	if index == 0 && len(r.MultiPath) > 0 {
		index = r.MultiPath[0].LinkIndex
	}
	if kind, ok := map[int]string{unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit"}[r.Type]; ok {
		return nowhere + kind + ")"
	}
	name, err := DeviceName(index)
	if err != nil {
		return fmt.Sprintf("device %d", index)
	}
	return name
}

// holder is the route that stands where ours to p belongs; nil if none does.
func holder(p netip.Prefix, family int, all []netlink.Route) *netlink.Route {
	for i := range all {
		if prefix(all[i].Dst, family) == p && all[i].Priority == metric(p) {
			return &all[i]
		}
	}
	return nil
}

func taken(p netip.Prefix, by *netlink.Route) Taken {
	return Taken{Route: p, By: describe(*by), Device: leadsTo(by)}
}

// RouteDevice asks the kernel where it sends packets for an address; "" is nowhere. from is the source, if the sender is bound to one.
func RouteDevice(a, from netip.Addr) (string, error) {
	var options *netlink.RouteGetOptions
	if from.IsValid() {
		options = &netlink.RouteGetOptions{SrcAddr: from.AsSlice()}
	}
	routes, err := netlink.RouteGetWithOptions(a.AsSlice(), options)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL), err == nil && len(routes) == 0:
		return "", nil // none, or one of the kinds unreachable, prohibit and blackhole
	case err != nil:
		return "", fmt.Errorf("the route to %s cannot be looked up: %w", a, err)
	}
	name, err := DeviceName(routes[0].LinkIndex)
	if err != nil {
		return "", fmt.Errorf("the device of the route to %s cannot be looked up: %w", a, err)
	}
	return name, nil
}
