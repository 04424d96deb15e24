package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/hostlook"
)

// refused reports whether a TCP connection is answered by a reset; false: by nothing at all.
func refused(t *testing.T, from *lab.Node, to netip.AddrPort) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	c, err := from.DialTCP(ctx, to)
	switch {
	case err == nil:
		c.Close()
		t.Fatalf("%v accepts a connection", to)
	case errors.Is(err, unix.ECONNREFUSED):
		return true
	case !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err):
		t.Fatal(err)
	}
	return false
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// resets is how many a node's TCP has sent.
func resets(t *testing.T, n *lab.Node) uint64 {
	t.Helper()
	s, err := n.Snmp()
	if err != nil {
		t.Fatal(err)
	}
	return s["Tcp.OutRsts"]
}

// TestNativeTCPIsNotTheKernels: the node's own TCP neither answers nor tracks what comes by the tcp carrier, while it is used, while the
// daemon is down and its peer goes on sending, and after the rules were flushed; --cleanup ends that.
func TestNativeTCPIsNotTheKernels(t *testing.T) {
	lab.Require(t)
	for _, outer6 := range []bool{false, true} {
		l := lab.New(t, lab.Config{Kind: lab.Cut, Outer6: outer6, Masquerade: true, YAML: []string{nativeYAML("tcp")}})
		l.Start(t)
		na, nb := l.Nodes[0], l.Nodes[1]
		port := netip.AddrPortFrom(nb.Underlay(), 7471)
		a, b := na.AddPod(t, lab.Veth), nb.AddPod(t, lab.Veth)
		becomesNative(t, true, na, a, b)
		before := [2]uint64{resets(t, na), resets(t, nb)}
		transfer(t, &a.Host, &b.Host, false, 16<<20, 16<<20)
		if refused(t, na, port) {
			t.Error("the kernel answers while the daemon runs")
		}
		// The peer goes on for a moment when the daemon has gone.
		nb.Daemon.Stop(t)
		_, _ = lab.TransferTCP(brief(t, time.Second), &a.Host, &b.Host, false, 1<<20, 0)
		if refused(t, na, port) {
			t.Error("the kernel answers while the daemon is down")
		}
		if !refused(t, na, netip.AddrPortFrom(nb.Underlay(), 7472)) {
			t.Error("the kernel does not answer at other ports")
		}
		for i, n := range []*lab.Node{na, nb} {
			if sent := resets(t, n) - before[i] - uint64(i); sent != 0 { // the one at the other port is the last node's
				t.Errorf("%s has sent %d resets", n.Name, sent)
			}
			if err := n.Do(func() error {
				for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
					flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
					if err != nil {
						return err
					}
					for _, f := range flows {
						if f.Forward.Protocol == unix.IPPROTO_TCP && f.Forward.DstPort == 7471 && f.Forward.DstIP.Equal(n.Underlay().AsSlice()) {
							t.Errorf("conntrack of %s knows %v", n.Name, f)
						}
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		nb.Start(t)
		becomesNative(t, true, na, a, b)
		if err := nb.Nftables(func(c *nftables.Conn) error { c.FlushRuleset(); return c.Flush() }); err != nil {
			t.Fatal(err)
		}
		await(t, "the drop is back", func() bool { return strings.Contains(dump(t, nb), "chain eth0") })
		if refused(t, na, port) {
			t.Error("the kernel answers after a flush of the rules")
		}
		conserved(t, l)
		nb.Daemon.Stop(t)
		nb.Daemon.Cleanup(t)
		if !refused(t, na, port) {
			t.Error("the kernel does not answer after the cleanup")
		}
	}
}

// dump is what a node has in the nft tables of the daemon.
func dump(t *testing.T, n *lab.Node) (rules string) {
	t.Helper()
	if err := n.Do(func() (err error) { rules, err = hostlook.DumpTables(); return err }); err != nil {
		t.Fatal(err)
	}
	return rules
}

func brief(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestNativeTCPFollowsTheUplink: the node's address moves to another device; the carrier and the drop follow it.
func TestNativeTCPFollowsTheUplink(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{YAML: []string{nativeYAML("tcp")}})
	l.Start(t)
	na, nb := l.Nodes[0], l.Nodes[1]
	a, b := na.AddPod(t, lab.Veth), nb.AddPod(t, lab.Veth)
	becomesNative(t, true, na, a, b)
	wire(t, na, nb, "eth1")
	for _, n := range []*lab.Node{na, nb} {
		h := n.Netlink()
		old, next := must(h.LinkByName("eth0")), must(h.LinkByName("eth1"))
		for _, addr := range must(h.AddrList(old, unix.AF_INET)) {
			if err := h.AddrDel(old, &addr); err != nil {
				t.Fatal(err)
			}
			if err := h.AddrAdd(next, &netlink.Addr{IPNet: addr.IPNet}); err != nil {
				t.Fatal(err)
			}
		}
	}
	await(t, "the drop has moved", func() bool {
		d := dump(t, nb)
		return strings.Contains(d, "chain eth1") && !strings.Contains(d, "chain eth0")
	})
	becomesNative(t, true, na, a, b)
	goesBy(t, na, "tcp")
	before := sent(t, na, "eth1")
	transfer(t, &a.Host, &b.Host, false, 16<<20, 0)
	if n := sent(t, na, "eth1") - before; n < 16<<20 {
		t.Errorf("%d bytes by the second uplink", n)
	}
	if refused(t, na, netip.AddrPortFrom(nb.Underlay(), 7471)) {
		t.Error("the kernel answers at the second uplink")
	}
	conserved(t, l)
}

// TestNativeAutoChooses: with both carriers frames go by tcp, by udp while the uplink takes only UDP's superframes uncut, and by tcp again.
func TestNativeAutoChooses(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{YAML: []string{nativeYAML("auto")}})
	l.Start(t)
	na, nb := l.Nodes[0], l.Nodes[1]
	a, b := na.AddPod(t, lab.Veth), nb.AddPod(t, lab.Veth)
	talk := converse(t, &a.Host, &b.Host, false)
	for _, c := range []struct {
		tso, uso bool
		want     string
	}{{true, true, "tcp"}, {false, true, "udp"}, {false, false, "tcp"}, {true, false, "tcp"}} {
		if err := na.SetFeatures("eth0", map[string]bool{"tx-tcp-segmentation": c.tso, "tx-tcp6-segmentation": c.tso, "tx-udp-segmentation": c.uso}); err != nil {
			t.Skip(err)
		}
		goesBy(t, na, c.want)
		talk.goesOn(t, "by "+c.want)
	}
	talk.close()
	conserved(t, l)
}

// TestNativeTCPNeverBypasses: a rule that looks at marks, and an xfrm policy, each end the carrier at once; with the policy nothing leaves in clear.
func TestNativeTCPNeverBypasses(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{YAML: []string{nativeYAML("tcp")}})
	l.Start(t)
	na, nb := l.Nodes[0], l.Nodes[1]
	a, b := na.AddPod(t, lab.Veth), nb.AddPod(t, lab.Veth)
	becomesNative(t, true, na, a, b)
	rule := netlink.NewRule()
	rule.Mark, rule.Table, rule.Priority = 7, unix.RT_TABLE_MAIN, 100
	if err := na.Netlink().RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	becomesNative(t, false, na, a, b)
	await(t, "the reason is said", func() bool { return strings.Contains(nativeOf(t, na).Why, "xfrm") })
	if err := na.Netlink().RuleDel(rule); err != nil {
		t.Fatal(err)
	}
	becomesNative(t, true, na, a, b)
	host := func(a netip.Addr) *net.IPNet { return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)} }
	policy := &netlink.XfrmPolicy{Src: host(na.Underlay()), Dst: host(nb.Underlay()), Dir: netlink.XFRM_DIR_OUT,
		Tmpls: []netlink.XfrmPolicyTmpl{{Src: na.Underlay().AsSlice(), Dst: nb.Underlay().AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT}}}
	if err := na.Do(func() error { return netlink.XfrmPolicyAdd(policy) }); err != nil {
		t.Skipf("this kernel takes no xfrm policy: %v", err)
	}
	time.Sleep(200 * time.Millisecond)
	clear, err := nb.Capture("eth0", func(f []byte) bool {
		ip := lab.IPPayload(f)
		return len(ip) > 28 && ip[9] == unix.IPPROTO_TCP && netip.AddrFrom4([4]byte(ip[12:16])) == na.Underlay()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer clear.Close()
	if _, err := lab.TransferTCP(brief(t, time.Second), &a.Host, &b.Host, false, 1<<20, 0); err == nil {
		t.Error("a transfer passed through a policy that has no state")
	}
	if n := len(clear.Frames()); n != 0 {
		t.Errorf("%d packets left in clear", n)
	}
	if err := na.Do(func() error { return netlink.XfrmPolicyDel(policy) }); err != nil {
		t.Fatal(err)
	}
	becomesNative(t, true, na, a, b)
	transfer(t, &a.Host, &b.Host, false, 8<<20, 0)
	conserved(t, l)
}
