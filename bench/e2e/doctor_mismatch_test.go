package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/doctor"
)

// TestDoctorMismatch: two nodes that disagree on the VNI or on pod CIDRs are told so, whether pods talk or not, and no firewall is blamed.
func TestDoctorMismatch(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Start(t)
	a, b := l.Nodes[0], l.Nodes[1]
	to, from := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	talk := func() (stop func()) {
		packet, err := lab.UDPPacket(netip.AddrPortFrom(from.IP4, 5000), netip.AddrPortFrom(to.IP4, 5000), []byte("hello"), true)
		if err != nil {
			t.Fatal(err)
		}
		return repeatedly(func() { from.InjectIP(packet) })
	}
	finds := func(n *lab.Node, peer, reason, remedy string) {
		t.Helper()
		all := examine(t, n, 1)
		want(t, all, "peer "+peer, doctor.Failure, "packets from it are dropped here, the last ")
		want(t, all, "peer "+peer, doctor.Failure, " as "+reason+" (")
		if r := all["peer "+peer].Remedy; !strings.Contains(r, remedy) {
			t.Errorf("the remedy is %q, want %q", r, remedy)
		}
	}

	b.Start(t, "encap: {vni: 2}")
	quiet := examine(t, a, 1)
	want(t, quiet, "peer node-b", doctor.Failure, "the node 192.0.2.2 answers, but nobody behind the tunnel")
	if r := quiet["peer node-b"].Remedy; !strings.Contains(r, "do encapsulation, port, VNI and podCIDRs agree") || !strings.Contains(r, "flannel.1") {
		t.Errorf("the remedy is %q", r)
	}
	finds(b, a.Name, "wrong_vni", "encap.vni") // of what a has sent it just now
	stop := talk()
	finds(a, b.Name, "wrong_vni", "encap.vni")
	stop()

	b.Start(t)
	a.Daemon.Reload(t, fmt.Sprintf("peers: [{name: node-b, address: %s, podCIDRs: [10.244.77.0/24]}]", b.Underlay()))
	stop = talk()
	finds(a, b.Name, "inner_source", "podCIDRs")
	stop()
	conserved(t, l)
}

// TestDoctorNobodyListens: a node whose daemon has ended is told from a firewall, by what its kernel answers.
func TestDoctorNobodyListens(t *testing.T) {
	lab.Require(t)
	for what, c := range map[string]lab.Config{
		"holds UDP 8285":      {Encap: "udp", Outer6: true},
		"takes IP protocol 4": {Encap: "ipip"},
	} {
		t.Run(c.Encap, func(t *testing.T) {
			l := lab.New(t, c)
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			b.Daemon.Kill()
			want(t, examine(t, a, 1), "peer node-b", doctor.Failure, "node-b answers that nobody "+what+" there: penstockd is not running on it, or has another encap.type or port")
			b.Start(t)
			want(t, examine(t, a, 0), "peer node-b", doctor.OK, "both ways")
		})
	}
}
