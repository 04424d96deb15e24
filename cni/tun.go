package cni

import (
	"context"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/cni/adopt"
)

// tunAlias marks a TUN in a pod as ours and as that of one container and interface, for a DEL that finds no daemon: its name is the
// pod's, and the DEL may be that of another container which was refused this name, or had this namespace's path before.
func tunAlias(device string) string { return plainAlias + " " + device }

const plainAlias = "penstock" // of a version that did not tell whose: any DEL may take it

// makeTUN makes the TUN where it is needed, in the pod and under its name there. One that comes from the host's namespace costs an
// RCU grace period or two, in which nobody on the node can change a device (dev_change_net_namespace in net/core/dev.c). It goes
// with its queue until the daemon has that.
func (a *adding) makeTUN(context.Context) error {
	err := a.pod.do(func() (err error) {
		a.queue, err = adopt.OpenQueue(a.IfName, true)
		return err
	})
	if err != nil {
		return fail(types.ErrInternal, "the TUN %s cannot be made in the pod: %v", a.IfName, err)
	}
	a.undo.add(func() error {
		a.closeQueue()
		return removeTUN(a.pod, a.lease.Device, a.IfName) // where the daemon holds it
	})
	if a.link, err = a.pod.route.LinkByName(a.IfName); err == nil {
		err = a.pod.route.LinkSetAlias(a.link, tunAlias(a.lease.Device))
	}
	if err == nil && a.link.Attrs().MTU != a.lease.MTU {
		err = a.pod.route.LinkSetMTU(a.link, a.lease.MTU)
	}
	if err == nil {
		err = limitSuperframes(a.pod, a.link)
	}
	if err != nil {
		return fail(types.ErrInternal, "the TUN %s in the pod cannot be set up: %v", a.IfName, err)
	}
	return nil
}

// closeQueue closes the plugin's own descriptor.
func (a *adding) closeQueue() {
	if a.queue != nil {
		a.queue.Close()
		a.queue = nil
	}
}

// removeTUN removes a pod's TUN, under the name it has when the daemon makes it, or its own.
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
		alias := link.Attrs().Alias
		if _, tun := link.(*netlink.Tuntap); !tun || n == name && alias != tunAlias(device) && alias != plainAlias {
			continue
		}
		if err := in.route.LinkDel(link); err != nil && !isNotFound(err) {
			return fmt.Errorf("device %s cannot be removed: %w", n, err)
		}
	}
	return nil
}
