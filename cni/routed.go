package cni

import (
	"context"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/forwarder/control"
)

// checkForeign: a routed pod's interface was made by the plugin before.
func (a *adding) checkForeign(context.Context) error {
	link, err := a.pod.route.LinkByName(a.IfName)
	if err != nil {
		return invalid("attach routed: there is no %s in %s, though prevResult speaks of one", a.IfName, a.Netns)
	}
	a.foreignMTU = link.Attrs().MTU
	return nil
}

// checkHostRoutes: what the daemon decapsulates for a routed pod it hands to the host's stack, which must know the way. Where the
// only way is the node's TUN again, packets would go round.
func (a *adding) checkHostRoutes(context.Context) error {
	for _, x := range a.ours {
		routes, err := a.host.route.RouteGet(x.AsSlice())
		if err != nil || len(routes) == 0 {
			return invalid("attach routed: the host has no route to %s: the plugin before penstock must make one (bridge: isGateway)", x)
		}
		link, err := a.host.route.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return fail(types.ErrInternal, "the device of the route to %s cannot be read: %v", x, err)
		}
		if _, tun := link.(*netlink.Tuntap); tun || a.isUplink(link, x) {
			return invalid("attach routed: the host's route to %s leads to %s and not to the pod: the plugin before penstock must make one (bridge: isGateway)", x, link.Attrs().Name)
		}
	}
	return nil
}

// checkNeighbours: a bridge's pods look for all of their network on their own link, so pods of this node that hang on the daemon
// must not be in it. Behind ptp everything goes by the gateway.
func (a *adding) checkNeighbours(ctx context.Context) error {
	var pods []control.Pod
	err := patiently(ctx, func(ctx context.Context) (err error) {
		pods, err = a.daemon.Pods(ctx)
		return err
	})
	if err != nil {
		return fromDaemon(err)
	}
	seen := map[netip.Prefix]bool{}
	for _, p := range pods {
		if p.Attach == control.AttachRouted {
			continue
		}
		for _, x := range p.Addresses {
			for _, ip := range a.previous.IPs {
				network := prefixOf(ip.Address)
				if seen[network] || !network.Contains(x) {
					continue
				}
				seen[network] = true
				routes, err := a.pod.route.RouteGet(x.AsSlice())
				if err == nil && len(routes) > 0 && routes[0].Gw == nil {
					return invalid("attach routed: the pod would look for %s of container %s on its own link, but that is attached by %s: give the bridge a CIDR of its own", x, p.Container, p.Attach)
				}
			}
		}
	}
	return nil
}

// isUplink is whether a device is the one with the default route: nothing more specific was found then.
func (a *adding) isUplink(link netlink.Link, x netip.Addr) bool {
	routes, err := a.host.route.RouteListFiltered(family(x), &netlink.Route{LinkIndex: link.Attrs().Index}, netlink.RT_FILTER_OIF)
	return err == nil && slices.ContainsFunc(routes, func(r netlink.Route) bool { return isDefault(r.Dst) })
}

// setForeignMTU sets the MTU only where the configuration asks for it: the interface is another plugin's.
func (a *adding) setForeignMTU(context.Context) error {
	if a.mtu == 0 {
		return nil
	}
	link, err := a.pod.route.LinkByName(a.IfName)
	if err == nil {
		err = a.pod.route.LinkSetMTU(link, a.mtu)
	}
	if err != nil {
		return invalid("mtu %d cannot be set on %s in the pod: %v", a.mtu, a.IfName, err)
	}
	for _, i := range a.result.Interfaces {
		if i.Sandbox != "" && i.Name == a.IfName {
			i.Mtu = a.mtu
		}
	}
	return nil
}
