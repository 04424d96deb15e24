package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setUpPeers makes the node work by its role. Penstock nodes wait for their daemon.
func (n *Node) setUpPeers() error {
	switch n.Role {
	case KernelVXLAN:
		return n.setUpVXLAN()
	case FlannelUDP:
		return n.setUpFlannelUDP()
	case GopacketIPIP:
		return n.setUpIPIP()
	case PlainRouting:
		for _, o := range n.others() {
			for _, r := range []struct {
				to  netip.Prefix
				via netip.Addr
			}{{o.PodCIDR4, o.IP4}, {o.PodCIDR6, o.IP6}} {
				if err := n.addRoute("eth0", r.to, r.via); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// flannelDevice is what flannel calls its vxlan device of VNI 1.
const flannelDevice = "flannel.1"

// setUpVXLAN configures a kernel vxlan device as flannel does (flannel pkg/backend/vxlan): no learning; for
// each peer a permanent neighbour (its pod CIDR's first address → its VTEP MAC), an FDB entry (VTEP MAC → its
// underlay address) and an onlink route. Flannel has a second device for IPv6; here one carries both.
func (n *Node) setUpVXLAN() error {
	c := n.Lab.Config
	uplink, err := n.link("eth0")
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = flannelDevice, n.VTEPMAC, n.PodMTU()
	device := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(c.VNI), Port: int(n.port()), Learning: false,
		VtepDevIndex: uplink.Attrs().Index, SrcAddr: n.Underlay().AsSlice(),
		UDPCSum: c.OuterChecksum, UDP6ZeroCSumTx: !c.OuterChecksum, UDP6ZeroCSumRx: true,
	}
	if err := n.route.LinkAdd(device); err != nil {
		return fmt.Errorf("lab: vxlan device in %s: %w", n.Name, err)
	}
	err = n.address(flannelDevice,
		netip.PrefixFrom(n.HostAddr(false), 32), netip.PrefixFrom(n.HostAddr(true), 128))
	if err != nil {
		return err
	}
	if err := n.up(flannelDevice); err != nil {
		return err
	}
	for _, o := range n.others() {
		if o.encap() != "vxlan" {
			continue
		}
		err := n.route.NeighSet(&netlink.Neigh{
			LinkIndex: device.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT,
			Flags: netlink.NTF_SELF, IP: o.Underlay().AsSlice(), HardwareAddr: o.VTEPMAC,
		})
		if err != nil {
			return fmt.Errorf("lab: FDB entry for %s in %s: %w", o.Name, n.Name, err)
		}
		for _, cidr := range []netip.Prefix{o.PodCIDR4, o.PodCIDR6} {
			if err := n.neighbour(flannelDevice, cidr.Addr(), o.VTEPMAC); err != nil {
				return err
			}
			if err := n.addRoute(flannelDevice, cidr, cidr.Addr()); err != nil {
				return err
			}
		}
	}
	return nil
}
