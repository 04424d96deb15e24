package doctor

import (
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

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
