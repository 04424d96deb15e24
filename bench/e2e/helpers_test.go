package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// matrix reports whether all combinations are wanted, and not only the usual ones: E2E_MATRIX=1.
func matrix() bool { return os.Getenv("E2E_MATRIX") == "1" }

// raced reports whether the daemons run under the race detector, which multiplies what they take of processor and memory: LAB_RACE.
func raced() bool { return os.Getenv("LAB_RACE") != "" }

// twoNodes is a network whose two nodes run, or the test is skipped where none can be made.
func twoNodes(t *testing.T, c lab.Config) (l *lab.Lab, a, b *lab.Node) {
	t.Helper()
	lab.Require(t)
	l = lab.New(t, c)
	l.Start(t)
	return l, l.Nodes[0], l.Nodes[1]
}

// repeatedly does something every 20 ms until it is stopped.
func repeatedly(do func()) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(20 * time.Millisecond):
				do()
			}
		}
	}()
	return func() { close(end); <-done }
}

// setMTU changes a pod's device, on a veth both ends; the daemon believes in the MTU that it was told.
func setMTU(t *testing.T, p *lab.Pod, mtu int) {
	t.Helper()
	set := func(n *lab.NS, device string) {
		link, err := n.Netlink().LinkByName(device)
		if err == nil {
			err = n.Netlink().LinkSetMTU(link, mtu)
		}
		if err != nil {
			t.Fatalf("MTU of %s in %s: %v", device, n.Name, err)
		}
	}
	if p.Attach != lab.TUN {
		set(p.Node.NS, p.HostDevice)
	}
	set(p.NS, "eth0")
}
