package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostlook"
)

// bundleHost adds what this machine's stack looks like to this process.
func (b *bundle) bundleHost() {
	links, err := netlink.LinkList()
	names := map[int]string{}
	var devices []any
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		device := map[string]any{"name": a.Name, "index": a.Index, "type": l.Type(), "mtu": a.MTU, "flags": a.Flags.String(), "state": a.OperState.String(),
			"mac": a.HardwareAddr.String(), "txQueueLen": a.TxQLen, "group": a.Group, "master": a.MasterIndex, "gsoMaxSize": a.GSOMaxSize}
		if s := a.Statistics; s != nil {
			device["statistics"] = s
		}
		devices = append(devices, device)
	}
	b.value("links.json", devices, err)

	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	var addresses []any
	for _, a := range list {
		addresses = append(addresses, map[string]any{"device": names[a.LinkIndex], "address": a.IPNet.String(), "scope": a.Scope, "flags": a.Flags})
	}
	b.value("addresses.json", addresses, err)

	var routes, neighbours []any
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		errs = append(errs, err)
		for _, r := range list {
			o := map[string]any{"device": names[r.LinkIndex], "table": r.Table, "protocol": int(r.Protocol), "metric": r.Priority, "type": r.Type, "to": "default"}
			if r.Dst != nil {
				o["to"] = r.Dst.String()
			}
			if r.Gw != nil {
				o["via"] = r.Gw.String()
			}
			if r.Src != nil {
				o["source"] = r.Src.String()
			}
			routes = append(routes, o)
		}
		found, err := netlink.NeighList(0, family)
		errs = append(errs, err)
		for _, n := range found {
			neighbours = append(neighbours, map[string]any{"device": names[n.LinkIndex], "address": n.IP.String(), "mac": n.HardwareAddr.String(), "state": n.State})
		}
	}
	b.value("ip-routes.json", routes, errors.Join(errs...))
	b.value("neighbours.json", neighbours, nil)

	qdiscs, filters, err := traffic(links, names)
	b.value("qdiscs.json", qdiscs, err)
	b.value("tc-filters.json", filters, err)

	tables, err := hostlook.DumpTables()
	b.text("nft.txt", tables, err)
	b.text("sysctls.txt", sysctls(links), nil)
}

// traffic is every qdisc, and the filters of clsact: what somebody else has put there may hold, drop or redirect what is ours.
func traffic(links []netlink.Link, names map[int]string) (qdiscs, filters []any, err error) {
	list, err := netlink.QdiscList(nil)
	for _, q := range list {
		a := q.Attrs()
		o := map[string]any{"device": names[a.LinkIndex], "type": q.Type(), "handle": netlink.HandleStr(a.Handle), "parent": netlink.HandleStr(a.Parent)}
		if a.Statistics != nil {
			o["statistics"] = a.Statistics
		}
		qdiscs = append(qdiscs, o)
	}
	errs := []error{err}
	for _, l := range links {
		for _, side := range []struct {
			name   string
			parent uint32
		}{{"ingress", netlink.HANDLE_MIN_INGRESS}, {"egress", netlink.HANDLE_MIN_EGRESS}} {
			list, err := netlink.FilterList(l, side.parent)
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // those: it has no clsact
				errs = append(errs, fmt.Errorf("filters at the %s of %s: %w", side.name, l.Attrs().Name, err))
			}
			for _, f := range list {
				filters = append(filters, map[string]any{"device": l.Attrs().Name, "type": f.Type(), "side": side.name, "filter": f})
			}
		}
	}
	return qdiscs, filters, errors.Join(errs...)
}

// sysctls are those that the data path or its neighbours depend on.
func sysctls(links []netlink.Link) string {
	keys := []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/all/disable_ipv6", "net/ipv4/conf/all/rp_filter", "net/core/rmem_max", "net/core/wmem_max",
		"net/core/netdev_max_backlog", "net/core/bpf_jit_enable", "net/ipv4/ip_local_port_range", "net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_events",
		"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "user/max_net_namespaces"}
	for _, l := range links {
		name := l.Attrs().Name
		keys = append(keys, "net/ipv4/conf/"+name+"/forwarding", "net/ipv4/conf/"+name+"/rp_filter", "net/ipv6/conf/"+name+"/forwarding", "net/ipv6/conf/"+name+"/disable_ipv6", "net/ipv6/conf/"+name+"/accept_ra")
	}
	sort.Strings(keys)
	var b strings.Builder
	for _, k := range keys {
		v, err := os.ReadFile(filepath.Join("/proc/sys", k))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			fmt.Fprintf(&b, "%s is not there\n", k)
		case err != nil:
			fmt.Fprintf(&b, "%s cannot be read: %v\n", k, err)
		default:
			fmt.Fprintf(&b, "%s = %s\n", k, strings.TrimSpace(string(v)))
		}
	}
	return b.String()
}

func versions() string {
	var b strings.Builder
	fmt.Fprintf(&b, "penstockctl %s, %s, %s/%s\n", control.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		fmt.Fprintf(&b, "%s %s %s %s\n", unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), unix.ByteSliceToString(u.Machine[:]))
	}
	release, _ := os.ReadFile("/etc/os-release") // may be missing
	for line := range strings.Lines(string(release)) {
		if strings.HasPrefix(line, "PRETTY_NAME=") {
			b.WriteString(line)
		}
	}
	return b.String()
}
