package doctor

import (
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
	w, err := hostnet.FindWays(x.device, x.podCIDRs, x.cluster)
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

// otherPods judges what is lost of other nodes' pods.
func (x *examination) otherPods(name string, w *hostnet.Ways, s hostnet.Stray) {
	loses := func(cidrs []netip.Prefix) bool {
		return slices.ContainsFunc(cidrs, func(c netip.Prefix) bool {
			return slices.ContainsFunc(s.Routes, func(r netip.Prefix) bool { return w.Loses(r, c) })
		})
	}
	var who []string
	for _, p := range x.peers {
		if loses(p.PodCIDRs) {
			who = append(who, p.Name)
		}
	}
	if loses(x.podCIDRs) {
		who = append(who, "this node's own pods")
	}
	switch {
	case len(who) > 0:
		x.add(name, Failure, s.Remedy(), "the host sends %s to %s and not to %s: the host and routed pods do not reach %s through Penstock", s, s.To, x.device, listed(who))
	case !s.Kernel: // else it may be the underlay's own prefix
		x.add(name, Warning, s.Remedy(), "the host sends %s to %s and not to %s: no peer has pods there now, but the host and routed pods would not reach them through Penstock", s, s.To, x.device)
	}
}

// ownPods judges routes to this node's pods: those of routed pods are as they must be.
func (x *examination) ownPods(name string, s hostnet.Stray) {
	var pods []string
	s.Routes = slices.DeleteFunc(slices.Clone(s.Routes), func(r netip.Prefix) bool {
		routed := false
		for _, p := range x.pods {
			for _, a := range p.Addresses {
				if r.Contains(a) {
					if routed = routed || p.Attach == control.AttachRouted; p.Attach != control.AttachRouted {
						pods = append(pods, a.String())
					}
				}
			}
		}
		return routed
	})
	remedy := fmt.Sprintf("give %s a CIDR of its own; nothing is to be done if all pods of this CIDR are attached as routed behind it", s.To)
	if r := hostnet.LeftOver(s.To); r != "" {
		remedy = r + "; nothing is to be done if all pods of this CIDR are attached as routed behind it"
	}
	switch {
	case len(s.Routes) == 0:
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
