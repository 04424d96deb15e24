package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/cni/ethtool"
	"github.com/penstock-net/penstock/forwarder/control"
)

// maxSuperframe keeps a superframe and the largest encapsulation (VXLAN in IPv6, 70 bytes) within an IP packet.
const maxSuperframe = 65535 - 70

// hostMAC is that of every host end, and of the gateway as pods see it.
var hostMAC = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// makeVeth makes the pair: one end in the host's namespace under the name that follows from the key, the other in the pod under
// its final name. One message does it, so there is never a half.
func (a *adding) makeVeth(context.Context) error {
	if !a.host.lacks(a.lease.Device) { // left by an ADD that was killed
		removed, err := removeVeth(a.host, a.lease.Device)
		if err != nil {
			return fail(types.ErrInternal, "%v", err)
		}
		if !removed {
			if l, err := a.host.route.LinkByName(a.lease.Device); err == nil {
				return fail(types.ErrInternal, "the name %s for the host end of the pod's veth is taken by a %s", a.lease.Device, l.Type())
			}
		}
	}
	a.undo.add(func() error {
		_, err := removeVeth(a.host, a.lease.Device)
		return err
	})
	if err := a.host.addPair(a.pair()); err != nil {
		return fail(types.ErrInternal, "the veth %s with %s in the pod cannot be made: %v", a.lease.Device, a.IfName, err)
	}
	// Before it comes up, or the host speaks neighbour discovery to its pod.
	if err := a.host.setSysctl("ipv6/conf/"+a.lease.Device+"/disable_ipv6", "1"); err != nil {
		return fail(types.ErrIOFailure, "%v", err)
	}
	err := limitOffloads(a.pod, a.IfName)
	if err == nil {
		a.link, err = a.pod.route.LinkByName(a.IfName)
	}
	if err == nil {
		err = limitSuperframes(a.pod, a.link)
	}
	if err != nil {
		return fail(types.ErrInternal, "%v", err)
	}
	if err := a.host.bringUp(a.lease.Device); err != nil {
		return fail(types.ErrInternal, "%s cannot be brought up: %v", a.lease.Device, err)
	}
	return nil
}

// limitOffloads turns off what a virtio-net header cannot express, at the pod's end: the host's stack sends nothing by the other.
func limitOffloads(in *netns, device string) error {
	off := ethtool.PodFeatures
	if !expressesUSO() {
		off = append([]string{ethtool.USO}, off...)
	}
	return in.do(func() error { return ethtool.TurnOff(0, device, off...) })
}

// limitSuperframes: the limit for IPv4 came with kernel 6.3; before, one limit is for both.
func limitSuperframes(in *netns, link netlink.Link) error {
	device := link.Attrs().Name
	if link.Attrs().GSOMaxSize != maxSuperframe {
		if err := in.route.LinkSetGSOMaxSize(link, maxSuperframe); err != nil {
			return fmt.Errorf("the largest superframe of %s cannot be set: %w", device, err)
		}
	}
	if link.Attrs().GSOIPv4MaxSize != maxSuperframe {
		err := in.route.LinkSetGSOIPv4MaxSize(link, maxSuperframe)
		if err != nil && kernelSince(6, 3) {
			return fmt.Errorf("the largest IPv4 superframe of %s cannot be set: %w", device, err)
		}
	}
	return nil
}

// expressesUSO: VIRTIO_NET_HDR_GSO_UDP_L4 came with kernel 6.2.
func expressesUSO() bool { return kernelSince(6, 2) }

func kernelSince(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return releaseSince(unix.ByteSliceToString(u.Release[:]), major, minor)
}

// releaseSince reads "6.18.44-fc-v669".
func releaseSince(release string, major, minor int) bool {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return false
	}
	x, err := strconv.Atoi(parts[0])
	if err != nil {
		return false
	}
	digits := strings.IndexFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(parts[1])
	}
	y, err := strconv.Atoi(parts[1][:digits])
	return err == nil && (x > major || x == major && y >= minor)
}

// removeVeth removes a host end, and its peer with it. Somebody else's device of that name stays.
func removeVeth(host *netns, device string) (removed bool, err error) {
	if host.lacks(device) {
		return false, nil
	}
	link, err := host.route.LinkByName(device)
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("device %s cannot be read: %w", device, err)
	}
	if link.Type() != "veth" || link.Attrs().Group != control.DeviceGroup {
		return false, nil
	}
	if err := host.route.LinkDel(link); err != nil && !isNotFound(err) {
		return false, fmt.Errorf("device %s cannot be removed: %w", device, err)
	}
	return true, nil
}

// isNotFound is whether a device is not there, or went while it was being handled.
func isNotFound(err error) bool {
	var gone netlink.LinkNotFoundError
	return errors.As(err, &gone) || errors.Is(err, unix.ENODEV)
}

// waitUp waits until both ends are up for everybody: linkwatch works behind our back, and until it has, routes and packet sockets
// treat the device as down.
func (a *adding) waitUp(ctx context.Context) error {
	down := map[*netns]string{a.host: a.lease.Device, a.pod: a.IfName}
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		for in, name := range down {
			link, err := in.route.LinkByName(name)
			if err != nil {
				return fail(types.ErrInternal, "device %s went away while the pod was being attached: %v", name, err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				delete(down, in)
			}
		}
		if len(down) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fail(types.ErrTryAgainLater, "the veth %s did not come up in time", a.lease.Device)
		case <-time.After(pause):
		}
	}
}
