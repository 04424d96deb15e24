package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace without a name: it exists as long as its descriptor is open or a process runs
// in it. Its loopback is up, and duplicate address detection is off on everything made in it.
type NS struct {
	Name string // for people: "node-a", "node-a/pod-1"

	fd     int
	inode  uint64
	route  *netlink.Handle
	starts chan startRequest // to the keeper thread
	once   sync.Once
}

// NewNS makes a namespace; it goes away with t.
func NewNS(t TB, name string) *NS {
	t.Helper()
	n, err := newNS(name)
	if err != nil {
		t.Fatalf("lab: namespace %s: %v", name, err)
	}
	t.Cleanup(n.Close)
	return n
}

func newNS(name string) (*NS, error) {
	n := &NS{Name: name, starts: make(chan startRequest)}
	ready := make(chan error)
	go ownThread(func() {
		err := n.open()
		ready <- err
		if err == nil {
			n.keep()
		}
	})
	if err := <-ready; err != nil {
		return nil, err
	}
	var err error
	if n.route, err = handleAt(n.fd); err != nil {
		n.Close()
		return nil, err
	}
	lo, err := n.route.LinkByName("lo")
	if err == nil {
		err = n.route.LinkSetUp(lo)
	}
	if err == nil {
		err = n.defaults()
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func handleAt(fd int) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return h, nil
}

// open runs on the keeper thread and makes the namespace that this thread will stay in.
func (n *NS) open() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/thread-self/ns/net: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return fmt.Errorf("stat of the namespace: %w", err)
	}
	n.fd, n.inode = fd, st.Ino
	return nil
}

// defaults sets what every namespace of the lab has: IPv6 addresses usable at once, no reverse path filter
// inherited from the machine, and ICMP errors of the kernel not rationed, as tests count them.
func (n *NS) defaults() error {
	for key, value := range map[string]string{
		"net/ipv6/conf/all/accept_dad":       "0",
		"net/ipv6/conf/default/accept_dad":   "0",
		"net/ipv6/conf/default/accept_ra":    "0",
		"net/ipv6/conf/default/disable_ipv6": "0",
		"net/ipv4/conf/all/rp_filter":        "0",
		"net/ipv4/conf/default/rp_filter":    "0",
		"net/ipv4/icmp_ratelimit":            "0",
		"net/ipv6/icmp/ratelimit":            "0",
		"net/ipv4/ping_group_range":          "1 0",
	} {
		if err := n.sysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

// ownThread runs fn on a thread that no other goroutine will ever use, and ends the thread afterwards. It
// never takes the process's first thread: Go cannot end that one, and it would stay in fn's namespace.
func ownThread(fn func()) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// While this goroutine holds the first thread the other one cannot get it.
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(done)
			fn()
		}()
		<-done
		runtime.UnlockOSThread()
		return
	}
	fn()
}

// onThread runs fn on a thread of its own and waits for it.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go ownThread(func() { result <- fn() })
	return <-result
}

// FD is the namespace's descriptor; it stays the lab's.
func (n *NS) FD() int { return n.fd }

// Inode identifies the namespace, as in /proc/PID/ns/net.
func (n *NS) Inode() uint64 { return n.inode }

func (n *NS) String() string { return n.Name }

// Close lets go of the namespace. Processes started in it are killed by PDEATHSIG as the keeper thread ends.
func (n *NS) Close() {
	n.once.Do(func() {
		if n.route != nil {
			n.route.Close()
		}
		close(n.starts)
		unix.Close(n.fd)
	})
}

// Do runs fn on this goroutine with its thread inside the namespace. Sockets that fn makes stay in the
// namespace and work from anywhere afterwards; goroutines that fn starts do not run in it. Do nests.
func (n *NS) Do(fn func() error) error {
	runtime.LockOSThread()
	back, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: current namespace: %w", err)
	}
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		unix.Close(back)
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: enter namespace %s: %w", n.Name, err)
	}
	// Deferred, for fn may leave by t.FailNow.
	defer func() {
		if err := unix.Setns(back, unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("lab: a thread cannot leave namespace %s: %v", n.Name, err))
		}
		unix.Close(back)
		runtime.UnlockOSThread()
	}()
	return fn()
}

// Netlink is a route netlink handle of the namespace, usable from any goroutine.
func (n *NS) Netlink() *netlink.Handle { return n.route }

// Nftables calls fn with a connection of the namespace and commits what it queued in one transaction.
func (n *NS) Nftables(fn func(c *nftables.Conn) error) error {
	c, err := nftables.New(nftables.WithNetNSFd(n.fd))
	if err != nil {
		return fmt.Errorf("lab: nftables in %s: %w", n.Name, err)
	}
	if err := fn(c); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lab: nftables in %s: %w", n.Name, err)
	}
	return nil
}

// Sysctl sets a key such as "net.ipv4.ip_forward"; with slashes, names may hold dots.
func (n *NS) Sysctl(t TB, key, value string) {
	t.Helper()
	if err := n.sysctl(key, value); err != nil {
		t.Fatalf("%v", err)
	}
}

func (n *NS) sysctl(key, value string) error {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	err := n.Do(func() error { return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("lab: sysctl %s=%s in %s: %w", key, value, n.Name, err)
	}
	return nil
}

// ReadProc reads a file under /proc as this namespace sees it: "net/netstat", "sys/net/ipv4/ip_forward".
func (n *NS) ReadProc(path string) (content []byte, err error) {
	if strings.HasPrefix(path, "net/") {
		path = "thread-self/" + path // /proc/net is that of the process's first thread
	}
	err = n.Do(func() error {
		content, err = os.ReadFile(filepath.Join("/proc", path))
		return err
	})
	return content, err
}
