package cni

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

const checkTimeout = 5 * time.Second

// check is CHECK: does the pod still have what prevResult says, and does the daemon agree? It collects what is wrong, and says
// all of it.
func check(args *skel.CmdArgs) error {
	c, err := readConf(args)
	if err != nil {
		return err
	}
	previous, err := c.previousResult()
	if err != nil {
		return err
	}
	if previous == nil {
		return invalid("CHECK needs the prevResult of ADD")
	}
	attach := c.Attach
	if attach == "" {
		attach = guessAttach(previous, args)
	}
	pod, err := openNetns(args.Netns)
	if err != nil {
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %s cannot be opened: %v", args.Netns, err)
	}
	defer pod.close()
	host, err := hostNetns()
	if err != nil {
		return fail(types.ErrInternal, "the plugin's own network namespace cannot be opened: %v", err)
	}
	defer host.close()

	var wrong []string
	mine, addresses := interfaceOf(previous, args)
	if attach != control.AttachRouted {
		wrong = append(wrong, checkPod(pod, mine, addresses, previous, c.CNIVersion == "1.1.0")...)
	}
	q := control.CheckRequest{Container: args.ContainerID, Interface: args.IfName, Network: c.Name, Attach: attach, Addresses: addresses}
	if attach == control.AttachVeth {
		q.Device = control.DeviceName(args.ContainerID, args.IfName)
		wrong = append(wrong, checkHostEnd(host, q.Device)...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	_, err = control.New(c.Socket).Check(ctx, q)
	if err != nil && !answered(err) {
		return fromDaemon(err)
	}
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	if len(wrong) > 0 {
		return fail(types.ErrInternal, "%s of container %s is not as ADD left it: %s", args.IfName, args.ContainerID, strings.Join(wrong, "; "))
	}
	if ipam := c.delegated(); ipam != "" && attach != control.AttachRouted {
		if _, err := delegate(ctx, ipam, "CHECK", asGiven(args.StdinData, args.Args)); err != nil {
			return delegateError(ipam, err)
		}
	}
	return nil
}

// guessAttach: CHECK has our own result in prevResult, so that there is one does not say "routed" as it does in ADD.
func guessAttach(r *current.Result, args *skel.CmdArgs) string {
	device := control.DeviceName(args.ContainerID, args.IfName)
	if slices.ContainsFunc(r.Interfaces, func(i *current.Interface) bool { return i.Sandbox == "" && i.Name == device }) {
		return control.AttachVeth
	}
	return control.AttachRouted
}

// interfaceOf finds the pod's interface and its addresses in a result.
func interfaceOf(r *current.Result, args *skel.CmdArgs) (*current.Interface, []netip.Addr) {
	index := slices.IndexFunc(r.Interfaces, func(i *current.Interface) bool { return i.Sandbox != "" && i.Name == args.IfName })
	var addresses []netip.Addr
	for _, ip := range r.IPs {
		if ip.Interface != nil && *ip.Interface != index {
			continue
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok && (a.Unmap().Is4() || hasIPv6()) {
			addresses = append(addresses, a.Unmap())
		}
	}
	if index < 0 {
		return &current.Interface{Name: args.IfName}, addresses
	}
	return r.Interfaces[index], addresses
}

// checkPod looks into the pod. Before CNI 1.1 a result does not say in which tables routes are.
func checkPod(pod *netns, want *current.Interface, addresses []netip.Addr, result *current.Result, tables bool) (wrong []string) {
	link, err := pod.route.LinkByName(want.Name)
	if err != nil {
		return []string{"the pod has no " + want.Name}
	}
	at := link.Attrs()
	if at.Flags&1 == 0 { // IFF_UP
		wrong = append(wrong, want.Name+" is down")
	}
	if want.Mac != "" && !strings.EqualFold(at.HardwareAddr.String(), want.Mac) { // tuning writes it as it was asked
		wrong = append(wrong, want.Name+" has the MAC "+at.HardwareAddr.String()+" and not "+want.Mac)
	}
	have, _ := pod.route.AddrList(link, netlink.FAMILY_ALL)
	for _, a := range addresses {
		if !slices.ContainsFunc(have, func(h netlink.Addr) bool { return h.IP.Equal(a.AsSlice()) }) {
			wrong = append(wrong, want.Name+" has lost the address "+a.String())
		}
	}
	for _, a := range addresses {
		if !slices.ContainsFunc(result.Routes, func(r *types.Route) bool { return isMainDefault(r, a) }) && !pod.answers(want.Name, at.Index, a) {
			wrong = append(wrong, "answers from "+a.String()+" do not leave by "+want.Name+", as its routing rule or table has gone")
		}
	}
	routes, _ := pod.route.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{LinkIndex: at.Index, Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	inTable := func(h netlink.Route, r *types.Route) bool {
		if r.Table == nil {
			return !tables || h.Table == unix.RT_TABLE_MAIN
		}
		return h.Table == cmp.Or(*r.Table, unix.RT_TABLE_MAIN)
	}
	for _, r := range result.Routes {
		gw, _ := netip.AddrFromSlice(r.GW)
		if gw = gw.Unmap(); gw != control.Gateway4 && gw != control.Gateway6 {
			continue // another plugin's
		}
		if !slices.ContainsFunc(routes, func(h netlink.Route) bool { return sameDst(h, r) && inTable(h, r) }) {
			wrong = append(wrong, "the pod has lost the route to "+prefixOf(r.Dst).String())
		}
	}
	return wrong
}

// isMainDefault is whether a route is the default route of an address's family, as the first interface of a pod has it.
func isMainDefault(r *types.Route, a netip.Addr) bool {
	return prefixOf(r.Dst) == allOf(a) && r.Table == nil && r.Priority == 0
}

func sameDst(have netlink.Route, want *types.Route) bool {
	if have.Dst == nil {
		return isDefault(&want.Dst)
	}
	return prefixOf(*have.Dst) == prefixOf(want.Dst)
}

func checkHostEnd(host *netns, device string) []string {
	link, err := host.route.LinkByName(device)
	switch {
	case err != nil:
		return []string{"the host end " + device + " is not there"}
	case link.Attrs().OperState != netlink.OperUp:
		return []string{"the host end " + device + " is " + link.Attrs().OperState.String()}
	}
	return nil
}

// asGiven is the configuration for the CHECK of an ipam plugin that has fixed addresses (static): it compares their gateways with those in
// prevResult, which are the daemon's there. Where it has a gateway for an address, by its configuration or by CNI_ARGS, prevResult gets that.
func asGiven(stdin []byte, cniArgs string) []byte {
	var conf map[string]any
	if json.Unmarshal(stdin, &conf) != nil {
		return stdin
	}
	ipam, _ := conf["ipam"].(map[string]any)
	previous, _ := conf["prevResult"].(map[string]any)
	configured, _ := ipam["addresses"].([]any)
	gateways := map[netip.Addr]any{}
	var given []netip.Prefix // with the host's part
	for _, c := range configured {
		m, _ := c.(map[string]any)
		s, _ := m["address"].(string)
		if p, err := netip.ParsePrefix(s); err == nil {
			given = append(given, p)
			gateways[p.Addr()] = m["gateway"]
		}
	}
	args := parseArgs(cniArgs)
	for _, s := range strings.Split(args["IP"], ",") {
		if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil {
			given = append(given, p)
		}
	}
	for _, s := range strings.Split(args["GATEWAY"], ",") {
		gw, err := netip.ParseAddr(strings.TrimSpace(s))
		for _, p := range given {
			if err == nil && p.Contains(gw) {
				gateways[p.Addr()] = gw.String()
			}
		}
	}
	ips, _ := previous["ips"].([]any)
	for _, i := range ips {
		ip, _ := i.(map[string]any)
		s, _ := ip["address"].(string)
		if a, err := parseAddress(s); err == nil && gateways[a] != nil {
			ip["gateway"] = gateways[a]
		}
	}
	b, err := json.Marshal(conf)
	if err != nil {
		return stdin
	}
	return b
}
