package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

// addrGenNone is IN6_ADDR_GEN_MODE_NONE: no link-local address, so no router solicitations, no MLD reports and no
// redirects of the kernel's own on a device on which nobody could understand them.
const addrGenNone = 1

// applyDevice brings our device up with its MTU and addresses. It removes no address: routes may still
// have a stale one as their source, and the kernel removes a route together with its source; applyRoutes finishes that.
func applyDevice(c *Config, r *Report) error {
	link, err := ownLink(c.Device)
	if err != nil {
		return err
	}
	a := link.Attrs()
	if c.MTU != 0 && a.MTU != c.MTU {
		if err := netlink.LinkSetMTU(link, c.MTU); err != nil {
			return fmt.Errorf("cannot set the MTU of %s to %d: %w", c.Device, c.MTU, err)
		}
		r.add("mtu %d on %s (was %d)", c.MTU, c.Device, a.MTU)
	}
	// Before it is up, or the kernel has made its link-local address by then.
	if err := withoutLinkLocal(c, link, r); err != nil {
		return err
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("cannot bring %s up: %w", c.Device, err)
		}
		r.add("%s up", c.Device)
	}
	return addAddresses(c, link, r)
}

// withoutLinkLocal sees to it that the kernel makes no link-local address, and takes away what it has made: a device that somebody had
// given an MTU under 1280 comes back into IPv6 with the kernel's defaults, when it is up already.
func withoutLinkLocal(c *Config, link netlink.Link, r *Report) error {
	mode, err := readSysctl("net", "ipv6", "conf", c.Device, "addr_gen_mode")
	up := link.Attrs().Flags&net.FlagUp != 0
	if err == nil && mode == addrGenNone || up && !c.has6() {
		return nil
	}
	// A kernel without IPv6 refuses.
	if err := netlink.LinkSetIP6AddrGenMode(link, addrGenNone); err != nil && c.has6() {
		return fmt.Errorf("cannot turn off IPv6 link-local addresses on %s: %w%s", c.Device, err, ipv6Hint(netip.IPv6Unspecified(), c.Device))
	}
	if !up {
		return nil
	}
	have, err := addresses(link)
	if err != nil {
		return err
	}
	for addr, a := range have {
		if !addr.Is6() || !addr.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("cannot remove the address %s from %s: %w", addr, c.Device, err)
		}
		r.remove("address %s on %s", addr, c.Device)
	}
	return nil
}

// ownLink finds our device. Anything but a TUN or TAP of that name belongs to somebody else and is not touched.
func ownLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", name, err)
	}
	if !isTUN(link) {
		return nil, fmt.Errorf("device %s is a %s and not a TUN, so it is not ours; rename it or set another host.device", name, link.Type())
	}
	return link, nil
}

func isTUN(link netlink.Link) bool { return link.Type() == "tuntap" || link.Type() == "tun" }

// nameBack gives our device its name back if somebody has renamed it: nothing here would find it, and a successor would make another
// beside it. By its index it is found as long as it is in this namespace.
func (h *Host) nameBack(r *Report) error {
	name := h.cfg.Device
	link, err := netlink.LinkByName(name)
	if err == nil {
		h.index = link.Attrs().Index
	}
	var missing netlink.LinkNotFoundError
	if !errors.As(err, &missing) || h.index == 0 {
		return nil // applyDevice says what is wrong
	}
	if link, err = netlink.LinkByIndex(h.index); err != nil || !isTUN(link) {
		return nil
	}
	was := link.Attrs().Name
	// Down for it, as older kernels rename nothing that is up; what it loses by that comes back by the steps that follow.
	if err = netlink.LinkSetDown(link); err == nil {
		err = netlink.LinkSetName(link, name)
	}
	if err != nil {
		return fmt.Errorf("our device %s was renamed to %s and cannot be named back: %w", name, was, err)
	}
	r.add("the name %s, for %s", name, was)
	return nil
}

func wantedAddresses(c *Config) map[netip.Addr]bool {
	want := make(map[netip.Addr]bool, len(c.PodCIDRs))
	for _, p := range c.PodCIDRs {
		want[FirstAddress(p)] = true
	}
	return want
}

func addAddresses(c *Config, link netlink.Link, r *Report) error {
	have, err := addresses(link)
	if err != nil {
		return err
	}
	for _, p := range c.PodCIDRs {
		first := FirstAddress(p)
		if _, ok := have[first]; ok {
			continue
		}
		a := &netlink.Addr{IPNet: hostNet(first), Scope: unix.RT_SCOPE_UNIVERSE}
		if first.Is6() {
			// No detection of duplicates: nobody else is on this link. No prefix route: a /128 to ourselves says nothing.
			a.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
		}
		if err := netlink.AddrAdd(link, a); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("cannot give %s the address %s: %w%s", c.Device, first, err, ipv6Hint(first, c.Device))
		}
		have[first] = *a
		r.add("address %s on %s", first, c.Device)
	}
	return nil
}

func ipv6Hint(a netip.Addr, device string) string {
	if a.Is4() {
		return ""
	}
	return fmt.Sprintf("; is IPv6 off (net.ipv6.conf.%s.disable_ipv6)?", device)
}

// removeStaleAddresses takes away every address of our device that no pod CIDR gives it. The device is ours alone.
func removeStaleAddresses(c *Config, link netlink.Link, r *Report) error {
	have, err := addresses(link)
	if err != nil {
		return err
	}
	want := wantedAddresses(c)
	var errs []error
	for _, addr := range sortedKeys(have) {
		a := have[addr]
		if addr.IsLinkLocalUnicast() || want[addr] && isHostNet(a.IPNet) {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("cannot remove the address %s from %s: %w", addr, c.Device, err))
			continue
		}
		r.remove("address %s on %s", addr, c.Device)
	}
	return errors.Join(errs...)
}

func addresses(link netlink.Link) (map[netip.Addr]netlink.Addr, error) {
	list, err := dump.All(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("cannot list the addresses of %s: %w", link.Attrs().Name, err)
	}
	out := make(map[netip.Addr]netlink.Addr, len(list))
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			out[addr.Unmap()] = a
		}
	}
	return out, nil
}

func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func isHostNet(n *net.IPNet) bool {
	ones, bits := n.Mask.Size()
	return ones == bits
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix is the inverse of ipNet; nil is the default route of the given family.
func prefix(n *net.IPNet, family int) netip.Prefix {
	if n == nil {
		if family == netlink.FAMILY_V4 {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if family == netlink.FAMILY_V4 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones)
}

func sortedKeys[V any](m map[netip.Addr]V) []netip.Addr {
	keys := make([]netip.Addr, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, netip.Addr.Compare)
	return keys
}
