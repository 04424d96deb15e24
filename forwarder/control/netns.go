package control

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
)

// The gateways of every pod. They are nobody's addresses: all packets go to the daemon, whatever they are for.
var (
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// NetnsID tells network namespaces apart: device and inode of what a path leads to, as "4:4026532008". A path of a namespace
// that was made anew has another one.
func NetnsID(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return netnsID(fi)
}

func netnsID(fi os.FileInfo) (string, error) {
	s, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return "", errors.New("this system has no inodes")
	}
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino), nil
}

// OpenNetns opens a pod's network namespace, if the path still leads to the one with that id. It is looked at through the descriptor, so that
// it is the one that is entered.
func OpenNetns(path, id string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // whatever is there by now: a pipe would be waited for
	if err != nil {
		return nil, fmt.Errorf("its network namespace cannot be opened: %w", err)
	}
	fi, err := f.Stat()
	if err == nil {
		var now string
		if now, err = netnsID(fi); err == nil && now == id {
			return f, nil
		}
	}
	f.Close()
	if err != nil {
		return nil, fmt.Errorf("its network namespace cannot be looked at: %w", err)
	}
	return nil, fmt.Errorf("%s is another network namespace than the pod's", path)
}

// HasIPv6 is whether the kernel speaks IPv6 at all (it does not when booted with ipv6.disable=1).
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
