package doctor

import (
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
