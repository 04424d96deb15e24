package doctor

import (
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

// TestWaitingPods: pods that wait for their queue are one failure, by name, with the command that reaches this daemon; what else is wrong
// with the daemon or a pod is told beside it.
func TestWaitingPods(t *testing.T) {
	waits := control.Pod{Owner: "default/web", Interface: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, Phase: control.PhaseWaiting, Problem: control.WaitsForAdopt}
	bare := waits
	bare.Owner, bare.Container = "", "0123456789abcdef"
	for socket, says := range map[string][]string{
		control.DefaultSocket: {"penstock adopt on this node", "the unit does it"},
		"/srv/p.sock":         {"penstock adopt -socket /srv/p.sock on this node", "ExecStartPost"},
	} {
		x := &examination{o: Options{Socket: socket}}
		x.up, x.pods = true, []control.Pod{waits, bare}
		x.status = control.Status{Waiting: 2, Reason: control.AdoptReason(2)}
		x.daemon()
		x.checkPods(sample{}, sample{})
		if len(x.report.Checks) != 2 || x.report.Checks[0].Result != OK {
			t.Fatalf("%+v", x.report.Checks)
		}
		got := x.report.Checks[1]
		if got.Name != "pods" || got.Result != Failure || !strings.Contains(got.Finding, "default/web 10.244.1.2, 0123456789ab/eth0 10.244.1.2") || !strings.Contains(got.Remedy, "only where that fails: delete the pod") {
			t.Errorf("%+v", got)
		}
		for _, s := range says {
			if !strings.Contains(got.Remedy, s) {
				t.Errorf("%s: %q lacks %q", socket, got.Remedy, s)
			}
		}
	}

	x := &examination{}
	x.up, x.pods = true, []control.Pod{waits}
	x.status = control.Status{Waiting: 1, Reason: control.AdoptReason(1) + "; the underlay is gone"}
	x.daemon()
	if got := one(t, x); got.Result != Failure || !strings.Contains(got.Finding, "the underlay is gone") {
		t.Errorf("%+v", got)
	}
}

// TestAddresses: from nine tenths on a warning, and a failure when the next pod is refused; a family goes by all its CIDRs.
func TestAddresses(t *testing.T) {
	cidr := func(prefix string, size, allocated, leaked uint64) control.IPAMCIDR {
		return control.IPAMCIDR{Prefix: netip.MustParsePrefix(prefix), Size: size, Allocated: allocated, Leaked: leaked, Waiting: 1}
	}
	six := cidr("fd00:1::/64", math.MaxUint64, 254, 0)
	for name, c := range map[string]struct {
		cidrs  []control.IPAMCIDR
		result Result
		says   string
	}{
		"few":           {[]control.IPAMCIDR{cidr("10.244.1.0/24", 254, 228, 0), six}, OK, "228 given of 10.244.1.0/24; 254 given of fd00:1::/64"},
		"nine tenths":   {[]control.IPAMCIDR{cidr("10.244.1.0/24", 254, 228, 1), six}, Warning, "229 of 254 addresses of 10.244.1.0/24 are given"},
		"none":          {[]control.IPAMCIDR{cidr("10.244.1.0/24", 254, 254, 0), six}, Failure, "all 254 addresses of 10.244.1.0/24"},
		"the next CIDR": {[]control.IPAMCIDR{cidr("10.244.1.0/24", 254, 254, 0), cidr("10.244.2.0/24", 254, 0, 0)}, OK, "254 given of 10.244.1.0/24, 10.244.2.0/24"},
		"no room":       {[]control.IPAMCIDR{cidr("10.244.1.1/32", 0, 0, 0)}, Skipped, "no pod CIDR"},
		"not told":      {nil, Skipped, "does not tell"},
	} {
		x := &examination{}
		x.ipam.CIDRs = c.cidrs
		x.checkAddresses()
		if got := one(t, x); got.Name != "addresses" || got.Result != c.result || !strings.Contains(got.Finding, c.says) || (got.Remedy == "") != (c.result == OK || c.result == Skipped) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestMTURemedy: a pod that is made anew with what the CNI list says has the same MTU again.
func TestMTURemedy(t *testing.T) {
	for _, mtu := range []int{9000, 1420} { // more than any peer takes; more than pods get now
		x := &examination{}
		x.status.MTU = 1400
		x.peers = []control.Peer{{Name: "node-b", MTU: 1450}}
		x.ports = []control.Port{{Owner: "default/web", Attach: control.AttachVeth, MTU: mtu}}
		x.checkMTU()
		if got := one(t, x); got.Result != Warning || !strings.Contains(got.Remedy, `take "mtu" out of penstock's part of the CNI list`) {
			t.Errorf("%+v", got)
		}
	}
}
