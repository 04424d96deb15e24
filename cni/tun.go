package cni

import (
	"context"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
)

// tunAlias marks a TUN in a pod as ours, for a DEL that finds no daemon: the name is then the pod's, and says nothing. An alias
// goes with the device from one namespace to the other.
const tunAlias = "penstock"

// moveTUN takes the TUN that the daemon has made from the host's namespace into the pod and gives it its name there.
func (a *adding) moveTUN(context.Context) error {
	link, err := a.host.route.LinkByName(a.lease.Device)
	if err != nil {
		return fail(types.ErrInternal, "penstockd has made no TUN %s: %v", a.lease.Device, err)
	}
	a.undo.add(func() error { return removeTUN(a.pod, a.lease.Device, a.IfName) })
	if err := a.host.route.LinkSetAlias(link, tunAlias); err != nil {
		return fail(types.ErrInternal, "the TUN %s cannot be marked: %v", a.lease.Device, err)
	}
	if err := a.host.route.LinkSetNsFd(link, a.pod.fd()); err != nil {
		return fail(types.ErrInternal, "the TUN %s cannot be moved into the pod: %v", a.lease.Device, err)
	}
	if link, err = a.pod.route.LinkByName(a.lease.Device); err != nil {
		return fail(types.ErrInternal, "the TUN %s is not in the pod after the move: %v", a.lease.Device, err)
	}
	if err := a.pod.route.LinkSetName(link, a.IfName); err != nil {
		return fail(types.ErrInternal, "the TUN cannot be named %s in the pod: %v", a.IfName, err)
	}
	if link.Attrs().MTU != a.lease.MTU {
		if err := a.pod.route.LinkSetMTU(link, a.lease.MTU); err != nil {
			return fail(types.ErrInternal, "the MTU %d of %s in the pod cannot be set: %v", a.lease.MTU, a.IfName, err)
		}
	}
	link.Attrs().Name = a.IfName
	if err := limitSuperframes(a.pod, link); err != nil {
		return fail(types.ErrInternal, "%v", err)
	}
	a.link = link
	return nil
}

// removeTUN removes a pod's TUN, under the name it came with (an ADD that was killed between move and rename) or its own.
func removeTUN(in *netns, device, name string) error {
	for _, n := range []string{device, name} {
		if in.lacks(n) {
			continue
		}
		link, err := in.route.LinkByName(n)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("device %s cannot be read: %w", n, err)
		}
		if _, tun := link.(*netlink.Tuntap); !tun || n == name && link.Attrs().Alias != tunAlias {
			continue
		}
		if err := in.route.LinkDel(link); err != nil && !isNotFound(err) {
			return fmt.Errorf("device %s cannot be removed: %w", n, err)
		}
	}
	return nil
}
