package cni

import (
	"net"

	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// The library makes a veth with more requests than it takes: it bounds the superframes of one end only, and looks the device up
// again. Each waits for the lock of all devices, which is what fifty ADDs at once are short of.

// end is one end of a veth.
type end struct {
	name   string
	mac    net.HardwareAddr // nil: the kernel's choice
	inside int              // descriptor of its namespace, 0: that of the request
	group  uint32
	mtu    int
}

// pair are the ends of the pod's veth, the host's and the pod's. By its group the daemon knows a host end that no state file claims.
func (a *adding) pair() (host, pod end) {
	return end{name: a.lease.Device, mac: hostMAC, group: control.DeviceGroup, mtu: a.lease.MTU},
		end{name: a.IfName, mac: a.mac, inside: a.pod.fd(), mtu: a.lease.MTU}
}

// attributes are those of include/uapi/linux/if_link.h.
func (e end) attributes() []*nl.RtAttr {
	number := func(kind int, value uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(value)) }
	list := []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(e.name)), number(unix.IFLA_MTU, uint32(e.mtu)),
		number(unix.IFLA_GSO_MAX_SIZE, maxSuperframe), number(unix.IFLA_GSO_IPV4_MAX_SIZE, maxSuperframe),
		// One queue is what the kernel uses in any case; unless told so it makes one a core and turns the others off, at the price of an
		// RCU grace period for each end, in which nobody else can change a device (veth_init_queues in drivers/net/veth.c).
		number(unix.IFLA_NUM_TX_QUEUES, 1), number(unix.IFLA_NUM_RX_QUEUES, 1),
	}
	if e.mac != nil {
		list = append(list, nl.NewRtAttr(unix.IFLA_ADDRESS, e.mac))
	}
	if e.group != 0 {
		list = append(list, number(unix.IFLA_GROUP, e.group))
	}
	if e.inside != 0 {
		list = append(list, number(unix.IFLA_NET_NS_FD, uint32(e.inside)))
	}
	return list
}

// addPair makes a veth, both ends with all that they have, in one message (veth_newlink in drivers/net/veth.c).
func (n *netns) addPair(one, other end) error {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	for _, a := range other.attributes() {
		peer.AddChild(a)
	}
	body := []nl.NetlinkRequestData{nl.NewIfInfomsg(unix.AF_UNSPEC)}
	for _, a := range one.attributes() {
		body = append(body, a)
	}
	return n.ask(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, append(body, info)...)
}

// bringUp brings up a device that is known by its name.
func (n *netns) bringUp(device string) error {
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Flags, up.Change = unix.IFF_UP, unix.IFF_UP
	return n.ask(unix.RTM_SETLINK, 0, up, nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(device)))
}

// ask sends a message of our own and waits until it was heard, on a socket that is kept.
func (n *netns) ask(kind, flags int, body ...nl.NetlinkRequestData) error {
	if n.raw == nil {
		err := n.do(func() error {
			s, err := nl.GetNetlinkSocketAt(vnetns.None(), vnetns.None(), unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			n.raw = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
			return s.SetExtAck(true) // the kernel's own words
		})
		if err != nil {
			return err
		}
	}
	q := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	q.Sockets = n.raw
	for _, b := range body {
		q.AddData(b)
	}
	_, err := q.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
