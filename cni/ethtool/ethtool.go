// Package ethtool turns offloads of a network device on and off, over generic netlink and in any network namespace. The
// plugin uses it on both ends of a pod's veth (design section 3), the laboratory on its underlay.
//
//	ethtool(8)  -k ─→ Features      -K ─→ SetFeatures
package ethtool

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	vnetlink "github.com/vishvananda/netlink"
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
	replies, err := request(netns, ethtoolMsgFeaturesGet, device, nil)
	if err != nil {
		return nil, err
	}
	changeable, on := map[string]bool{}, map[string]bool{}
	err = each(replies, device, func(d *netlink.AttributeDecoder) {
		switch d.Type() {
		case ethtoolHW:
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeBits(d, changeable) })
		case ethtoolActive:
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeBits(d, on) })
		}
	})
	if err != nil {
		return nil, err
	}
	features := map[string]bool{}
	for name, ok := range changeable {
		if ok {
			features[name] = on[name]
		}
	}
	return features, nil
}

// decodeBits reads a verbose bitset (Documentation/networking/ethtool-netlink.rst, "Bit sets"). With a mask
// each bit listed says its value; without one a bit that is listed is on.
func decodeBits(d *netlink.AttributeDecoder, on map[string]bool) error {
	noMask := false
	for d.Next() {
		if d.Type() == ethtoolBitsetNoMask {
			noMask = true // comes before the bits
		}
		if d.Type() != ethtoolBitsetBits {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				d.Nested(func(d *netlink.AttributeDecoder) error {
					name, value := "", noMask
					for d.Next() {
						switch d.Type() {
						case ethtoolBitName:
							name = d.String()
						case ethtoolBitValue:
							value = true
						}
					}
					on[name] = value
					return nil
				})
			}
			return nil
		})
	}
	return nil
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
	replies, err := request(netns, ethtoolMsgFeaturesSet, device, func(e *netlink.AttributeEncoder) {
		e.Nested(ethtoolWanted, func(e *netlink.AttributeEncoder) error {
			e.Nested(ethtoolBitsetBits, func(e *netlink.AttributeEncoder) error {
				for name, value := range want {
					e.Nested(ethtoolBit, func(e *netlink.AttributeEncoder) error {
						e.String(ethtoolBitName, name)
						e.Flag(ethtoolBitValue, value)
						return nil
					})
				}
				return nil
			})
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	refused = map[string]bool{}
	err = each(replies, device, func(d *netlink.AttributeDecoder) {
		if d.Type() == ethtoolWanted {
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeBits(d, refused) })
		}
	})
	return refused, err
}

// each calls fn with each attribute of the replies.
func each(replies []netlink.Message, device string, fn func(*netlink.AttributeDecoder)) error {
	for _, m := range replies {
		d, err := netlink.NewAttributeDecoder(m.Data[4:]) // behind the generic netlink header
		if err != nil {
			return fmt.Errorf("features of %s: %w", device, err)
		}
		for d.Next() {
			fn(d)
		}
		if err := d.Err(); err != nil {
			return fmt.Errorf("features of %s: %w", device, err)
		}
	}
	return nil
}

// family is ethtool's number in generic netlink, the same in every namespace.
var family = sync.OnceValues(func() (uint16, error) {
	f, err := vnetlink.GenlFamilyGet("ethtool")
	if err != nil {
		return 0, err
	}
	return f.ID, nil
})

func request(netns int, command uint8, device string, body func(*netlink.AttributeEncoder)) ([]netlink.Message, error) {
	fail := func(err error) ([]netlink.Message, error) {
		return nil, fmt.Errorf("ethtool on %s: %w", device, err)
	}
	id, err := family()
	if err != nil {
		return fail(err)
	}
	c, err := netlink.Dial(unix.NETLINK_GENERIC, &netlink.Config{NetNS: netns})
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	e := netlink.NewAttributeEncoder()
	e.Nested(ethtoolHeader, func(e *netlink.AttributeEncoder) error {
		e.String(ethtoolHeaderName, device)
		return nil
	})
	if body != nil {
		body(e)
	}
	attributes, err := e.Encode()
	if err != nil {
		return fail(err)
	}
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(id), Flags: netlink.Request | netlink.Acknowledge},
		Data:   append([]byte{command, 1, 0, 0}, attributes...),
	})
	if err != nil {
		return fail(err)
	}
	return replies, nil
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
