package hostnet

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What a device that is there is called is asked by ioctl: the kernel answers that under RCU (net/core/dev_ioctl.c), while
// netlink's answer waits for everybody who changes a device, as fifty pods' plugins do at once. Not for devices that may be
// missing: for a name that nobody has the kernel starts modprobe.

// DeviceIndex is a device's index; the error is ENODEV if there is none of that name, which should be rare.
func DeviceIndex(name string) (int, error) {
	r, err := unix.NewIfreq(name)
	if err == nil {
		err = ask(unix.SIOCGIFINDEX, r)
	}
	if err != nil {
		return 0, fmt.Errorf("device %s cannot be looked up: %w", name, err)
	}
	return int(r.Uint32()), nil
}

// DeviceName is the inverse.
func DeviceName(index int) (string, error) {
	r, err := unix.NewIfreq("")
	if err == nil {
		r.SetUint32(uint32(index))
		err = ask(unix.SIOCGIFNAME, r)
	}
	if err != nil {
		return "", fmt.Errorf("the device with index %d cannot be looked up: %w", index, err)
	}
	return r.Name(), nil
}

func ask(request uint, r *unix.Ifreq) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlIfreq(fd, request, r)
}
