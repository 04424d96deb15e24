package lab

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// sockLike is any connection of package net.
type sockLike interface {
	SyscallConn() (syscall.RawConn, error)
}

// setsockopt sets an integer option of a Go connection.
func setsockopt(c sockLike, level, option, value int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	if err := raw.Control(func(fd uintptr) { fault = unix.SetsockoptInt(int(fd), level, option, value) }); err != nil {
		return err
	}
	return fault
}

// forceBuffers sets socket buffers beyond the machine's limits, as root may.
func forceBuffers(c sockLike, size int) {
	setsockopt(c, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size)
	setsockopt(c, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size)
}
