package e2e

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
)

// gsoPackets is how many frames went in by the node's TAP: superframes that left whole.
func gsoPackets(t *testing.T, n *lab.Node) uint64 {
	t.Helper()
	s, err := n.LinkStats("penstock-gso")
	if err != nil {
		t.Fatal(err)
	}
	return s.RxPackets
}

// wholeBulk carries 8 MiB from one pod to another and reports whether superframes left whole.
func wholeBulk(t *testing.T, from, to *lab.Pod) (whole uint64) {
	t.Helper()
	before := gsoPackets(t, from.Node)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := lab.TransferTCP(ctx, &from.Host, &to.Host, false, 8<<20, 0); err != nil {
		t.Fatalf("%s → %s: %v", from.IP4, to.IP4, err)
	}
	return gsoPackets(t, from.Node) - before
}

// eventually repeats wholeBulk until superframes leave whole, or no longer do.
func eventually(t *testing.T, want bool, from, to *lab.Pod) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		if n := wholeBulk(t, from, to); (n > 0) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("superframes leave whole: %v, want %v\n%s", !want, want, from.Node.Daemon.Process.Output())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func needWhole(t *testing.T, n *lab.Node) {
	t.Helper()
	for _, c := range n.Daemon.Status(t).Capabilities {
		if c.Name == "tunnelGSO" && !c.Found {
			t.Skipf("this kernel has no tunnel superframes (%s): %s", c.Needs, c.Detail)
		}
	}
}

// TestWholeFollowsTheRoute: over the link, then over a gateway, then over a
// second uplink, then over a bridge, and back.
func TestWholeFollowsTheRoute(t *testing.T) {
	lab.Require(t)
	for _, encap := range []string{"vxlan"} { // udp peers may be flannel, which reads one packet's length: see forwarder/whole.go
		t.Run(encap, func(t *testing.T) {
			l := lab.New(t, lab.Config{Encap: encap, Wiring: lab.Routed})
			l.Start(t)
			needWhole(t, l.Nodes[0])
			a, b := l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.TUN)
			if err := a.Ping(b.IP4); err != nil {
				t.Fatal(err)
			}
			eventually(t, true, a, b) // by the gateway
			eventually(t, true, b, a)

			// A second wire between the nodes, and a route over it.
			na, nb := l.Nodes[0], l.Nodes[1]
			wire(t, na, nb, "eth1")
			route(t, na, nb.Underlay(), "eth1")
			route(t, nb, na.Underlay(), "eth1")
			for deadline := time.Now().Add(patience); ; {
				before := sent(t, na, "eth1")
				whole := wholeBulk(t, a, b)
				n := sent(t, na, "eth1") - before
				if n >= 8<<20 && whole > 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d bytes over the second uplink, %d superframes", n, whole)
				}
			}
			for _, n := range l.Nodes {
				n.Daemon.AssertConserved(t)
			}
		})
	}
}

// TestWholeOverBridge: the uplink is a bridge with the wire as its port.
func TestWholeOverBridge(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Wiring: lab.Routed})
	na, nb := l.Nodes[0], l.Nodes[1]
	wire(t, na, nb, "eth1")
	for _, n := range []*lab.Node{na, nb} {
		h := n.Netlink()
		port := must(h.LinkByName("eth1"))
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br1", MTU: 1500}}); err != nil {
			t.Fatal(err)
		}
		bridge := must(h.LinkByName("br1"))
		if err := h.LinkSetMaster(port, bridge); err != nil {
			t.Fatal(err)
		}
		if err := h.LinkSetUp(bridge); err != nil {
			t.Fatal(err)
		}
	}
	route(t, na, nb.Underlay(), "br1")
	route(t, nb, na.Underlay(), "br1")
	l.Start(t)
	needWhole(t, na)
	a, b := na.AddPod(t, lab.Veth), nb.AddPod(t, lab.Veth)
	eventually(t, true, a, b)
	for _, n := range l.Nodes {
		n.Daemon.AssertConserved(t)
	}
}

// TestWholeNeverBypasses: an xfrm policy, and a rule that looks at marks, each
// end it at once; with the policy nothing leaves in clear.
func TestWholeNeverBypasses(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Start(t)
	na := l.Nodes[0]
	needWhole(t, na)
	a, b := na.AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
	eventually(t, true, a, b)

	rule := netlink.NewRule()
	rule.Mark, rule.Table, rule.Priority = 7, unix.RT_TABLE_MAIN, 100
	if err := na.Netlink().RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	eventually(t, false, a, b)
	if err := na.Netlink().RuleDel(rule); err != nil {
		t.Fatal(err)
	}
	eventually(t, true, a, b)

	// A policy without a state: what it covers may not leave at all.
	host := func(a netip.Addr) *net.IPNet { return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)} }
	policy := &netlink.XfrmPolicy{Src: host(na.Underlay()), Dst: host(l.Nodes[1].Underlay()), Dir: netlink.XFRM_DIR_OUT,
		Tmpls: []netlink.XfrmPolicyTmpl{{Src: na.Underlay().AsSlice(), Dst: l.Nodes[1].Underlay().AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT}}}
	if err := na.Do(func() error { return netlink.XfrmPolicyAdd(policy) }); err != nil {
		t.Skipf("this kernel takes no xfrm policy: %v", err)
	}
	transfer := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := lab.TransferTCP(ctx, &a.Host, &b.Host, false, 8<<20, 0)
		return err
	}
	for deadline := time.Now().Add(patience); transfer() == nil; { // what is in the pipe when the policy comes may pass
		if time.Now().After(deadline) {
			t.Fatal("transfers pass through a policy that has no state")
		}
	}
	before := gsoPackets(t, na)
	clear, err := l.Nodes[1].Capture("eth0", func(f []byte) bool {
		ip := lab.IPPayload(f)
		return len(ip) > 28 && ip[9] == unix.IPPROTO_UDP && netip.AddrFrom4([4]byte(ip[12:16])) == na.Underlay()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer clear.Close()
	if transfer() == nil {
		t.Error("a transfer passed through a policy that has no state")
	}
	if n := gsoPackets(t, na) - before; n != 0 {
		t.Errorf("%d superframes went past the policy", n)
	}
	if n := len(clear.Frames()); n != 0 {
		t.Errorf("%d tunnel packets left in clear", n)
	}
	if err := na.Do(func() error { return netlink.XfrmPolicyDel(policy) }); err != nil {
		t.Fatal(err)
	}
	eventually(t, true, a, b)
	for _, n := range l.Nodes {
		n.Daemon.AssertConserved(t)
	}
}

// TestWholeKeepsOrder: one flow of small and large packets, which leave by
// different ways, arrives in order.
func TestWholeKeepsOrder(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Start(t)
	needWhole(t, l.Nodes[0])
	a, b := l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
	eventually(t, true, a, b)
	var duplicates, reorderings uint64
	for range 5 { // on a busy machine a probe or a timer may send again what was only late; what goes out of order does so each time
		at, from := must(b.TcpExt()), must(a.TcpExt())
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		_, err := lab.TransferTCP(ctx, &a.Host, &b.Host, false, 256<<20, 0)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		// What was lost in a pod's full buffer leaves a hole, which is no reordering; a
		// duplicate would show that a retransmission was needless.
		duplicates = must(b.TcpExt())["TCPDSACKOldSent"] - at["TCPDSACKOldSent"]
		reorderings = must(a.TcpExt())["TCPSACKReorder"] - from["TCPSACKReorder"]
		if duplicates <= 10 && reorderings <= 2 {
			return
		}
	}
	t.Errorf("%d duplicates, the sender saw %d reorderings", duplicates, reorderings)
}

// wire connects two nodes by one more veth pair, with the same name on both ends.
func wire(t *testing.T, a, b *lab.Node, name string) {
	t.Helper()
	h := a.Netlink()
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500, TxQLen: 1000}, PeerName: name, PeerNamespace: netlink.NsFd(b.FD())}
	if err := h.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*lab.Node{a, b} {
		if err := n.Netlink().LinkSetUp(must(n.Netlink().LinkByName(name))); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"all", name} {
			n.Sysctl(t, "net/ipv4/conf/"+key+"/rp_filter", "0")
		}
	}
}

// route sends what goes to a node's underlay address out of a device.
func route(t *testing.T, n *lab.Node, to netip.Addr, device string) {
	t.Helper()
	h := n.Netlink()
	err := h.RouteReplace(&netlink.Route{LinkIndex: must(h.LinkByName(device)).Attrs().Index, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())}})
	if err != nil {
		t.Fatal(err)
	}
}

func sent(t *testing.T, n *lab.Node, device string) uint64 {
	t.Helper()
	s, err := n.LinkStats(device)
	if err != nil {
		t.Fatal(err)
	}
	return s.TxBytes
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
