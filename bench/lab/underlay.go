package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kind is how the underlay treats superframes (design section 4). A bare veth passes them uncut and so
// hides what a NIC does.
type Kind int

const (
	Whole Kind = iota // the veth as it is
	TSO               // TCP superframes pass, tunnels and UDP runs are cut, receipt coalesces
	Cut               // every superframe is cut, receipt coalesces
)

func (k Kind) String() string { return [...]string{"whole", "tso", "cut"}[k] }

// wire connects the nodes and gives them addresses and default routes.
func (l *Lab) wire() error {
	c := l.Config
	if c.Wiring == Direct {
		a, b := l.Nodes[0], l.Nodes[1]
		if err := vethPair(a.NS, "eth0", b.NS, "eth0", c.MTU); err != nil {
			return err
		}
		a.uplinkPeer, b.uplinkPeer = "eth0", "eth0"
	} else if err := l.wireFabric(); err != nil {
		return err
	}
	for _, n := range l.Nodes {
		if err := n.NS.address("eth0", netip.PrefixFrom(n.IP4, 24), netip.PrefixFrom(n.IP6, 64)); err != nil {
			return err
		}
		if err := n.NS.up("eth0"); err != nil {
			return err
		}
	}
	for _, n := range l.Nodes {
		if c.Wiring != Direct {
			if err := n.NS.defaultRoutes("eth0", n.gateway4, n.gateway6); err != nil {
				return err
			}
		}
		if err := n.setKind(c.Kind); err != nil {
			return err
		}
	}
	return nil
}

// wireFabric makes the namespace in the middle: a bridge that is also the segment's router, or a router only.
func (l *Lab) wireFabric() error {
	c := l.Config
	fabric, err := newNS("fabric")
	if err != nil {
		return fmt.Errorf("lab: namespace of the fabric: %w", err)
	}
	l.Fabric = fabric
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"} {
		if err := fabric.sysctl(key, "1"); err != nil {
			return err
		}
	}
	var bridge netlink.Link
	if c.Wiring == Bridged {
		off := false // a segment of a few machines needs no multicast snooping, and ND must work from the first packet
		b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", MTU: c.MTU}, MulticastSnooping: &off}
		if err := fabric.route.LinkAdd(b); err != nil {
			return fmt.Errorf("lab: bridge of the fabric: %w", err)
		}
		bridge = b
	}
	for i, n := range l.Nodes {
		n.uplinkPeer = fmt.Sprintf("n%d", i)
		if err := vethPair(fabric, n.uplinkPeer, n.NS, "eth0", c.MTU); err != nil {
			return err
		}
		if bridge != nil {
			if err := fabric.enslave(n.uplinkPeer, bridge); err != nil {
				return err
			}
		} else if err := fabric.address(n.uplinkPeer, netip.PrefixFrom(n.gateway4, 24), netip.PrefixFrom(n.gateway6, 64)); err != nil {
			return err
		}
		if err := fabric.up(n.uplinkPeer); err != nil {
			return err
		}
	}
	if bridge != nil {
		n := l.Nodes[0]
		if err := fabric.address("br0", netip.PrefixFrom(n.gateway4, 24), netip.PrefixFrom(n.gateway6, 64)); err != nil {
			return err
		}
		if err := fabric.up("br0"); err != nil {
			return err
		}
	}
	if c.Outside {
		return l.wireOutside()
	}
	return nil
}

// wireOutside adds the host beyond the fabric. Neither it nor the fabric has a route to any pod, so only
// translated traffic gets its answer.
func (l *Lab) wireOutside() error {
	ns, err := newNS("outside")
	if err != nil {
		return fmt.Errorf("lab: namespace of the outside host: %w", err)
	}
	l.Outside = &Host{NS: ns, Device: "eth0", IP4: netip.MustParseAddr("203.0.113.10"), IP6: netip.MustParseAddr("2001:db8:ff::10")}
	gateway4, gateway6 := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:ff::1")
	if err := vethPair(l.Fabric, "out", ns, "eth0", 1500); err != nil {
		return err
	}
	if err := l.Fabric.address("out", netip.PrefixFrom(gateway4, 24), netip.PrefixFrom(gateway6, 64)); err != nil {
		return err
	}
	if err := ns.address("eth0", netip.PrefixFrom(l.Outside.IP4, 24), netip.PrefixFrom(l.Outside.IP6, 64)); err != nil {
		return err
	}
	if err := l.Fabric.up("out"); err != nil {
		return err
	}
	if err := ns.up("eth0"); err != nil {
		return err
	}
	return ns.defaultRoutes("eth0", gateway4, gateway6)
}

// SetKind turns the underlay at this node into another kind.
func (n *Node) SetKind(t TB, k Kind) {
	t.Helper()
	if err := n.setKind(k); err != nil {
		t.Fatalf("%v", err)
	}
}

// setKind sets the offloads of both ends of the uplink. The node's end coalesces what arrives, which a veth
// does only if its other end has no TSO; the fabric's end does not: a switch forwards what it gets.
func (n *Node) setKind(k Kind) error {
	far, farGRO := n.Lab.Fabric, false
	if far == nil {
		far, farGRO = n.others()[0].NS, true
	}
	for _, end := range []struct {
		ns     *NS
		device string
		gro    bool
	}{{n.NS, "eth0", true}, {far, n.uplinkPeer, farGRO}} {
		have, err := end.ns.Features(end.device)
		if err != nil {
			return err
		}
		want := map[string]bool{"rx-gro": k != Whole && end.gro}
		set := func(list []string, on bool) {
			for _, name := range list {
				want[name] = on
			}
		}
		set(tsoFeatures, k != Cut)
		set(tunnelFeatures, k == Whole)
		for name := range want { // older kernels lack some
			if _, known := have[name]; !known {
				delete(want, name)
			}
		}
		if err := end.ns.SetFeatures(end.device, want); err != nil {
			return fmt.Errorf("underlay %v: %w", k, err)
		}
	}
	return nil
}

// vethPair makes a pair across two namespaces.
func vethPair(a *NS, aName string, b *NS, bName string, mtu int) error {
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: aName, MTU: mtu, TxQLen: 1000},
		PeerName:  bName, PeerNamespace: netlink.NsFd(b.fd),
	}
	if err := a.route.LinkAdd(link); err != nil {
		return fmt.Errorf("lab: veth %s in %s with %s in %s: %w", aName, a.Name, bName, b.Name, err)
	}
	return b.setMTU(bName, mtu)
}

func (n *NS) link(name string) (netlink.Link, error) {
	link, err := n.route.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("lab: device %s in %s: %w", name, n.Name, err)
	}
	return link, nil
}

func (n *NS) up(device string) error {
	link, err := n.link(device)
	if err != nil {
		return err
	}
	if err := n.route.LinkSetUp(link); err != nil {
		return fmt.Errorf("lab: %s in %s up: %w", device, n.Name, err)
	}
	return nil
}

func (n *NS) setMTU(device string, mtu int) error {
	link, err := n.link(device)
	if err != nil {
		return err
	}
	if err := n.route.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("lab: MTU %d of %s in %s: %w", mtu, device, n.Name, err)
	}
	return nil
}

func (n *NS) enslave(device string, bridge netlink.Link) error {
	link, err := n.link(device)
	if err != nil {
		return err
	}
	if err := n.route.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("lab: %s of %s into the bridge: %w", device, n.Name, err)
	}
	return nil
}

// address adds addresses, usable at once.
func (n *NS) address(device string, addresses ...netip.Prefix) error {
	link, err := n.link(device)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		address := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := n.route.AddrReplace(link, address); err != nil {
			return fmt.Errorf("lab: address %v on %s in %s: %w", a, device, n.Name, err)
		}
	}
	return nil
}

// defaultRoutes routes everything through the gateways, which need not be on a connected network; an invalid
// gateway means straight into the device.
func (n *NS) defaultRoutes(device string, gateways ...netip.Addr) error {
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	for i, gateway := range gateways {
		if err := n.addRoute(device, all[i], gateway); err != nil {
			return err
		}
	}
	return nil
}

func (n *NS) addRoute(device string, to netip.Prefix, gateway netip.Addr) error {
	link, err := n.link(device)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to)}
	if gateway.IsValid() {
		r.Gw = gateway.AsSlice()
		r.Flags = int(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if err := n.route.RouteReplace(r); err != nil {
		return fmt.Errorf("lab: route %v via %v on %s in %s: %w", to, gateway, device, n.Name, err)
	}
	return nil
}

// neighbour writes a permanent neighbour entry.
func (n *NS) neighbour(device string, address netip.Addr, mac net.HardwareAddr) error {
	link, err := n.link(device)
	if err != nil {
		return err
	}
	err = n.route.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: address.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("lab: neighbour %v on %s in %s: %w", address, device, n.Name, err)
	}
	return nil
}

// LinkStats are a device's counters.
func (n *NS) LinkStats(device string) (*netlink.LinkStatistics, error) {
	link, err := n.link(device)
	if err != nil {
		return nil, err
	}
	return link.Attrs().Statistics, nil
}

// LinkNames are the devices of the namespace, loopback included.
func (n *NS) LinkNames() []string {
	links, err := n.route.LinkList()
	if err != nil {
		return nil
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
