package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// tick bounds every blocking call, so that a thread notices within it that it shall stop.
const tick = 50 * time.Millisecond

// inNamespace runs fn with the calling thread in the namespace behind the descriptor; sockets stay there.
func inNamespace(ns int, fn func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("load: current namespace: %w", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("load: enter the pod's namespace: %w", err)
	}
	defer func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("load: a thread cannot leave a pod's namespace: %v", err))
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// socket makes an IPv4 socket in a pod. Calls on it block, but never longer than the tick.
func socket(ns, kind int) (fd int, err error) {
	err = inNamespace(ns, func() error {
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("load: socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(tick))
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &tv); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("load: timeout of a socket: %w", err)
		}
	}
	return fd, nil
}

// buffer is what a datagram socket holds in each direction: enough for the few milliseconds that a receiver may
// wait for a core, whatever the machine's default is.
const buffer = 4 << 20

func datagramSocket(ns int) (int, error) {
	fd, err := socket(ns, unix.SOCK_DGRAM)
	if err != nil {
		return -1, err
	}
	for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, buffer); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("load: buffer of a socket: %w", err)
		}
	}
	return fd, nil
}

func streamSocket(ns int) (int, error) { return socket(ns, unix.SOCK_STREAM) }

// receiving is the socket on which a flow arrives, and its port.
func (j *running) receiving(f Flow, open func(ns int) (int, error)) (fd int, port uint16, err error) {
	if fd, err = open(firstPod + f.Pod); err != nil {
		return -1, 0, err
	}
	j.own(fd)
	port, err = bound(fd, f.At.Addr())
	return fd, port, err
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func rawSockaddr(a netip.AddrPort) *unix.RawSockaddrInet4 {
	port := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, a.Port())) // network byte order
	return &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4(), Port: port}
}

// bound binds the socket to any port of the address and returns the port.
func bound(fd int, a netip.Addr) (uint16, error) {
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(a, 0))); err != nil {
		return 0, fmt.Errorf("load: bind to %v: %w", a, err)
	}
	got, err := unix.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("load: name of a socket: %w", err)
	}
	return uint16(got.(*unix.SockaddrInet4).Port), nil
}

// again reports errors after which the same call is made once more: a tick has passed, a signal came, or the
// kernel says that there is no room now. ECONNREFUSED on a datagram socket is about an earlier datagram.
func again(err error) bool {
	for _, e := range []error{unix.EAGAIN, unix.EINTR, unix.ENOBUFS, unix.ECONNREFUSED, unix.EINPROGRESS, unix.EALREADY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
