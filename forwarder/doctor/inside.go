package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inside looks into the namespaces of veth and tun pods for what the plugin has set up there and somebody may have taken away: what is wrong
// there the daemon cannot see, as nothing reaches it. A routed pod's interface is the other plugin's, and one that was attached by hand has no namespace on record.
func (x *examination) inside(ctx context.Context) {
	const name = "pod-network"
	if x.away != "" {
		x.skip(name, "%s", x.away)
		return
	}
	looked, closed, elsewhere := 0, 0, 0
	var flaws []flaw // each once
	whose := map[flaw][]string{}
	for _, p := range x.pods {
		if ctx.Err() != nil || p.Attach == control.AttachRouted || p.Netns == "" || p.Phase != control.PhaseAttached || p.Problem != "" {
			continue
		}
		h, err := enter(p)
		if err != nil {
			elsewhere++
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
				closed++
			}
			continue
		}
		looked++
		for _, f := range lookInside(h, p, x.others()) {
			if whose[f] == nil {
				flaws = append(flaws, f)
			}
			whose[f] = append(whose[f], podName(p))
		}
		h.Close()
	}
	for _, f := range flaws {
		x.add(name, f.result, f.remedy, "%s: %s", listed(whose[f]), f.text)
	}
	switch {
	case len(flaws) > 0:
	case closed > 0:
		x.skip(name, "only root may look into the pods' network namespaces")
	case looked == 0 && elsewhere > 0:
		x.skip(name, "no pod's network namespace can be opened by the path on record")
	case looked == 0:
		x.skip(name, "no veth or tun pod that the plugin has made is attached")
	default:
		x.ok(name, "looked into %d: interface, addresses and the way to other nodes' pods are there", looked)
	}
}

// others are addresses that a pod must have a way to: the first of each family that a peer has.
func (x *examination) others() (list []netip.Addr) {
	for _, four := range []bool{true, false} {
		for _, p := range x.peers {
			i := slices.IndexFunc(p.PodCIDRs, func(c netip.Prefix) bool { return c.Addr().Is4() == four })
			if i >= 0 {
				list = append(list, p.PodCIDRs[i].Masked().Addr().Next())
				break
			}
		}
	}
	return list
}

// enter opens a pod's namespace, if the path on record still leads there.
func enter(p control.Pod) (*netlink.Handle, error) {
	if id, err := control.NetnsID(p.Netns); err != nil {
		return nil, err
	} else if p.NetnsID != "" && id != p.NetnsID {
		return nil, fmt.Errorf("%s is another namespace by now", p.Netns)
	}
	ns, err := netns.GetFromPath(p.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// flaw is what is wrong inside a pod; the same in many is one finding.
type flaw struct {
	result       Result
	text, remedy string
}

// lookInside compares a pod's namespace with its record.
func lookInside(h *netlink.Handle, p control.Pod, others []netip.Addr) (list []flaw) {
	const anew = "delete the pod, its runtime makes it anew"
	link, err := h.LinkByName(p.Interface)
	if err != nil {
		return []flaw{{Failure, "there is no " + p.Interface + " in it any more", anew}}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return []flaw{{Failure, p.Interface + " is down", anew + " (ip link set " + p.Interface + " up inside it does not bring its routes back)"}}
	}
	have, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	var missing []string
	for _, a := range p.Addresses {
		if !slices.ContainsFunc(have, func(b netlink.Addr) bool { return b.IP.Equal(a.AsSlice()) }) {
			missing = append(missing, a.String())
		}
	}
	if len(missing) > 0 {
		return []flaw{{Failure, fmt.Sprintf("%s has lost %s", p.Interface, strings.Join(missing, ", ")), anew}}
	}
	for _, to := range others {
		i := slices.IndexFunc(p.Addresses, func(a netip.Addr) bool { return a.Is4() == to.Is4() })
		if i < 0 {
			continue // it has no address of the family
		}
		routes, err := h.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: p.Addresses[i].AsSlice()})
		switch {
		case err != nil || len(routes) == 0:
			list = append(list, flaw{Failure, fmt.Sprintf("no route to other nodes' pods (%s)", to), anew})
		case routes[0].LinkIndex != link.Attrs().Index:
			other := fmt.Sprintf("interface %d", routes[0].LinkIndex)
			if l, err := h.LinkByIndex(routes[0].LinkIndex); err == nil {
				other = l.Attrs().Name
			}
			list = append(list, flaw{Warning, fmt.Sprintf("what it sends to other nodes' pods (%s) leaves by %s, not by %s", to, other, p.Interface),
				"if nobody wants that: look at its routes and rules, which something inside it has changed"})
		}
	}
	return list
}
