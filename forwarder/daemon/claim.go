package daemon

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Claim makes this process the one daemon of the network namespace, until release or its death. The names of abstract unix sockets
// belong to a network namespace (net/unix/af_unix.c, unix_find_socket_byname): whoever holds control.ClaimName is the one daemon of
// this one. Two of them would share the tunnel port and
// the TUN, as both let several descriptors of one user in, and each would get half of the other's packets. The lock beside
// the control socket cannot tell, because another configuration or another container has another path.
func (linux) Claim() (release func() error, err error) { return claim(control.ClaimName) }

func claim(name string) (release func() error, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("the claim to the network namespace cannot be made: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: name})
	if err == nil {
		err = unix.Listen(fd, 0) // nobody is answered; it lets others see whose it is
	}
	if err == nil {
		return func() error { return unix.Close(fd) }, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("another penstockd is running in this network namespace%s: stop it first, as one node needs one", holder(name))
	}
	return nil, fmt.Errorf("the claim to the network namespace cannot be made: %w", err)
}

// holder names the process that holds a claim, as far as it can be seen from here.
func holder(name string) string {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	if unix.Connect(fd, &unix.SockaddrUnix{Name: name}) != nil {
		return ""
	}
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || c.Pid == 0 { // 0: in a process namespace that we cannot see into
		return ""
	}
	return fmt.Sprintf(" as process %d", c.Pid)
}
