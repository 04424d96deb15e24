package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestWithoutIPv6: on a node whose IPv6 is off the daemon runs with an IPv4 configuration, pods of all kinds talk, and nothing is
// logged as an error.
func TestWithoutIPv6(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{YAML: []string{"network: {cidrs: [10.244.0.0/16]}"}})
	a, b := l.Nodes[0], l.Nodes[1]
	only4 := func(n, peer *lab.Node) string {
		return fmt.Sprintf("node: {podCIDRs: ['%s']}\npeers: [{name: %s, address: %s, podCIDRs: ['%s']}]", n.PodCIDR4, peer.Name, peer.IP4, peer.PodCIDR4)
	}
	for _, n := range l.Nodes {
		for _, key := range []string{"all", "default", "eth0"} {
			n.Sysctl(t, "net/ipv6/conf/"+key+"/disable_ipv6", "1")
		}
	}
	a.Start(t, only4(a, b))
	b.Start(t, only4(b, a))
	var pods [2][]*lab.Pod
	for i, n := range l.Nodes {
		for j, kind := range []lab.Attach{lab.Veth, lab.TUN} {
			address := n.PodCIDR4.Addr().As4()
			address[3] = byte(10 + j)
			pods[i] = append(pods[i], n.AddPodWith(t, kind, netip.AddrFrom4(address)))
		}
	}
	for i := range pods[0] {
		for _, to := range []*lab.Host{&pods[1][i].Host, &pods[0][1-i].Host, &a.Host} {
			if err := pods[0][i].Ping(to.IP4); err != nil {
				t.Error(err)
			}
		}
		transfer(t, &pods[0][i].Host, &pods[1][1-i].Host, false, 1<<20, 1<<20)
		if err := a.Ping(pods[0][i].IP4); err != nil {
			t.Error(err)
		}
	}
	for _, line := range logged(t, a.Daemon.Process) {
		if line["level"] == "ERROR" {
			t.Errorf("logged: %v", line)
		}
	}
	conserved(t, l)
}
