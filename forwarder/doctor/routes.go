package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// hostRoutes looks whether the host's stack sends to the daemon what is for pods. Another pod network that was there before leaves
// routes behind that are longer than ours, or stand in their place.
func (x *examination) hostRoutes(context.Context) {
	const name = "host-routes"
	if len(x.podCIDRs) == 0 {
		x.skip(name, "neither the daemon nor a valid configuration says which addresses are the pods'")
		return
	}
	w, err := hostnet.FindWays(x.device, x.podCIDRs, x.cluster, x.nodes())
	if err != nil {
		x.skip(name, "%v", err)
		return
	}
	before := len(x.report.Checks)
	for _, t := range w.Taken {
		if x.up {
			x.add(name, Failure, t.Remedy(), "%s", t.Problem())
		} else {
			x.add(name, Failure, t.Remedy(), "the daemon cannot start: %s", t.Problem())
		}
	}
	if x.up && len(w.Missing) > 0 {
		x.add(name, Failure, "the daemon puts its routes back: if this stays, its log says why it cannot (journalctl -u penstockd -n 50)",
			"the host has no route for %s to %s: it and routed pods cannot reach other nodes' pods", joined(w.Missing), x.device)
	}
	for _, s := range w.Others {
		x.otherPods(name, &w, s)
	}
	for _, s := range w.Own {
		x.ownPods(name, s)
	}
	x.routedPods(name)
	if len(x.report.Checks) > before {
		return
	}
	unseen := ""
	if w.Rules {
		unseen = "; routing rules (ip rule) lead to further tables, which were not looked at"
	}
	if len(w.Missing) > 0 {
		x.ok(name, "nothing is in the way of the daemon's%s", unseen)
	} else {
		x.ok(name, "the host sends what is for pods to %s%s", x.device, unseen)
	}
}

// routedPods looks for routed pods that the host does not reach by a device of their own any more: what comes for them goes round through
// the node's TUN. The plugin that has made the route has forgotten it.
func (x *examination) routedPods(name string) {
	var lost []string
	for _, p := range x.pods {
		if p.Attach != control.AttachRouted || p.Phase != control.PhaseAttached {
			continue
		}
		for _, a := range p.Addresses {
			if device, err := hostnet.RouteDevice(a, netip.Addr{}); err == nil && (device == x.device || device == "") {
				lost = append(lost, podName(p))
				break
			}
		}
	}
	if len(lost) > 0 {
		x.add(name, Failure, "put their routes back (of ptp: ip route add ADDRESS dev VETH), or delete the pods: their runtime makes them anew",
			"the host has lost the routes by which it reaches these routed pods: %s", listed(lost))
	}
}

// otherPods judges what is lost of other nodes' pods.
func (x *examination) otherPods(name string, w *hostnet.Ways, s hostnet.Stray) {
	var who []string
	takes := make([]bool, len(s.Routes)) // somebody's pods
	look := func(whose string, cidrs []netip.Prefix) {
		lost := false
		for _, c := range cidrs {
			for i, r := range s.Routes {
				if w.Loses(r, c) {
					takes[i], lost = true, true
				}
			}
		}
		if lost {
			who = append(who, whose)
		}
	}
	for _, p := range x.peers {
		look(p.Name, p.PodCIDRs)
	}
	look("this node's own pods", x.podCIDRs)
	switch {
	case len(who) > 0:
		var routes []netip.Prefix
		for i, r := range s.Routes {
			if takes[i] {
				routes = append(routes, r)
			}
		}
		s.Routes = routes // the others are no reason to remove them
		remedy := s.Remedy()
		if s.Underlay {
			remedy = "the underlay needs this way: give these pods CIDRs beside it (node.podCIDRs)"
		}
		x.add(name, Failure, remedy, "the host sends %s to %s and not to %s: the host and routed pods do not reach %s through Penstock", s, s.To, x.device, listed(who))
	case !s.Underlay:
		remedy := cmp.Or(hostnet.LeftOver(s.To), fmt.Sprintf("find out what it is for (ip route show %s) before a peer gets pods there", s.Routes[0]))
		x.add(name, Warning, remedy, "the host sends %s to %s and not to %s: no peer has pods there now, but the host and routed pods would not reach them through Penstock", s, s.To, x.device)
	}
}

// nodes are the addresses that must stay reachable on the underlay.
func (x *examination) nodes() []netip.Addr {
	list := []netip.Addr{x.address}
	for _, p := range x.peers {
		list = append(list, p.Address)
	}
	return list
}

// ownPods judges routes to this node's pods: those of routed pods are as they must be. A host route may be that of one who comes or goes
// right now, and one to nowhere a block of addresses without pods (Calico): without a veth or tun pod both are no matter.
func (x *examination) ownPods(name string, s hostnet.Stray) {
	var pods []string
	s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), func(r netip.Prefix) bool {
		routed, before := false, len(pods)
		for _, p := range x.pods {
			for _, a := range p.Addresses {
				if r.Contains(a) {
					if routed = routed || p.Attach == control.AttachRouted; p.Attach != control.AttachRouted {
						pods = append(pods, a.String())
					}
				}
			}
		}
		return routed || (r.IsSingleIP() || s.Nowhere()) && len(pods) == before
	})
	remedy := fmt.Sprintf("give %s a CIDR of its own; nothing is to be done if all pods of this CIDR are attached as routed behind it", s.To)
	if r := hostnet.LeftOver(s.To); r != "" {
		remedy = r + "; nothing is to be done if all pods of this CIDR are attached as routed behind it"
	}
	switch {
	case len(s.Routes) == 0:
	case s.Nowhere():
		x.add(name, Failure, s.Remedy(), "the host sends %s, of this node's own pods, to %s and not to %s: it cannot reach %s", s, s.To, x.device, listed(pods))
	case len(pods) > 0:
		x.add(name, Failure, remedy, "the host sends %s, of this node's own pods, to %s and not to %s: it cannot reach %s, and more veth and tun pods are refused there", s, s.To, x.device, listed(pods))
	default:
		x.add(name, Warning, remedy, "the host sends %s, of this node's own pods, to %s and not to %s: veth and tun pods are refused there", s, s.To, x.device)
	}
}

func joined(cidrs []netip.Prefix) string {
	var list []string
	for _, c := range cidrs {
		list = append(list, c.String())
	}
	return listed(list)
}
