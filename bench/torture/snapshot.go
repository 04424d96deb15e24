package torture

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// snapshot is everything that a pod could leave on a node, a line each, by kind.
type snapshot map[string][]string

// kinds, in the order in which they are printed.
var kinds = []string{"links", "addresses", "routes", "rules", "neighbours", "nft", "state files", "pending files", "descriptors"}

// snapshot looks at the node.
func (x *torture) snapshot() snapshot {
	s := snapshot{}
	h := x.n.Netlink()
	links, _ := h.LinkList()
	name := map[int]string{0: "-"}
	for _, l := range links {
		name[l.Attrs().Index] = l.Attrs().Name
		s.add("links", l.Attrs().Name+" "+l.Type())
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addresses, _ := h.AddrList(nil, family)
		for _, a := range addresses {
			s.add("addresses", name[a.LinkIndex]+" "+a.IPNet.String())
		}
		routes, _ := h.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		local, _ := h.RouteListFiltered(family, &netlink.Route{Table: 255}, netlink.RT_FILTER_TABLE)
		for _, r := range append(routes, local...) {
			s.add("routes", fmt.Sprintf("table %d %v dev %s via %v", r.Table, r.Dst, name[r.LinkIndex], r.Gw))
		}
		rules, _ := h.RuleList(family)
		for _, r := range rules {
			s.add("rules", fmt.Sprintf("%d %s", family, r.String()))
		}
		for index, n := range name {
			if n == "-" || n == "eth0" { // the underlay has its own comings and goings
				continue
			}
			neighbours, _ := h.NeighList(index, family)
			for _, e := range neighbours {
				if e.State != netlink.NUD_NOARP {
					s.add("neighbours", fmt.Sprintf("%s %s %s", n, e.IP, e.HardwareAddr))
				}
			}
			proxies, _ := h.NeighProxyList(index, family)
			for _, e := range proxies {
				s.add("neighbours", fmt.Sprintf("%s proxy %s", n, e.IP))
			}
		}
	}
	x.n.Nftables(func(c *nftables.Conn) error {
		tables, _ := c.ListTables()
		for _, t := range tables {
			s.add("nft", fmt.Sprintf("table %d %s", t.Family, t.Name))
		}
		chains, _ := c.ListChains()
		for _, ch := range chains {
			rules, _ := c.GetRules(ch.Table, ch)
			s.add("nft", fmt.Sprintf("chain %s %s with %d rules", ch.Table.Name, ch.Name, len(rules)))
		}
		return nil
	})
	s.files("state files", x.stateDir())
	s.files("pending files", control.PendingDir(x.n.Daemon.Socket))
	s.descriptors(x.n.Daemon)
	for _, l := range s {
		slices.Sort(l)
	}
	return s
}

// settled is the snapshot of a node on which nothing changes by itself any more: the daemon takes its time with the uplink.
func (x *torture) settled() snapshot {
	s := x.snapshot()
	for calm := 0; calm < 3; calm++ {
		time.Sleep(300 * time.Millisecond)
		next := x.snapshot()
		if len(next.more(s)) > 0 {
			calm = -1
		}
		s = next
	}
	return s
}

func (s snapshot) add(kind, line string) { s[kind] = append(s[kind], line) }

func (s snapshot) files(kind, dir string) {
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			s.add(kind, path)
		}
		return nil
	})
}

var numbers = regexp.MustCompile(`[0-9]+`)

// descriptors of the daemon, by what they lead to.
func (s snapshot) descriptors(d *lab.Daemon) {
	if d.Process.Exited() {
		return
	}
	dir := fmt.Sprintf("/proc/%d/fd", d.Process.Pid())
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			s.add("descriptors", numbers.ReplaceAllString(to, "N"))
		}
	}
}

// more lists what is in s and was not in before, and the other way round.
func (s snapshot) more(before snapshot) (list []string) {
	for _, kind := range kinds {
		extra, missing := difference(s[kind], before[kind]), difference(before[kind], s[kind])
		for _, l := range extra {
			list = append(list, kind+": "+l)
		}
		for _, l := range missing {
			list = append(list, kind+": missing: "+l)
		}
	}
	return list
}

// leaked counts by kind what is more than before.
func (s snapshot) leaked(before snapshot) string {
	var parts []string
	for _, kind := range kinds {
		parts = append(parts, fmt.Sprintf("%d %s", len(difference(s[kind], before[kind])), kind))
	}
	return strings.Join(parts, ", ")
}

// difference of two sorted multisets.
func difference(a, b []string) (list []string) {
	b = slices.Clone(b)
	for _, l := range a {
		if i := slices.Index(b, l); i >= 0 {
			b = slices.Delete(b, i, i+1)
		} else {
			list = append(list, l)
		}
	}
	return list
}
