package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestPing: every pod and node reaches every other, by every encapsulation,
// and a transfer arrives whole both ways.
func TestPing(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, encap := range []string{"vxlan", "udp", "ipip"} {
		t.Run(encap, func(t *testing.T) {
			l := lab.New(t, lab.Config{Encap: encap})
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			pods := []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN)}
			for _, from := range pods {
				for _, to := range pods {
					for _, v6 := range []bool{false, true} {
						if from == to {
							continue
						}
						if err := from.Ping(to.Addr(v6)); err != nil {
							t.Errorf("%s (%s, %s) → %s: %v", from.Name, from.Attach, from.Node.Name, to.Addr(v6), err)
						}
					}
				}
			}
			for _, to := range pods {
				for _, v6 := range []bool{false, true} {
					if err := a.Ping(to.Addr(v6)); err != nil {
						t.Errorf("node-a → %s %s: %v", to.Attach, to.Addr(v6), err)
					}
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			for _, from := range pods[:2] {
				for _, to := range pods[2:] {
					r, err := lab.TransferTCP(ctx, &from.Host, &to.Host, false, 16<<20, 16<<20)
					if err != nil {
						t.Errorf("%s → %s: %v", from.Attach, to.Attach, err)
						continue
					}
					t.Logf("%s ↔ %s: %.1f Gbit/s, %d retransmits", from.Attach, to.Attach, r.Rate()/1e9, r.Retransmits)
				}
			}
			for _, n := range l.Nodes {
				n.Daemon.AssertConserved(t)
			}
		})
	}
}
