package cni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// netns is a network namespace that is held open: the pod's or the host's.
type netns struct {
	path  string
	own   bool // it is that of the process
	file  *os.File
	route *netlink.Handle          // bound to the namespace, usable on every thread
	raw   map[int]*nl.SocketHandle // of ask, once it was called
}

// errNotNetns is about a path that leads to something else.
var errNotNetns = errors.New("it is not a network namespace")

// openNetns opens a namespace by its path. That it is one is asked of the kernel, as the file systems of namespaces hold other
// kinds too.
func openNetns(path string) (*netns, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) // a FIFO must not hold us up
	if err != nil {
		return nil, err
	}
	var on unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &on); err != nil || on.Type != unix.NSFS_MAGIC { // an ioctl may mean anything elsewhere
		f.Close()
		return nil, errNotNetns
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, errNotNetns
	}
	n := &netns{path: path, file: f}
	err = n.do(func() error {
		n.route, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("no netlink socket: %w", err)
	}
	return n, nil
}

// hostNetns is the namespace of the plugin itself, in which the daemon lives.
func hostNetns() (*netns, error) {
	n, err := openNetns("/proc/self/ns/net")
	if err == nil {
		n.own = true
	}
	return n, err
}

func (n *netns) fd() int { return int(n.file.Fd()) }

func (n *netns) close() {
	n.route.Close()
	for _, s := range n.raw {
		s.Close()
	}
	n.file.Close()
}

func (n *netns) same(o *netns) bool {
	a, err := n.file.Stat()
	if err != nil {
		return false
	}
	b, err := o.file.Stat()
	return err == nil && os.SameFile(a, b)
}

// do runs fn inside the namespace, on the caller's own thread: another one costs more than most of what is done there. Where there is
// no way back the process ends, as all that follows would be done in the pod: DEL takes away what it leaves.
func (n *netns) do(fn func() error) (err error) {
	if n.own {
		return fn()
	}
	runtime.LockOSThread()
	back, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("the plugin's own network namespace cannot be opened: %w", err)
	}
	defer unix.Close(back)
	if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("the namespace %s cannot be entered: %w", n.path, err)
	}
	defer func() {
		if e := unix.Setns(back, unix.CLONE_NEWNET); e != nil { // ENOMEM
			types.NewError(types.ErrInternal, fmt.Sprintf("the namespace %s cannot be left: %v", n.path, e), "").Print()
			os.Exit(1)
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// lacks is whether there is surely no device of that name, as there mostly is none when ADD or DEL asks: it has no sysctls then.
// Other ways to ask are dearer. A netlink request for a device waits for the lock that everybody takes who changes one, and
// when a node starts fifty pods at once that queue is what an ADD takes its time for; an ioctl by name starts modprobe for a
// device that is not there (dev_load in net/core/dev_ioctl.c). Who must know what a device is asks by netlink.
func (n *netns) lacks(device string) (yes bool) {
	n.do(func() error {
		missing := func(name string) bool {
			_, err := os.Stat(filepath.Join("/proc/sys/net/ipv4/conf", name))
			return errors.Is(err, fs.ErrNotExist)
		}
		yes = missing(device) && !missing("lo") // where lo has none either, nothing follows
		return nil
	})
	return yes
}

// setSysctl is writeSysctl inside the namespace.
func (n *netns) setSysctl(key, value string) error {
	return n.do(func() error { return writeSysctl(key, value) })
}

// writeSysctl sets a key below /proc/sys/net, in the namespace of the calling thread, if it has another value. What the kernel does not have is no error: it is then off.
func writeSysctl(key, value string) error {
	old, err := sysctl(key)
	if errors.Is(err, fs.ErrNotExist) || err == nil && old == value {
		return nil
	}
	fd, err := unix.Open(sysctlPath(key), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("sysctl net/%s cannot be set to %s: %w", key, value, err)
	}
	return nil
}

// readSysctl is empty for what cannot be read.
func readSysctl(key string) string {
	value, _ := sysctl(key)
	return value
}

func sysctlPath(key string) string { return "/proc/sys/net/" + key }

// sysctl reads a key by bare system calls: package os would enter each file into the runtime's poller, at three times as many.
func sysctl(key string) (string, error) {
	fd, err := unix.Open(sysctlPath(key), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b [64]byte // a number
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// hasIPv6 is a variable as tests say no.
var hasIPv6 = control.HasIPv6
