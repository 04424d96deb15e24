//go:build linux

package ring

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linux/ethtool.h
const (
	ethtoolSTSO = 0x1f
)

// ethtool sets one feature of a device in the calling thread's namespace.
func ethtool(t testing.TB, name string, cmd, value uint32) {
	t.Helper()
	arg := struct{ cmd, value uint32 }{cmd, value}
	var req struct {
		name [16]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:], name)
	req.data = unsafe.Pointer(&arg)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		t.Fatalf("ethtool %s %#x: %v", name, cmd, errno)
	}
}
