package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/bench/load"
)

// TestMain looks at the machine before and after all tests: everything happens in namespaces, so nothing of ours may be outside of
// them, and no namespace, thread or process may be left.
func TestMain(m *testing.M) {
	load.Main() // floods come from processes of their own: bench/load starts this program again
	if lab.Possible() != nil {
		os.Exit(m.Run())
	}
	before := traces()
	code := m.Run()
	left := func() (lines []string) {
		for _, line := range traces() {
			if !slices.Contains(before, line) {
				lines = append(lines, line)
			}
		}
		return append(lines, lab.Leftovers()...)
	}
	lines := left()
	for end := time.Now().Add(15 * time.Second); len(lines) > 0 && time.Now().Before(end); lines = left() {
		time.Sleep(200 * time.Millisecond) // the kernel takes a namespace down behind its last user
	}
	for _, line := range lines {
		fmt.Fprintln(os.Stderr, "FAIL: the tests have left:", line)
		code = max(code, 1)
	}
	os.Exit(code)
}

// Names, addresses and files that only our tests use; the machine's own come and go.
var (
	oursInNet = regexp.MustCompile(`penstock|\bps[0-9a-f]{11}\b|\bcni0\b|CNI-|\b10\.244\.|fd00:10:244`)
	oursFiles = []string{"/run/penstock*", "/var/lib/penstock*", "/etc/cni/net.d/*", "/opt/cni/bin/penstock*", "/var/lib/cni/networks/penstock*", "/var/lib/cni/networks/suite*",
		"/sys/fs/bpf/penstock*"}
)

// traces are what of ours is in this process's network namespace and in the machine's directories.
func traces() (list []string) {
	add := func(format string, args ...any) {
		if line := fmt.Sprintf(format, args...); oursInNet.MatchString(line) {
			list = append(list, line)
		}
	}
	names := map[int]string{}
	links, _ := netlink.LinkList()
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		add("device %s", l.Attrs().Name)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addresses, _ := netlink.AddrList(nil, family)
		for _, a := range addresses {
			add("address %s on %s", a.IPNet, names[a.LinkIndex])
		}
		routes, _ := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			add("route to %v by %v on %s", r.Dst, r.Gw, names[r.LinkIndex])
		}
		rules, _ := netlink.RuleList(family)
		for _, r := range rules {
			add("rule %s", r)
		}
	}
	if c, err := nftables.New(); err == nil {
		chains, _ := c.ListChains()
		for _, ch := range chains {
			add("nft chain %s of table %s", ch.Name, ch.Table.Name)
		}
	}
	for _, pattern := range oursFiles {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			list = append(list, "file "+f)
		}
	}
	return list
}
