// Package advertised says which devices of a host have to go on taking router advertisements when it begins to forward IPv6. It is apart
// from hostnet as the plugin turns forwarding on as well, and links little.
//
// A host that forwards believes router advertisements only with accept_ra 2 (Documentation/networking/ip-sysctl.rst), and with 1 its
// addresses and default route expire. With 2 for everybody it would for ever believe those that other plugins' pods send to their host
// ends and bridges, and send them what is for the outside (as in CVE-2020-10749).
package advertised

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

// Devices lists those with accept_ra 1 that need 2 before the host forwards: what has an address or a route from a router, and the uplinks,
// which may get one yet: the one given, if any, and what a default route of IPv4 or IPv6 leaves by.
func Devices(uplink string) (list []string, err error) {
	files, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	var u *uses
	for _, file := range files {
		dir := filepath.Dir(file)
		device := filepath.Base(dir)
		if slices.Contains([]string{"all", "default", "lo"}, device) || read(file) != "1" || read(filepath.Join(dir, "disable_ipv6")) != "0" {
			continue
		}
		if u == nil {
			if u, err = look(); err != nil {
				return nil, err
			}
		}
		if link, err := netlink.LinkByName(device); err == nil && (device == uplink || u.lives[link.Attrs().Index] || u.leaves[link.Attrs().Index]) {
			list = append(list, device)
		}
	}
	return list, nil
}

// Lives reports whether device has an IPv6 address that expires, or a route from router advertisements.
func Lives(device string) bool {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return false
	}
	u, err := look()
	return err == nil && u.lives[link.Attrs().Index]
}

// uses is what devices are there for, by index.
type uses struct {
	lives  map[int]bool // by what a router announces
	leaves map[int]bool // a default route leaves by it
}

func look() (*uses, error) {
	u := &uses{map[int]bool{}, map[int]bool{}}
	addrs, err := dump.All(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V6) })
	if err != nil {
		return nil, fmt.Errorf("cannot list the IPv6 addresses: %w", err)
	}
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unix.IFA_F_PERMANENT == 0 {
			u.lives[a.LinkIndex] = true
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := dump.All(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("cannot list the routes of the main table: %w", err)
		}
		for _, r := range routes {
			if family == netlink.FAMILY_V6 && r.Protocol == unix.RTPROT_RA {
				u.lives[r.LinkIndex] = true
			}
			if !toAll(r) {
				continue
			}
			u.leaves[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				u.leaves[hop.LinkIndex] = true
			}
		}
	}
	return u, nil
}

func toAll(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// read is empty for what has gone.
func read(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}
