package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// recovery is how soon after a harm all is as before on a node, without a restart. A machine that does other work meanwhile is
// given ten times that.
const recovery = 2 * time.Second

// heals does harm and waits until ok holds again, and says how long that took.
func heals(t *testing.T, what string, harm func() error, ok func() bool) {
	t.Helper()
	if err := harm(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	began := time.Now()
	await(t, "recovery from "+what, ok)
	took := time.Since(began).Round(time.Millisecond)
	t.Logf("%s: %v", what, took)
	if took > 10*recovery {
		t.Errorf("%s took %v to recover from, %v is promised", what, took, recovery)
	}
}

func says(t *testing.T, d *lab.Daemon, what, text string, least int) {
	t.Helper()
	await(t, what+" is in the log: "+text, func() bool { return saying(t, d.Process, text) >= least })
	if n := saying(t, d.Process, text); n > 3*least {
		t.Errorf("%s: the log says %q %d times", what, text, n)
	}
}

// TestRulesRemoved: nftables.service is restarted, or somebody flushes or deletes our rules. They come back, the daemon says
// so, and connections go on.
func TestRulesRemoved(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{Masquerade: true, YAML: []string{"workers: 2"}})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	talk := converse(t, &av.Host, &bv.Host, false)
	before := settled(t, a)
	same := func() bool { return difference(before, snapshot(t, a.NS)) == "" }
	await(t, "a stable snapshot", same)
	table := func(f nftables.TableFamily) func() error {
		return func() error {
			return a.Nftables(func(c *nftables.Conn) error {
				c.DelTable(&nftables.Table{Name: "penstock", Family: f})
				return c.Flush()
			})
		}
	}
	chain := func(name string, fn func(*nftables.Conn, *nftables.Chain)) func() error {
		return func() error {
			return a.Nftables(func(c *nftables.Conn) error {
				fn(c, &nftables.Chain{Name: name, Table: &nftables.Table{Name: "penstock", Family: nftables.TableFamilyNetdev}})
				return c.Flush()
			})
		}
	}
	for _, harm := range []struct {
		name string
		do   func() error
	}{
		{"nft flush ruleset", func() error {
			return a.Nftables(func(c *nftables.Conn) error { c.FlushRuleset(); return c.Flush() })
		}},
		{"the same again", func() error {
			return a.Nftables(func(c *nftables.Conn) error { c.FlushRuleset(); return c.Flush() })
		}},
		{"nft delete table inet penstock", table(nftables.TableFamilyINet)},
		{"nft delete table netdev penstock", table(nftables.TableFamilyNetdev)},
		{"a pod's drop deleted", chain(av.HostDevice, func(c *nftables.Conn, ch *nftables.Chain) { c.DelChain(ch) })},
	} {
		heals(t, harm.name, harm.do, same)
		talk.goesOn(t, "after "+harm.name)
	}
	says(t, a.Daemon, "flushes", "somebody had changed the host's routes or rules that are ours", 3)
	says(t, a.Daemon, "flushes", "somebody had removed the drops on pods' devices", 4)
	t.Run("superframes", func(t *testing.T) {
		needWhole(t, a)
		eventually(t, true, av, bv)
		rules := func() bool {
			n := 0
			if err := a.Nftables(func(c *nftables.Conn) error {
				rs, err := c.GetRules(&nftables.Table{Name: "penstock", Family: nftables.TableFamilyNetdev}, &nftables.Chain{Name: "penstock-gso"})
				n = len(rs)
				if errors.Is(err, unix.ENOENT) {
					err = nil
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return n == 1
		}
		heals(t, "nft flush chain netdev penstock penstock-gso", chain("penstock-gso", func(c *nftables.Conn, ch *nftables.Chain) { c.FlushChain(ch) }), rules)
		eventually(t, true, av, bv)
		says(t, a.Daemon, "a flushed chain", "somebody had changed the redirect of superframes", 4)
	})
	if err := av.Ping(bv.IP6); err != nil {
		t.Error(err)
	}
	talk.close()
	conserved(t, l)
}

// TestDevicesDeleted: somebody deletes a device of ours. The node's own are made anew with all that hangs on them; a pod's
// veth that comes back under its name is the pod's port again, and one that does not is said.
func TestDevicesDeleted(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{YAML: []string{"workers: 2"}})
	av, at, bv := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	talk := converse(t, &at.Host, &bv.Host, false)
	before := settled(t, a)
	remove := func(name string) func() error {
		return func() error {
			link, err := a.Netlink().LinkByName(name)
			if err != nil {
				return err
			}
			return a.Netlink().LinkDel(link)
		}
	}
	same := func() bool { return difference(before, snapshot(t, a.NS)) == "" }
	for range 2 {
		heals(t, "ip link del penstock0", remove("penstock0"), same)
		if err := a.Ping(av.IP4); err != nil {
			t.Errorf("the host's pods after penstock0 was made anew: %v", err)
		}
		if err := av.Ping(a.IP4); err != nil {
			t.Errorf("the host from a pod after penstock0 was made anew: %v", err)
		}
		talk.goesOn(t, "after penstock0 was made anew")
	}
	says(t, a.Daemon, "penstock0", "somebody had deleted devices that are ours", 2)
	heals(t, "ip link set penstock0 name foo0", func() error {
		link, err := a.Netlink().LinkByName("penstock0")
		if err != nil {
			return err
		}
		return errors.Join(a.Netlink().LinkSetDown(link), a.Netlink().LinkSetName(link, "foo0"))
	}, same)
	talk.goesOn(t, "after penstock0 was named back")
	for _, c := range a.Daemon.Status(t).Capabilities {
		if c.Name == "tunnelGSO" && c.Used {
			heals(t, "ip link del penstock-gso", remove("penstock-gso"), same)
			eventually(t, true, av, bv)
		}
	}
	problem := func(p *lab.Pod) string {
		pods, err := a.Daemon.Control().Pods(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range pods {
			if o.Container == p.Container {
				return o.Problem
			}
		}
		return "no such pod"
	}
	heals(t, "a pod's veth made anew", func() error { av.NewVeth(t); return nil }, func() bool { return !av.Silent(bv.IP4) && problem(av) == "" })
	says(t, a.Daemon, "a new veth", "a pod's device was made anew", 1)
	index := linkIndex(t, a.NS, av.HostDevice)
	heals(t, "a pod's veth deleted", remove(av.HostDevice), func() bool { return strings.Contains(problem(av), "has gone") })
	says(t, a.Daemon, "a deleted veth", "a pod has no network", 1)
	spent := time.Hour
	for try := 0; try < 10 && spent > 400*time.Millisecond; try++ { // the conversation goes on meanwhile, and costs what it costs
		busy := cpuTime(t, a.Daemon.Process.Pid())
		time.Sleep(500 * time.Millisecond)
		spent = cpuTime(t, a.Daemon.Process.Pid()) - busy
	}
	if spent > 400*time.Millisecond {
		t.Errorf("with the device %d gone the daemon used %v of 500 ms", index, spent)
	}
	talk.goesOn(t, "with another pod's device gone")
	if !bv.Silent(av.IP4) {
		t.Error("a pod without a device answers")
	}
	av.Remove(t)
	talk.close()
	conserved(t, l)
}

// TestStopped: the daemon is stopped by SIGSTOP, far more happens than netlink's sockets can hold, also to what is ours, and
// goes on. What it missed it finds out.
func TestStopped(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{YAML: []string{"workers: 2"}})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	talk := converse(t, &av.Host, &bv.Host, false)
	before := settled(t, a)
	talk.goesOn(t, "before")
	if err := a.Daemon.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := a.Nftables(func(c *nftables.Conn) error { c.FlushRuleset(); return c.Flush() }); err != nil {
		t.Error(err)
	}
	tun, err := a.Netlink().LinkByName("penstock0")
	if err == nil {
		err = a.Netlink().LinkSetDown(tun)
	}
	if err != nil {
		t.Error(err)
	}
	dummy := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "storm"}}
	if err := a.Netlink().LinkAdd(dummy); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 { // each is two messages of more than 1 KiB in a socket of 208 KiB
		if err := a.Netlink().LinkSetMTU(dummy, 1000+i%400); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Netlink().LinkDel(dummy); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Log("what differs from before:", difference(before, snapshot(t, a.NS)))
		}
	}()
	heals(t, "a second in SIGSTOP", func() error { return a.Daemon.Process.Signal(syscall.SIGCONT) }, func() bool {
		return difference(before, snapshot(t, a.NS)) == ""
	})
	talk.goesOn(t, "after SIGCONT")
	if ok, why := ready(t, a.Daemon); !ok {
		t.Errorf("not ready: %s", why)
	}
	// A storm while it runs: links change faster than anybody can look.
	lines := len(logged(t, a.Daemon.Process))
	if err := a.Netlink().LinkAdd(dummy); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 {
		if err := a.Netlink().LinkSetMTU(dummy, 1000+i%400); err != nil {
			t.Fatal(err)
		}
	}
	talk.goesOn(t, "in a storm of links")
	if n := len(logged(t, a.Daemon.Process)) - lines; n > 3 {
		t.Errorf("a storm of links made %d lines of log:\n%s", n, a.Daemon.Process.Output())
	}
	talk.close()
	conserved(t, l)
}

// TestAddressMoves: the node's address goes to another interface of the node, and the uplink flaps. Peers are reached by where
// the address is.
func TestAddressMoves(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{YAML: []string{"workers: 2"}})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	talk := converse(t, &av.Host, &bv.Host, false)
	wire(t, a, b, "second")
	address := &netlink.Addr{IPNet: &net.IPNet{IP: a.IP4.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	move := func(from, to string) error {
		var links [2]netlink.Link
		for i, name := range []string{from, to} {
			link, err := a.Netlink().LinkByName(name)
			if err != nil {
				return err
			}
			links[i] = link
		}
		if err := a.Netlink().AddrDel(links[0], address); err != nil {
			return err
		}
		return a.Netlink().AddrAdd(links[1], address)
	}
	device := func() string { return a.Daemon.Status(t).Underlay }
	back := uplink(t, b).Attrs().Index
	for _, way := range [][2]string{{"eth0", "second"}, {"second", "eth0"}} {
		heals(t, "the address on "+way[1], func() error {
			if err := move(way[0], way[1]); err != nil {
				return err
			}
			// The peer is told where the node has gone, as a router would be.
			index := back
			if way[1] == "second" {
				index = linkIndex(t, b.NS, "second")
			}
			return b.Netlink().RouteReplace(&netlink.Route{LinkIndex: index, Dst: &net.IPNet{IP: a.IP4.AsSlice(), Mask: net.CIDRMask(32, 32)}, Scope: netlink.SCOPE_LINK})
		}, func() bool { return device() == way[1] && !av.Silent(bv.IP4) })
		talk.goesOn(t, "with the address on "+way[1])
	}
	says(t, a.Daemon, "a moved address", "the underlay address has moved", 2)
	for range 10 {
		link := uplink(t, a)
		if err := errors.Join(a.Netlink().LinkSetDown(link), a.Netlink().LinkSetUp(link)); err != nil {
			t.Fatal(err)
		}
	}
	heals(t, "ten link flaps", func() error { return nil }, func() bool { ok, _ := ready(t, a.Daemon); return ok && !av.Silent(bv.IP4) })
	talk.goesOn(t, "after ten link flaps")
	talk.close()
	conserved(t, l)
}

// TestFullDisk: with no room for state a new pod is refused with a sentence that says so, pods that run are not touched, one can
// be deleted, and with room again a pod is attached.
func TestFullDisk(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	a, b := l.Nodes[0], l.Nodes[1]
	state := t.TempDir()
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(state, unix.MNT_DETACH) })
	a.Start(t, "state: "+state)
	b.Start(t)
	av, second, bv := a.AddPod(t, lab.Veth), a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	talk := converse(t, &av.Host, &bv.Host, false)
	ballast := filepath.Join(state, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	ask := func(i int) error {
		_, err := a.Daemon.Control().Allocate(t.Context(), control.AllocateRequest{Container: fmt.Sprint("new-", i), Interface: "eth0", Network: "n"})
		return err
	}
	for i := range 5 {
		if err := ask(i); control.CodeOf(err) != control.NoSpace || !strings.Contains(err.Error(), "space") {
			t.Errorf("a pod on a full disk: %v", err)
		}
	}
	talk.goesOn(t, "with a full disk")
	if ok, why := ready(t, a.Daemon); !ok {
		t.Errorf("with a full disk it is not ready: %s", why)
	}
	cannotAdd(t, a, "no space left", "make room there")
	if err := unix.Mount("", state, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := ask(7); control.CodeOf(err) != control.NoSpace || strings.Contains(err.Error(), "make room") {
		t.Errorf("a pod on a read-only disk: %v", err)
	}
	cannotAdd(t, a, "read-only", "mount it read-write")
	if err := unix.Mount("", state, "", unix.MS_REMOUNT, "size=64k"); err != nil {
		t.Fatal(err)
	}
	second.Remove(t)
	if i, err := a.Daemon.Control().IPAM(t.Context()); err != nil || len(i.Addresses) == 0 || strings.Contains(fmt.Sprint(i.Addresses), "new-") {
		t.Errorf("addresses after refusals: %+v, %v", i, err)
	}
	heals(t, "a full disk", func() error { return os.Remove(ballast) }, func() bool { return ask(9) == nil })
	talk.goesOn(t, "with room again")
	talk.close()
	conserved(t, l)
}
