package e2e

import (
	"strings"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestUplinkTooSmallForIPv6: the underlay's MTU shrinks so far that pods have less than IPv6 needs. It is told once, IPv4 follows, and
// penstock0 stays in IPv6, so that all is as before when the MTU grows again.
func TestUplinkTooSmallForIPv6(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	set := func(mtu, pods, own int) {
		t.Helper()
		for _, n := range l.Nodes {
			if err := n.Netlink().LinkSetMTU(uplink(t, n), mtu); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range l.Nodes {
			await(t, "the new MTU in status and on penstock0", func() bool {
				p, err := n.Netlink().LinkByName("penstock0")
				return n.Daemon.Status(t).MTU == pods && err == nil && p.Attrs().MTU == own
			})
		}
	}
	set(1320, 1270, 1280)
	transfer(t, &av.Host, &bv.Host, false, 4<<20, 4<<20)
	for _, n := range l.Nodes {
		await(t, "what is wrong in the log", func() bool { return saying(t, n.Daemon.Process, "the pods' MTU no longer fits the underlay") == 1 })
	}
	set(1500, 1450, 1450)
	pingBoth(t, &av.Host, &bv.Host)
	for _, v6 := range []bool{false, true} {
		transfer(t, &av.Host, &bv.Host, v6, 4<<20, 4<<20)
	}
	for _, n := range l.Nodes {
		for _, never := range []string{"cannot be followed", "disable_ipv6", "somebody had"} {
			if strings.Contains(n.Daemon.Process.Output(), never) {
				t.Errorf("%s says %q:\n%s", n.Name, never, n.Daemon.Process.Output())
			}
		}
	}
	conserved(t, l)
}
