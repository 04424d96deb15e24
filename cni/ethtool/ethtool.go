// Package ethtool turns offloads of a network device on and off, over generic netlink and in any network namespace. The
// plugin uses it on the pod's end of a veth, the laboratory on its underlay.
//
//	ethtool(8)  -k ─→ Features      -K ─→ SetFeatures
package ethtool

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Ethtool over generic netlink (Documentation/networking/ethtool-netlink.rst). Message and attribute numbers
// are of include/uapi/linux/ethtool_netlink_generated.h.
const (
	ethtoolMsgFeaturesGet = 11
	ethtoolMsgFeaturesSet = 12

	ethtoolHeader     = 1 // ETHTOOL_A_FEATURES_HEADER
	ethtoolHW         = 2 // ETHTOOL_A_FEATURES_HW
	ethtoolWanted     = 3 // ETHTOOL_A_FEATURES_WANTED
	ethtoolActive     = 4 // ETHTOOL_A_FEATURES_ACTIVE
	ethtoolHeaderName = 2 // ETHTOOL_A_HEADER_DEV_NAME

	ethtoolBitsetNoMask = 1 // ETHTOOL_A_BITSET_NOMASK
	ethtoolBitsetBits   = 3 // ETHTOOL_A_BITSET_BITS
	ethtoolBit          = 1 // ETHTOOL_A_BITSET_BITS_BIT
	ethtoolBitName      = 2 // ETHTOOL_A_BITSET_BIT_NAME
	ethtoolBitValue     = 3 // ETHTOOL_A_BITSET_BIT_VALUE
)

// Features lists the features that can be changed on a device, true if they are on. netns is a descriptor of the device's
// namespace, 0 for that of the calling thread.
func Features(netns int, device string) (map[string]bool, error) {
	reply, err := request(netns, ethtoolMsgFeaturesGet, device, nil)
	if err != nil {
		return nil, err
	}
	changeable, err := bits(reply[ethtoolHW])
	if err != nil {
		return nil, fmt.Errorf("ethtool on %s: %w", device, err)
	}
	on, err := bits(reply[ethtoolActive])
	if err != nil {
		return nil, fmt.Errorf("ethtool on %s: %w", device, err)
	}
	features := map[string]bool{}
	for name, ok := range changeable {
		if ok {
			features[name] = on[name]
		}
	}
	return features, nil
}

// bits reads a verbose bitset (Documentation/networking/ethtool-netlink.rst, "Bit sets"). With a mask each bit listed says its
// value; without one a bit that is listed is on.
func bits(set []byte) (map[string]bool, error) {
	fields, err := attributes(set)
	if err != nil {
		return nil, err
	}
	_, noMask := fields[ethtoolBitsetNoMask]
	bits, there := fields[ethtoolBitsetBits]
	if !there {
		return nil, syscall.EBADMSG
	}
	list, err := parse(bits)
	if err != nil {
		return nil, err
	}
	on := map[string]bool{}
	for _, entry := range list {
		bit, err := attributes(entry.Value)
		if err != nil {
			return nil, err
		}
		_, value := bit[ethtoolBitValue]
		on[unix.ByteSliceToString(bit[ethtoolBitName])] = value || noMask
	}
	return on, nil
}

// attributes are those of one level, of which none is there twice, by type.
func attributes(b []byte) (map[uint16][]byte, error) {
	list, err := parse(b)
	m := make(map[uint16][]byte, len(list))
	for _, a := range list {
		m[a.Attr.Type&^unix.NLA_F_NESTED] = a.Value
	}
	return m, err
}

// parse: the library trusts that the last attribute is padded, as the kernel's are.
func parse(b []byte) ([]syscall.NetlinkRouteAttr, error) {
	if len(b)%unix.RTA_ALIGNTO != 0 {
		return nil, syscall.EBADMSG
	}
	return nl.ParseRouteAttr(b)
}

// SetFeatures turns features on and off and checks that the device took them, as the kernel refuses silently.
func SetFeatures(netns int, device string, want map[string]bool) error {
	refused, err := set(netns, device, want)
	if err != nil {
		return err
	}
	if len(refused) > 0 {
		return fmt.Errorf("%s did not take the features %s", device, strings.Join(slices.Sorted(maps.Keys(refused)), ", "))
	}
	return nil
}

// set returns what the device did not take: the kernel's answer names, as wanted, the bits that are not as they were wanted
// (features_send_reply in net/ethtool/features.c).
func set(netns int, device string, want map[string]bool) (refused map[string]bool, err error) {
	wanted := nl.NewRtAttr(ethtoolWanted|unix.NLA_F_NESTED, nil)
	list := wanted.AddRtAttr(ethtoolBitsetBits|unix.NLA_F_NESTED, nil)
	for name, value := range want {
		bit := list.AddRtAttr(ethtoolBit|unix.NLA_F_NESTED, nil)
		bit.AddRtAttr(ethtoolBitName, nl.ZeroTerminated(name))
		if value {
			bit.AddRtAttr(ethtoolBitValue, nil)
		}
	}
	reply, err := request(netns, ethtoolMsgFeaturesSet, device, wanted)
	if err != nil {
		return nil, err
	}
	if refused, err = bits(reply[ethtoolWanted]); err != nil {
		return nil, fmt.Errorf("ethtool on %s: %w", device, err)
	}
	return refused, nil
}

// request asks ethtool about a device and returns the attributes of its answer.
func request(namespace int, command uint8, device string, body *nl.RtAttr) (map[uint16][]byte, error) {
	fail := func(err error) (map[uint16][]byte, error) {
		return nil, fmt.Errorf("ethtool on %s: %w", device, err)
	}
	in := netns.None()
	if namespace > 0 {
		in = netns.NsHandle(namespace)
	}
	socket, err := nl.GetNetlinkSocketAt(in, netns.None(), unix.NETLINK_GENERIC)
	if err != nil {
		return fail(err)
	}
	defer socket.Close()
	on := map[int]*nl.SocketHandle{unix.NETLINK_GENERIC: {Socket: socket}}
	family, err := familyOf(on)
	if err != nil {
		return fail(err)
	}
	header := nl.NewRtAttr(ethtoolHeader|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(ethtoolHeaderName, nl.ZeroTerminated(device))
	message := []nl.NetlinkRequestData{header}
	if body != nil {
		message = append(message, body)
	}
	reply, err := ask(on, family, command, 1, message...)
	if err != nil {
		return fail(err)
	}
	return reply, nil
}

// familyOf asks for ethtool's number in generic netlink (Documentation/userspace-api/netlink/intro.rst, "Resolving the Family ID").
func familyOf(on map[int]*nl.SocketHandle) (uint16, error) {
	reply, err := ask(on, nl.GENL_ID_CTRL, nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION,
		nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated("ethtool")))
	if err != nil {
		return 0, err
	}
	id := reply[nl.GENL_CTRL_ATTR_FAMILY_ID]
	if len(id) < 2 {
		return 0, syscall.EOPNOTSUPP
	}
	return nl.NativeEndian().Uint16(id), nil
}

// genl is the header of a generic netlink message: command and version.
type genl [nl.SizeofGenlmsg]byte

func (g genl) Len() int          { return len(g) }
func (g genl) Serialize() []byte { return g[:] }

// ask sends one message and returns the attributes of the answer; of what follows that the socket's next use takes no notice.
func ask(on map[int]*nl.SocketHandle, family uint16, command, version byte, body ...nl.NetlinkRequestData) (map[uint16][]byte, error) {
	q := nl.NewNetlinkRequest(int(family), unix.NLM_F_ACK)
	q.Sockets = on
	q.AddData(genl{command, version})
	for _, b := range body {
		q.AddData(b)
	}
	replies, err := q.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return nil, err
	}
	if len(replies) == 0 || len(replies[0]) < nl.SizeofGenlmsg {
		return nil, syscall.ENODATA
	}
	return attributes(replies[0][nl.SizeofGenlmsg:])
}

// PodFeatures are what a virtio-net header cannot express (include/uapi/linux/virtio_net.h) and what a pod's veth therefore may
// not hand over: tunnel segmentation, and SCTP, whose checksum is a CRC.
var PodFeatures = []string{
	"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-gre-segmentation", "tx-gre-csum-segmentation",
	"tx-ipxip4-segmentation", "tx-ipxip6-segmentation", "tx-sctp-segmentation", "tx-checksum-sctp", "tx-gso-list",
}

// USO is segmentation of UDP datagrams, which a virtio-net header can express from kernel 6.2 on.
const USO = "tx-udp-segmentation"

// TurnOff turns features off, those of them that the device has and may change. Mostly it has all and may change them, so that
// is tried first: each request waits for the lock of everything that changes a device.
func TurnOff(netns int, device string, features ...string) error {
	off := map[string]bool{}
	for _, f := range features {
		off[f] = false
	}
	if refused, err := set(netns, device, off); err == nil && len(refused) == 0 {
		return nil
	}
	have, err := Features(netns, device)
	if err != nil {
		return err
	}
	maps.DeleteFunc(off, func(f string, _ bool) bool { return !have[f] })
	if len(off) == 0 {
		return nil
	}
	return SetFeatures(netns, device, off)
}
