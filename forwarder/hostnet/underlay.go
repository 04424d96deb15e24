package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

var (
	// ErrNoAddress says that no device of this host holds the address.
	ErrNoAddress = errors.New("no device holds this address")
	// ErrNoDefaultRoute says that the node's address cannot be guessed.
	ErrNoDefaultRoute = errors.New("there is no default route to take the node's address from; set node.address")
)

// An Underlay is the device that holds the node's address, as far as it matters to us.
type Underlay struct {
	Address  netip.Addr
	Device   string
	Index    int
	MTU      int // bytes, as LinkMTU; of the device by which packets leave, where the address is on lo
	Up       bool
	Ethernet bool
	MAC      [6]byte // zero if not Ethernet
	TSO, USO bool    // it takes TCP superframes, or UDP ones, uncut; false where it does not say, or was not asked

	Tentative, Duplicate bool // IPv6: detection of duplicates goes on, or has found one
}

// Unusable says why nothing can be sent from the address although the device has it, and what to do; "" if it can.
func (u Underlay) Unusable() (why, remedy string) {
	switch {
	case u.Duplicate:
		return "duplicate address detection has failed, so another machine has it or had it", "take it from that machine, then delete it here and add it again"
	case u.Tentative:
		return "duplicate address detection is still going on", "wait for its end, a second or two"
	}
	return "", ""
}

// detection is what an address's flags say of the detection of duplicates.
func detection(flags int) (tentative, duplicate bool) {
	duplicate = flags&unix.IFA_F_DADFAILED != 0
	return !duplicate && flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_OPTIMISTIC) == unix.IFA_F_TENTATIVE, duplicate
}

// DefaultAddress returns the address of the device with the best default route: IPv4, or else IPv6.
func DefaultAddress() (netip.Addr, error) {
	none := ErrNoDefaultRoute
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := mainRoutes(family)
		if err != nil {
			if family == netlink.FAMILY_V6 {
				break // a kernel without IPv6
			}
			return netip.Addr{}, err
		}
		best := bestDefault(routes, family)
		if best == nil {
			continue
		}
		if src, ok := netip.AddrFromSlice(best.Src); ok {
			return src.Unmap(), nil
		}
		index := best.LinkIndex
		if index == 0 && len(best.MultiPath) > 0 {
			index = best.MultiPath[0].LinkIndex
		}
		u := globalAddress(index, family)
		if why, remedy := u.Unusable(); why != "" {
			none = fmt.Errorf("%s, to which the default route leads, cannot be used, as %s: %s", u.Address, why, remedy)
		} else if u.Address.IsValid() {
			return u.Address, nil
		}
	}
	return netip.Addr{}, none
}

// globalAddress returns the address by which a device's host is best known: of global scope, not secondary, temporary or on its way out.
// One that cannot be used is returned if there is none that can. Without any the Address is invalid.
func globalAddress(index, family int) (best Underlay) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return best
	}
	list, err := dump.All(func() ([]netlink.Addr, error) { return netlink.AddrList(link, family) })
	if err != nil {
		return best
	}
	for _, a := range list {
		// IFA_F_SECONDARY and IFA_F_TEMPORARY are one bit: a second IPv4 address or an IPv6 privacy address.
		const no = unix.IFA_F_SECONDARY | unix.IFA_F_DEPRECATED
		if a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&no != 0 {
			continue
		}
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			best = Underlay{Address: addr.Unmap()}
			if best.Tentative, best.Duplicate = detection(a.Flags); !best.Tentative && !best.Duplicate {
				return best
			}
		}
	}
	return best
}

// FindUnderlay finds the device that holds addr; ErrNoAddress if none does.
func FindUnderlay(addr netip.Addr) (Underlay, error) {
	addr = addr.Unmap().WithZone("")
	family := netlink.FAMILY_V4
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := dump.All(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
	if err != nil {
		return Underlay{}, fmt.Errorf("cannot list addresses: %w", err)
	}
	for _, a := range list {
		have, ok := netip.AddrFromSlice(a.IP)
		if !ok || have.Unmap() != addr {
			continue
		}
		link, err := netlink.LinkByIndex(a.LinkIndex)
		if err != nil {
			var gone netlink.LinkNotFoundError
			if errors.As(err, &gone) {
				continue // with its address
			}
			return Underlay{}, fmt.Errorf("cannot look at the device that holds %s: %w", addr, err)
		}
		at := link.Attrs()
		u := Underlay{Address: addr, Device: at.Name, Index: at.Index, MTU: LinkMTU(link, addr.Is6()), Up: at.Flags&net.FlagUp != 0,
			Ethernet: at.EncapType == "ether" && len(at.HardwareAddr) == 6}
		if u.Ethernet {
			copy(u.MAC[:], at.HardwareAddr)
		}
		u.Tentative, u.Duplicate = detection(a.Flags)
		if at.Flags&net.FlagLoopback != 0 {
			if u.MTU, err = leavingMTU(family); err != nil {
				return Underlay{}, err
			}
		}
		return u, nil
	}
	return Underlay{}, fmt.Errorf("%s: %w", addr, ErrNoAddress)
}

// leavingMTU is the MTU that a node has to count with whose address is on lo, as where it is announced to the network (BGP): the least of the
// devices of the best default route, else 1500. Peers that the route by a device of less leads to are learned.
func leavingMTU(family int) (int, error) {
	routes, err := mainRoutes(family)
	if err != nil {
		return 0, err
	}
	best := bestDefault(routes, family)
	if best == nil {
		return 1500, nil
	}
	indexes := []int{best.LinkIndex}
	for _, hop := range best.MultiPath {
		indexes = append(indexes, hop.LinkIndex)
	}
	mtu := 0
	for _, i := range indexes {
		l, err := netlink.LinkByIndex(i)
		if err != nil || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if n := LinkMTU(l, family == netlink.FAMILY_V6); mtu == 0 || n < mtu {
			mtu = n
		}
	}
	if mtu == 0 {
		return 1500, nil
	}
	return mtu, nil
}

// LinkMTU is the largest packet of a family that a device sends: of IPv6 what the link's router has announced, if that is less than the
// device's own, as it binds all nodes on the link (RFC 4861, section 4.6.4).
func LinkMTU(link netlink.Link, v6 bool) int {
	at := link.Attrs()
	if !v6 {
		return at.MTU
	}
	if announced, err := readSysctl("net", "ipv6", "conf", at.Name, "mtu"); err == nil {
		return min(at.MTU, announced)
	}
	return at.MTU
}

// bestDefault is the default route that the kernel prefers; nil: there is none.
func bestDefault(routes []netlink.Route, family int) (best *netlink.Route) {
	for i := range routes {
		rt := &routes[i]
		if prefix(rt.Dst, family).Bits() == 0 && rt.Type == unix.RTN_UNICAST && (best == nil || rt.Priority < best.Priority) {
			best = rt
		}
	}
	return best
}

// FindUplink is FindUnderlay that asks as well what the device takes uncut. That is three requests more under the lock of all
// devices, where a watcher looks after each change of any device: only for whoever wants to know.
func FindUplink(addr netip.Addr) (Underlay, error) {
	u, err := FindUnderlay(addr)
	if err == nil {
		u.TSO, u.USO, err = cuts(u.Device, addr.Unmap().Is6())
	}
	if err != nil {
		return Underlay{}, err
	}
	return u, nil
}

// cuts says which superframes of a family a device takes uncut. That we have no descriptor left to ask with is an error: taken for an
// answer it would hold until the device changes.
func cuts(device string, v6 bool) (tso, uso bool, err error) {
	e, err := ethtool.NewEthtool()
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return false, false, fmt.Errorf("cannot ask what %s takes uncut: %w", device, err)
	}
	if err != nil {
		return false, false, nil
	}
	defer e.Close()
	on, err := e.Features(device)
	if err != nil {
		return false, false, nil
	}
	if v6 {
		return on["tx-tcp6-segmentation"], on["tx-udp-segmentation"], nil
	}
	return on["tx-tcp-segmentation"], on["tx-udp-segmentation"], nil
}
