package e2e

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/doctor"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestDoctorForeignRoutes: what flannel leaves behind, and a peer without a route, are named by doctor and trace with the kernel's own
// answer; the daemon warns when such a route appears, and what keeps it from starting doctor says as well.
func TestDoctorForeignRoutes(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Start(t)
	a, b := l.Nodes[0], l.Nodes[1]
	pod, there := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	h := a.Netlink()
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	device := func(name string, addresses ...string) netlink.Link {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		try(h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + ".end"}))
		link, err := h.LinkByName(name)
		try(err)
		for _, s := range addresses {
			address, err := netlink.ParseAddr(s)
			try(err)
			try(h.AddrAdd(link, address))
		}
		try(h.LinkSetUp(link))
		return link
	}
	route := func(link netlink.Link, to string) *netlink.Route {
		_, dst, err := net.ParseCIDR(to)
		try(err)
		return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_BOOT}
	}
	host, far := a.HostAddr(false).String(), there.Addr(false)
	trace := func(status int, from string, says ...string) {
		t.Helper()
		out := ctlOK(t, a, status, "trace", from, far.String())
		for _, s := range says {
			if !strings.Contains(out, s) {
				t.Errorf("no %q in\n%s", s, out)
			}
		}
	}

	trace(0, host, "the host's stack routes it to penstock0", "it would be sent to the peer")
	want(t, examine(t, a, 0), "host-routes", doctor.OK, "to penstock0")

	flannel := device("flannel.1")
	try(h.RouteAdd(route(flannel, "10.244.2.0/24")))
	const sends = "the host sends 10.244.2.0/24 to flannel.1 and not to penstock0"
	want(t, examine(t, a, 1), "host-routes", doctor.Failure, sends+": the host and routed pods do not reach node-b through Penstock")
	trace(6, host, "the host's stack routes it to flannel.1 and not to penstock0", "it would not come to Penstock")
	trace(0, pod.Addr(false).String(), "it would be sent to the peer")
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(a.Daemon.Process.Output(), sends); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the daemon does not warn")
			break
		}
	}
	try(h.LinkDel(flannel)) // as the remedy has it
	want(t, examine(t, a, 0), "host-routes", doctor.OK, "to penstock0")
	trace(0, host, "it would be sent to the peer")

	cni0 := device("cni0", "10.244.1.1/24")
	want(t, examine(t, a, 1), "host-routes", doctor.Failure, "cannot reach "+pod.Addr(false).String())
	if out := ctlOK(t, a, 6, "trace", host, pod.Addr(false).String()); !strings.Contains(out, "the host's stack routes it to cni0 and not to penstock0") {
		t.Error(out)
	}
	try(h.LinkDel(cni0))

	nowhere := &netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: &net.IPNet{IP: b.IP4.AsSlice(), Mask: net.CIDRMask(32, 32)}}
	try(h.RouteAdd(nowhere))
	want(t, examine(t, a, 1), "peer node-b", doctor.Failure, "this node has no route to 192.0.2.2")
	trace(6, pod.Addr(false).String(), "it would be dropped: underlay_unreachable")
	before := a.Daemon.Metrics(t)
	packet, err := lab.UDPPacket(netip.AddrPortFrom(pod.Addr(false), 5000), netip.AddrPortFrom(far, 5000), []byte("to nowhere"), true)
	try(err)
	pod.InjectIP(packet)
	if n := a.Daemon.AtRest(t).Dropped()["underlay_unreachable"]; n <= before.Dropped()["underlay_unreachable"] {
		t.Error("trace says underlay_unreachable, and a packet is not dropped as that")
	}
	try(h.RouteDel(nowhere))

	a.Daemon.Stop(t)
	penstock0, err := h.LinkByName("penstock0")
	try(err)
	ours := route(penstock0, "10.244.0.0/16")
	ours.Protocol = hostnet.RouteProtocol
	try(h.RouteDel(ours))
	try(h.RouteAdd(route(device("flannel0"), "10.244.0.0/16")))
	const taken = "the route 10.244.0.0/16 belongs to somebody else (dev flannel0, proto 3)"
	want(t, examine(t, a, 3), "host-routes", doctor.Failure, "the daemon cannot start: "+taken)
	if _, err := a.StartErr(); err == nil || !strings.Contains(err.Error(), taken) {
		t.Errorf("the daemon: %v", err)
	}
}
