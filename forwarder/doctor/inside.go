package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inside looks into the namespaces of veth and tun pods for what the plugin has set up there and somebody may have changed: the daemon
// cannot see it, as nothing reaches it. A routed pod's interface is the other plugin's, and one that was attached by hand has no
// namespace on record.
func (x *examination) inside(ctx context.Context) {
	const name = "pod-network"
	if x.away != "" {
		x.skip(name, "%s", x.away)
		return
	}
	others := others(x.peers)
	looked, wanted := 0, 0
	var closed []string // why each that could not be looked into was not
	var flaws []flaw    // each once
	whose := map[flaw][]control.Pod{}
	for _, p := range x.pods {
		if p.Attach == control.AttachRouted || p.Netns == "" || p.Phase != control.PhaseAttached || p.Problem != "" {
			continue
		}
		wanted++
		if ctx.Err() != nil {
			closed = append(closed, podName(p)+": doctor was stopped")
			continue
		}
		found, err := lookInto(p, x.pods, others)
		if err != nil {
			closed = append(closed, fmt.Sprintf("%s: %v", podName(p), err))
			continue
		}
		looked++
		for _, f := range found {
			if whose[f] == nil {
				flaws = append(flaws, f)
			}
			whose[f] = append(whose[f], p)
		}
	}
	var now []control.Pod
	if len(flaws) > 0 {
		now, _ = x.client.Pods(ctx) // some may have been deleted meanwhile, of which one finds halves
	}
	wrong := false
	for _, f := range flaws {
		var names []string
		for _, p := range whose[f] {
			if slices.ContainsFunc(now, func(o control.Pod) bool {
				return o.Container == p.Container && o.Interface == p.Interface && o.NetnsID == p.NetnsID && o.Phase == p.Phase
			}) {
				names = append(names, podName(p))
			}
		}
		if len(names) > 0 {
			wrong = true
			x.add(name, Failure, f.remedy, "%s: %s", listed(names), f.text)
		}
	}
	way := ", and the way to other nodes' pods"
	if len(others) == 0 {
		way = " (there is no peer to look for a way to)"
	}
	switch {
	case wrong:
	case wanted == 0:
		x.skip(name, "no veth or tun pod that the plugin has made is attached")
	case looked == 0:
		x.skip(name, "none of %d could be looked into: %s", wanted, listed(closed))
	case len(closed) > 0:
		x.ok(name, "looked into %d of %d: interface and addresses are there%s; not into %s", looked, wanted, way, listed(closed))
	default:
		x.ok(name, "looked into %d: interface and addresses are there%s", looked, way)
	}
}

// others are addresses that a pod must have a way to: of each family the first of a peer's largest pod CIDR.
func others(peers []control.Peer) (list []netip.Addr) {
	for _, four := range []bool{true, false} {
		var most netip.Prefix
		for _, p := range peers {
			for _, c := range p.PodCIDRs {
				if c.Addr().Is4() == four && (!most.IsValid() || c.Bits() < most.Bits()) {
					most = c
				}
			}
		}
		if most.IsValid() {
			a := most.Masked().Addr()
			if !most.IsSingleIP() {
				a = a.Next()
			}
			list = append(list, a)
		}
	}
	return list
}

// flaw is what is wrong inside a pod; the same in many is one finding.
type flaw struct{ text, remedy string }

// anew mends everything that is wrong inside a pod.
const anew = "delete the pod, its runtime makes it anew"

// within is how to mend it in place.
func within(format string, a ...any) string {
	return anew + "; or inside it (nsenter --net=PATH, by the path in penstockctl -o json pods): " + fmt.Sprintf(format, a...)
}

// lookInto compares a pod's namespace with its record. What cannot be read is an error, and no flaw.
func lookInto(p control.Pod, all []control.Pod, others []netip.Addr) (list []flaw, err error) {
	ns, err := control.OpenNetns(p.Netns, p.NetnsID)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("its network namespace cannot be entered (doctor needs CAP_SYS_ADMIN): %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(p.Interface)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return []flaw{{"there is no " + p.Interface + " in it any more", anew}}, nil
	}
	if err != nil {
		return nil, err
	}
	at := link.Attrs()
	switch {
	case at.Flags&net.FlagUp == 0:
		return []flaw{{p.Interface + " is down", anew + " (ip link set " + p.Interface + " up inside it does not bring its routes back)"}}, nil
	case at.RawFlags&unix.IFF_LOWER_UP == 0 && p.Attach == control.AttachVeth:
		return []flaw{{fmt.Sprintf("%s has no carrier: its end on the node, %s, is down", p.Interface, p.Device), "ip link set " + p.Device + " up, on the node"}}, nil
	case at.RawFlags&unix.IFF_LOWER_UP == 0:
		return []flaw{{p.Interface + " has no carrier: the daemon does not hold its queue", anew}}, nil
	case at.MTU > p.MTU && p.Attach == control.AttachVeth: // larger packets the kernel drops in front of the daemon
		list = append(list, flaw{fmt.Sprintf("%s has an MTU of %d, and packets of more than %d bytes are lost without a word", p.Interface, at.MTU, p.MTU),
			within("ip link set %s mtu %d", p.Interface, p.MTU)})
	}
	have, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, a := range p.Addresses {
		if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil && a.Is6() {
			continue // the plugin has left it out
		}
		if !slices.ContainsFunc(have, func(b netlink.Addr) bool { return b.IP.Equal(a.AsSlice()) }) {
			missing = append(missing, a.String())
		}
	}
	if len(missing) > 0 {
		return append(list, flaw{fmt.Sprintf("%s has lost %s", p.Interface, strings.Join(missing, ", ")), anew}), nil
	}
	if at.MasterIndex != 0 {
		return list, nil // of a VRF, whose routes are not the namespace's
	}
	for _, to := range others {
		f, err := wayTo(h, p, all, at.Index, to)
		if err != nil {
			return nil, err
		}
		if f != (flaw{}) {
			list = append(list, f)
		}
	}
	return list, nil
}

// wayTo asks the pod's kernel for the way to another node's pod.
func wayTo(h *netlink.Handle, p control.Pod, all []control.Pod, index int, to netip.Addr) (flaw, error) {
	i := slices.IndexFunc(p.Addresses, func(a netip.Addr) bool { return a.Is4() == to.Is4() })
	if i < 0 {
		return flaw{}, nil // it has no address of the family
	}
	gateway, ip := control.Gateway4, "ip"
	if to.Is6() {
		gateway, ip = control.Gateway6, "ip -6"
	}
	repair := within("%s route replace default via %s dev %s onlink", ip, gateway, p.Interface)
	routes, err := h.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: p.Addresses[i].AsSlice()})
	for _, none := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} { // none, unreachable, prohibit, blackhole
		if errors.Is(err, none) {
			return flaw{fmt.Sprintf("no route to other nodes' pods (%s)", to), repair}, nil
		}
	}
	if err != nil || len(routes) == 0 {
		return flaw{}, err
	}
	r := routes[0]
	if r.LinkIndex != index {
		l, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			return flaw{}, err
		}
		other := l.Attrs().Name
		if slices.ContainsFunc(all, func(o control.Pod) bool { return o.NetnsID == p.NetnsID && o.Interface == other }) {
			return flaw{fmt.Sprintf("what it sends from its address to other nodes' pods (%s) leaves by %s, not by %s, and is dropped as spoofed: its rule is gone", to, other, p.Interface), anew}, nil
		}
		return flaw{}, nil // a VPN, say, in which somebody wants it
	}
	if via, _ := netip.AddrFromSlice(r.Gw); p.Attach == control.AttachVeth && via.Unmap() != gateway {
		if !via.IsValid() {
			return flaw{fmt.Sprintf("its route to other nodes' pods (%s) is without a gateway, so it asks for a neighbour that is not there", to), repair}, nil
		}
		return flaw{fmt.Sprintf("its route to other nodes' pods (%s) is by the gateway %s, which nobody is", to, via), repair}, nil
	}
	return flaw{}, nil
}
