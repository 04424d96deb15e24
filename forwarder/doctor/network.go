package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostlook"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"golang.org/x/sys/unix"
)

// network looks at the host's stack, as this process sees it.
func (x *examination) network(ctx context.Context) {
	checks := []struct {
		name string
		look func(context.Context)
	}{{"underlay", x.checkUnderlay}, {"duplicate-address", x.duplicate}, {"host-routes", x.hostRoutes}, {"forwarding", x.sysctls}, {"br_netfilter", x.bridge}, {"firewall", x.firewall}, {"policy-agents", x.policies}, {"tunnel-port", x.port}}
	for _, c := range checks {
		switch {
		case x.away == "":
			c.look(ctx)
		case c.name == "forwarding":
			for _, n := range []string{"forwarding", "rp_filter", "sysctls"} {
				x.skip(n, "%s", x.away)
			}
		default:
			x.skip(c.name, "%s", x.away)
		}
	}
}

func (x *examination) checkUnderlay(context.Context) {
	u := x.underlay
	unusable, remedy := u.Unusable()
	switch {
	case !x.address.IsValid() && !x.up && x.badConfig != nil:
		x.skip("underlay", "neither the daemon nor a valid configuration says the node's address")
	case !x.address.IsValid():
		x.add("underlay", Failure, "set node.address", "this node has no default route to take its address from")
	case x.noUnderlay != nil:
		x.add("underlay", Failure, fmt.Sprintf("give the address back to its device, or set node.address to one that this node has: ip address add %s dev …", x.address), "no device of this node holds %s", x.address)
	case !u.Up:
		x.add("underlay", Failure, "ip link set "+u.Device+" up", "%s, which holds %s, is down", u.Device, x.address)
	case unusable != "":
		x.add("underlay", Failure, remedy, "%s on %s cannot be used, as %s", x.address, u.Device, unusable)
	case x.up && x.status.UnderlayMTU != u.MTU:
		x.add("underlay", Warning, "see what the daemon's log says about the underlay", "%s has an MTU of %d, and the daemon goes by %d", u.Device, u.MTU, x.status.UnderlayMTU)
	case x.byRoute != "":
		x.add("underlay", Warning, fmt.Sprintf("set node.address: %s in %s", x.address, x.path),
			"%s on %s is up, but node.address is not set and %s: the address is kept only as long as pods are on record, and peers know no other", x.address, u.Device, x.byRoute)
	default:
		x.ok("underlay", "%s on %s is up, MTU %d", x.address, u.Device, u.MTU)
	}
}

func (x *examination) duplicate(ctx context.Context) {
	if x.noUnderlay != nil || !x.address.IsValid() || !x.underlay.Up {
		x.skip("duplicate-address", "without the node's address nobody can be asked")
		return
	}
	if !x.underlay.Ethernet {
		x.skip("duplicate-address", "%s is no Ethernet device", x.underlay.Device)
		return
	}
	mac, err := hostlook.FindDuplicate(ctx, x.underlay)
	switch {
	case errors.Is(err, unix.EPERM):
		x.skip("duplicate-address", "asking needs CAP_NET_RAW: run as root")
	case err != nil:
		x.skip("duplicate-address", "%v", err)
	case mac != nil:
		x.add("duplicate-address", Failure, "find that machine (its MAC stands in your switch or hypervisor) and give it another address",
			"another machine, %s, answers for %s on %s: each of you gets a part of what is meant for both", mac, x.address, x.underlay.Device)
	default:
		x.ok("duplicate-address", "nobody else on %s answers for %s", x.underlay.Device, x.address)
	}
}

// sysctls sorts what hostnet finds under three names.
func (x *examination) sysctls(context.Context) {
	if _, err := os.Stat("/proc/sys/net/ipv4/conf/" + x.device); err != nil && !x.up {
		for _, n := range []string{"forwarding", "rp_filter", "sysctls"} {
			x.skip(n, "there is no %s: the daemon makes it, and sets what it needs", x.device)
		}
		return
	}
	found := map[string]bool{}
	for _, f := range (hostnet.Sysctls{Device: x.device, Uplink: x.underlay.Device, IPv4: x.ipv4, IPv6: x.ipv6}).Check() {
		name := "sysctls"
		switch {
		case strings.HasSuffix(f.Subject, "forward") || strings.HasSuffix(f.Subject, "forwarding"):
			name = "forwarding"
		case strings.HasSuffix(f.Subject, "rp_filter"):
			name = "rp_filter"
		}
		found[name] = true
		r := Warning
		if f.Severity == hostnet.Failure {
			r = Failure
		}
		x.add(name, r, f.Remedy, "%s: %s", f.Subject, f.Problem)
	}
	for _, n := range []string{"forwarding", "rp_filter", "sysctls"} {
		if !found[n] {
			x.ok(n, "as the data path needs them")
		}
	}
}

// bridge: a Service's address is translated on the way through iptables, which the frames of a bridge pass only with
// br_netfilter. Pods on veth and tun have no bridge.
func (x *examination) bridge(context.Context) {
	behind := 0
	for _, p := range x.pods {
		if p.Attach == control.AttachRouted {
			behind++
		}
	}
	if behind == 0 {
		x.skip("br_netfilter", "no pod is attached behind another plugin's bridge")
		return
	}
	for _, key := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		if strings.HasSuffix(key, "ip6tables") && !x.ipv6 || strings.HasSuffix(key, "-iptables") && !x.ipv4 {
			continue
		}
		b, err := os.ReadFile("/proc/sys/net/bridge/" + key)
		if err != nil || strings.TrimSpace(string(b)) != "1" {
			x.add("br_netfilter", Warning, "modprobe br_netfilter && sysctl -w net.bridge."+key+"=1",
				"net.bridge.%s is not 1: if the %d routed pods are behind a bridge, a Service whose backend is on the same bridge does not answer them", key, behind)
			return
		}
	}
	x.ok("br_netfilter", "is on, for %d routed pods", behind)
}

func (x *examination) firewall(context.Context) {
	if len(x.tunnels) == 0 || x.underlay.Device == "" {
		x.skip("firewall", "there is no peer, or no underlay, to ask about")
		return
	}
	var sure, may []string
	for _, t := range x.tunnels {
		for _, out := range []bool{false, true} {
			p := hostlook.Packet{Tunnel: t.Tunnel, Source: t.from, Dst: x.address, Device: x.underlay.Device, Out: out, Tracked: !x.up}
			if out {
				p.Source, p.Dst = p.Dst, p.Source
			}
			v, err := hostlook.AskFirewall(p)
			if err != nil {
				x.skip("firewall", "%v", err)
				return
			}
			way := fmt.Sprintf("%s from the peers", t.Tunnel)
			if out {
				way = fmt.Sprintf("%s to the peers", t.Tunnel)
			}
			if len(v.Drops) > 0 {
				sure = append(sure, fmt.Sprintf("%s: %s", way, strings.Join(v.Drops, ", ")))
			} else if len(v.May) > 0 {
				may = append(may, fmt.Sprintf("%s: %s", way, strings.Join(v.May, ", ")))
			}
		}
	}
	t := x.tunnels[0].Tunnel
	match := fmt.Sprintf("udp dport %d", t.Port)
	if t.Proto != unix.IPPROTO_UDP {
		match = fmt.Sprintf("meta l4proto %d", t.Proto)
	}
	remedy := fmt.Sprintf("accept it before that rule: nft insert rule … %s accept, or the same in iptables or firewalld", match)
	heard := slices.ContainsFunc(x.peers, func(p control.Peer) bool { return p.LastSeen != nil || p.Rejected != nil })
	switch {
	case len(sure) > 0:
		x.add("firewall", Failure, remedy, "this node drops its own tunnel: %s", strings.Join(sure, "; "))
	case len(may) > 0 && !heard:
		x.add("firewall", Warning, remedy, "no peer was ever heard, and a rule that is not understood may drop the tunnel: %s", strings.Join(may, "; "))
	default:
		x.ok("firewall", "no rule of this node drops the tunnel")
	}
}

func (x *examination) policies(context.Context) {
	agents, err := hostlook.PolicyAgents()
	if err != nil {
		x.skip("policy-agents", "%v", err)
		return
	}
	if len(agents) == 0 {
		x.ok("policy-agents", "none filters in FORWARD")
		return
	}
	past := 0
	for _, p := range x.pods {
		if p.Attach != control.AttachRouted {
			past++
		}
	}
	who := strings.Join(agents, ", ")
	if past == 0 && len(x.pods) > 0 {
		x.ok("policy-agents", "%s filters in FORWARD, and all %d pods are routed, so they pass there", who, len(x.pods))
		return
	}
	x.add("policy-agents", Failure, "attach pods as routed (penstockctl cni install --chained), or use an agent that works in the pods' own namespaces",
		"%s filters pods in iptables FORWARD, which packets of veth and tun pods never pass (%d of them here): network policies do not hold for them", who, past)
}

func (x *examination) port(context.Context) {
	var trouble, later []string
	for _, t := range x.tunnels {
		if t.Proto != unix.IPPROTO_UDP {
			continue
		}
		who, asleep, err := hostlook.PortHolders(t.Port, x.runs)
		if err != nil {
			x.skip("tunnel-port", "%v", err)
			return
		}
		for _, w := range who {
			trouble = append(trouble, fmt.Sprintf("%s holds UDP port %d", w, t.Port))
		}
		for _, w := range asleep {
			later = append(later, fmt.Sprintf("%s is down, and would hold UDP port %d if it were set up", w, t.Port))
		}
	}
	const remedy = "stop it, or remove its device (ip link del …, for flannel's after flanneld has gone)"
	switch {
	case len(trouble) > 0:
		x.add("tunnel-port", Failure, remedy, "%s, which the tunnel needs", strings.Join(trouble, ", "))
	case len(later) > 0 && !x.runs: // once the daemon has the port, nobody can take it
		x.add("tunnel-port", Warning, remedy, "%s, which the tunnel needs", strings.Join(later, ", "))
	case len(x.tunnels) == 0:
		x.skip("tunnel-port", "there is no peer, so no tunnel")
	case x.runs:
		x.ok("tunnel-port", "the daemon holds it")
	default:
		x.ok("tunnel-port", "nobody holds it")
	}
}
