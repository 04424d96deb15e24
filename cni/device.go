package cni

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What only asks whether a device is there, or is up, asks by ioctl: the kernel answers that under RCU (net/core/dev_ioctl.c),
// while a netlink request for a device (RTM_GETLINK) waits for the lock that everybody takes who changes one. When a node
// starts fifty pods at once that queue, and not the work, is what an ADD takes its time for.

// index is a device's, 0 if there is none of that name.
func (n *netns) index(name string) (int, error) {
	r, err := n.ifreq(unix.SIOCGIFINDEX, name)
	if err != nil || r == nil {
		return 0, err
	}
	return int(r.Uint32()), nil
}

// running is whether a device is up for everybody, its operational state included (dev_get_flags in net/core/dev.c).
func (n *netns) running(name string) (bool, error) {
	r, err := n.ifreq(unix.SIOCGIFFLAGS, name)
	if err != nil {
		return false, err
	}
	if r == nil {
		return false, unix.ENODEV
	}
	return r.Uint16()&unix.IFF_RUNNING != 0, nil
}

// ifreq asks about a device; nil if there is none of that name.
func (n *netns) ifreq(request uint, name string) (*unix.Ifreq, error) {
	r, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("%q is no name of a device: %w", name, err)
	}
	switch err := unix.IoctlIfreq(n.ask, request, r); err {
	case nil:
		return r, nil
	case unix.ENODEV:
		return nil, nil
	default:
		return nil, fmt.Errorf("device %s cannot be looked up: %w", name, err)
	}
}
