package lab

import (
	"net/netip"
	"os/exec"
	"testing"
	"time"
)

// A yardstick that loses or mangles what it is given would measure nothing.
func TestBareRelay(t *testing.T) {
	Require(t)
	if _, err := exec.LookPath("cc"); err != nil {
		t.Skip("there is no C compiler (cc), which the bare relay needs")
	}
	for _, way := range []string{"one", "joined", "bundled"} {
		t.Run(way, func(t *testing.T) {
			l := New(t, Config{Roles: []Role{BareRelay, BareRelay}, Wiring: Direct, Relay: way})
			a, b := l.Nodes[0].AddPod(t, TUN), l.Nodes[1].AddPod(t, TUN)
			if _, err := TransferTCP(t.Context(), &a.Host, &b.Host, false, 4<<20, 4<<20); err != nil {
				t.Error(err)
			}
			sink, err := b.ReceiveStream(0)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			to := netip.AddrPortFrom(b.IP4, sink.Port())
			for _, stream := range []Stream{
				{Sizes: []int{64, 570, 1300}, Count: 3000, Burst: 16, Flows: 4, Rate: 50000, Sink: sink},
				{Sizes: []int{64}, Count: 2000, Burst: 30, Rate: 50000}, // which are joined
				{Segment: 500, Count: 2000, Burst: 30, Rate: 50000},
			} {
				if n, err := a.SendStream(t.Context(), to, stream); err != nil || n != stream.Count {
					t.Errorf("stream %+v: %d sent, %v", stream, n, err)
				}
			}
			if got := sink.WaitFor(7000, 20*time.Second); !got.Perfect(7000) {
				t.Errorf("streams arrived as %+v", got)
			}
		})
	}
}
