package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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
	uplink, err := n.link("eth0")
	if err != nil {
		return err
	}
	if err := n.addVXLAN(uplink.Attrs().Index); err != nil {
		return fmt.Errorf("lab: vxlan device in %s: %w", n.Name, err)
	}
	device, err := n.link(flannelDevice)
	if err != nil {
		return err
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

// addVXLAN makes the device by a request of its own: the netlink package says nothing about outer checksums when
// they are to be off, and a kernel that hears nothing turns them on for IPv4 (vxlan_nl2conf).
func (n *Node) addVXLAN(uplink int) error {
	c := n.Lab.Config
	bit := func(on bool) []byte {
		if on {
			return []byte{1}
		}
		return []byte{0}
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(c.VNI))
	data.AddRtAttr(nl.IFLA_VXLAN_LINK, nl.Uint32Attr(uint32(uplink)))
	local := nl.IFLA_VXLAN_LOCAL
	if c.Outer6 {
		local = nl.IFLA_VXLAN_LOCAL6
	}
	data.AddRtAttr(local, n.Underlay().AsSlice())
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, n.port()))
	data.AddRtAttr(nl.IFLA_VXLAN_LEARNING, bit(false))
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_CSUM, bit(c.OuterChecksum))
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, bit(!c.OuterChecksum))
	data.AddRtAttr(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, bit(true))
	return n.Do(func() error {
		r := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(flannelDevice)))
		r.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, n.VTEPMAC))
		r.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(n.PodMTU()))))
		r.AddData(info)
		_, err := r.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}
