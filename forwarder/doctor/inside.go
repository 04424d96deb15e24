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

// inside looks into the namespaces of veth and tun pods for what the plugin has set up there and somebody may have changed: the daemon
// cannot see it, as nothing reaches it. A routed pod's interface is the other plugin's, and one that was attached by hand has no
// namespace on record.
func (x *examination) inside(ctx context.Context) {
	const name = "pod-network"
	if x.away != "" {
		x.skip(name, "%s", x.away)
		return
	}
	s := look(ctx, x.pods, others(x.peers))
	if len(s.flaws) > 0 { // some may have been deleted meanwhile, of which one finds halves
		if now, err := x.client.Pods(ctx); err == nil {
			s.keep(now)
		}
	}
	for _, f := range s.flaws {
		x.add(name, Failure, f.remedy, "%s: %s", s.names(f), f.text)
	}
	way := ", and the way to other nodes' pods"
	if s.ways == 0 {
		way = " (there is no way to other nodes' pods to look for)"
	}
	var not []string
	for _, f := range s.closed {
		not = append(not, s.names(f)+": "+f.text)
	}
	switch {
	case len(s.flaws) > 0:
	case s.wanted == 0:
		x.skip(name, "no veth or tun pod that the plugin has made is attached")
	case s.looked == 0:
		x.skip(name, "none of %d could be looked into; %s", s.wanted, strings.Join(not, "; "))
	case len(not) > 0:
		x.ok(name, "looked into %d of %d: interface and addresses are there%s; not into %s", s.looked, s.wanted, way, strings.Join(not, "; "))
	default:
		x.ok(name, "looked into %d: interface and addresses are there%s", s.looked, way)
	}
}

// survey is what was found in pods.
type survey struct {
	wanted, looked int    // pods
	ways           int    // that a pod's kernel was asked for
	flaws          []flaw // each once
	closed         []flaw // why pods could not be looked into
	whose          map[flaw][]control.Pod
}

// flaw is what is wrong inside a pod; the same in many is one finding.
type flaw struct{ text, remedy string }

// look looks into each pod that the plugin has made.
func look(ctx context.Context, pods []control.Pod, others []netip.Addr) (s survey) {
	s.whose = map[flaw][]control.Pod{}
	for _, p := range pods {
		if p.Attach == control.AttachRouted || p.Netns == "" || p.Phase != control.PhaseAttached || p.Problem != "" {
			continue
		}
		s.wanted++
		var found []flaw
		asked, err := 0, ctx.Err()
		if err == nil {
			found, asked, err = lookInto(p, pods, others)
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			err = fmt.Errorf("%w (doctor needs CAP_SYS_ADMIN for that)", err)
		}
		if err != nil {
			s.note(&s.closed, flaw{text: err.Error()}, p)
			continue
		}
		s.looked++
		s.ways += asked
		for _, f := range found {
			s.note(&s.flaws, f, p)
		}
	}
	return s
}

func (s *survey) note(list *[]flaw, f flaw, p control.Pod) {
	if s.whose[f] == nil {
		*list = append(*list, f)
	}
	s.whose[f] = append(s.whose[f], p)
}

// keep forgets what was found in pods that are not there any more.
func (s *survey) keep(now []control.Pod) {
	gone := map[string]bool{}
	for _, f := range s.flaws {
		s.whose[f] = slices.DeleteFunc(s.whose[f], func(p control.Pod) bool {
			there := slices.ContainsFunc(now, func(o control.Pod) bool {
				return o.Container == p.Container && o.Interface == p.Interface && o.NetnsID == p.NetnsID && o.Phase == p.Phase
			})
			if !there {
				gone[p.Container+"/"+p.Interface] = true
			}
			return !there
		})
	}
	s.flaws = slices.DeleteFunc(s.flaws, func(f flaw) bool { return len(s.whose[f]) == 0 })
	s.wanted -= len(gone)
	s.looked -= len(gone)
}

// names lists the pods with a flaw.
func (s *survey) names(f flaw) string {
	var names []string
	for _, p := range s.whose[f] {
		names = append(names, podName(p))
	}
	return listed(names)
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

// anew mends everything that is wrong inside a pod.
const anew = "delete the pod, its runtime makes it anew"

// within is how to mend it in place.
func within(format string, a ...any) string {
	return anew + "; or inside it (nsenter --net=PATH, by the path in penstockctl -o json pods): " + fmt.Sprintf(format, a...)
}

// lookInto compares a pod's namespace with its record, and tells for how many of others it has asked for a way. What cannot be read is an
// error, and no flaw.
func lookInto(p control.Pod, all []control.Pod, others []netip.Addr) (list []flaw, asked int, err error) {
	ns, err := control.OpenNetns(p.Netns, p.NetnsID)
	if err != nil {
		return nil, 0, err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, 0, fmt.Errorf("its network namespace cannot be entered: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(p.Interface)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return []flaw{{"there is no " + p.Interface + " in it any more", anew}}, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if kind := map[string]string{control.AttachVeth: "veth", control.AttachTUN: "tuntap"}[p.Attach]; link.Type() != kind {
		return nil, 0, fmt.Errorf("its %s is a device of kind %s by now, which the plugin has not made", p.Interface, link.Type())
	}
	if f := wire(link.Attrs(), p); f != (flaw{}) {
		return []flaw{f}, 0, nil
	}
	have, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, 0, err
	}
	var missing []string
	for _, a := range p.Addresses {
		if a.Is6() && !control.HasIPv6() {
			continue // the plugin has left it out
		}
		if !slices.ContainsFunc(have, func(b netlink.Addr) bool { return b.IP.Equal(a.AsSlice()) }) {
			missing = append(missing, a.String())
		}
	}
	if len(missing) > 0 {
		return []flaw{{fmt.Sprintf("%s has lost %s", p.Interface, strings.Join(missing, ", ")), anew}}, 0, nil
	}
	if link.Attrs().MasterIndex != 0 {
		return nil, 0, nil // of a VRF, whose routes are not the namespace's
	}
	for _, to := range others {
		i := slices.IndexFunc(p.Addresses, func(a netip.Addr) bool { return a.Is4() == to.Is4() })
		if i < 0 {
			continue // it has no address of the family
		}
		f, err := wayTo(h, p, all, link.Attrs().Index, p.Addresses[i], to)
		if err != nil {
			return nil, asked, err
		}
		asked++
		if f != (flaw{}) {
			list = append(list, f)
		}
	}
	return list, asked, nil
}

// wire looks whether packets get from the pod's interface to the daemon.
func wire(at *netlink.LinkAttrs, p control.Pod) flaw {
	switch {
	case at.Flags&net.FlagUp == 0:
		return flaw{p.Interface + " is down", anew + " (ip link set " + p.Interface + " up inside it does not bring its routes back)"}
	case p.Attach != control.AttachVeth:
		if at.RawFlags&unix.IFF_LOWER_UP == 0 {
			return flaw{p.Interface + " has no carrier: the daemon does not hold its queue, or something inside it has turned it off", anew}
		}
		return flaw{}
	case at.RawFlags&unix.IFF_LOWER_UP == 0:
		return flaw{fmt.Sprintf("%s has no carrier: its end on the node, %s, is down", p.Interface, p.Device), "ip link set " + p.Device + " up, on the node"}
	}
	// A packet that is larger than the node's end takes is dropped by the kernel, in front of the daemon.
	if end, err := netlink.LinkByName(p.Device); err == nil && at.MTU > end.Attrs().MTU {
		return unequal(at.MTU, end.Attrs().MTU, p)
	}
	return flaw{}
}

// unequal is a pod's interface with a larger MTU than its end on the node. Which of them to mend the pod's record says.
func unequal(mtu, end int, p control.Pod) flaw {
	var remedies []string
	if end < p.MTU {
		remedies = append(remedies, fmt.Sprintf("ip link set %s mtu %d, on the node", p.Device, p.MTU))
	}
	if mtu > p.MTU {
		remedies = append(remedies, within("ip link set %s mtu %d", p.Interface, p.MTU))
	}
	return flaw{fmt.Sprintf("%s has an MTU of %d and its end on the node %d: larger packets are lost without a word", p.Interface, mtu, end), strings.Join(remedies, "; then ")}
}

// wayTo asks the pod's kernel for the way from one of its addresses to another node's pod.
func wayTo(h *netlink.Handle, p control.Pod, all []control.Pod, index int, from, to netip.Addr) (flaw, error) {
	gateway, ip := control.Gateway4, "ip"
	if to.Is6() {
		gateway, ip = control.Gateway6, "ip -6"
	}
	look := within("%s route get %s from %s, %s rule and %s route show table all tell what decides: correct that", ip, to, from, ip, ip)
	siblings := slices.DeleteFunc(slices.Clone(all), func(o control.Pod) bool {
		return o.NetnsID != p.NetnsID || o.Interface == p.Interface || o.Attach == control.AttachRouted
	})
	routes, err := h.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{SrcAddr: from.AsSlice()})
	switch {
	case errors.Is(err, unix.ENETUNREACH) && len(siblings) == 0:
		return flaw{fmt.Sprintf("no route to other nodes' pods (%s)", to), within("%s route replace default via %s dev %s onlink", ip, gateway, p.Interface)}, nil
	case errors.Is(err, unix.ENETUNREACH):
		return flaw{fmt.Sprintf("no route to other nodes' pods (%s)", to), anew}, nil // each interface has a table and a rule
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL): // unreachable, prohibit, blackhole
		return flaw{fmt.Sprintf("a route or rule in it refuses what goes to other nodes' pods (%s)", to), look}, nil
	case err != nil || len(routes) == 0:
		return flaw{}, err
	}
	r := routes[0]
	if r.LinkIndex != index {
		l, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			return flaw{}, err
		}
		other := l.Attrs().Name
		if slices.ContainsFunc(siblings, func(o control.Pod) bool { return o.Interface == other }) {
			return flaw{fmt.Sprintf("what it sends from its address to other nodes' pods (%s) leaves by %s, not by %s, and is dropped as spoofed: its rule or routes were changed", to, other, p.Interface), anew}, nil
		}
		return flaw{}, nil // a VPN, say, in which somebody wants it
	}
	switch via, given := netip.AddrFromSlice(r.Gw); {
	case p.Attach != control.AttachVeth || via.Unmap() == gateway:
		return flaw{}, nil
	case !given:
		return flaw{fmt.Sprintf("its route to other nodes' pods (%s) has no gateway, so it asks for a neighbour that is not there", to), look}, nil
	default:
		return flaw{fmt.Sprintf("its route to other nodes' pods (%s) goes by %s, where nobody answers, and not by %s", to, via.Unmap(), gateway), look}, nil
	}
}
