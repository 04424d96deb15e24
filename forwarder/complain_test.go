package forwarder

import (
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
)

// TestComplain: an error that lasts is said once a minute for each port and peer, and costs the packets nothing.
func TestComplain(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	r.veth("a1", podA1)
	r.veth("a2", podA2)
	w := r.f.workers[0]
	var log strings.Builder
	r.f.log = slog.New(slog.NewTextHandler(&log, nil))
	now := time.Now()
	r.f.env.now = func() time.Time { return now }
	a1, a2, b := w.outboxes[0].port, w.outboxes[1].port, r.f.peers[nodeB]
	for range 90 { // seconds
		w.begin()
		for _, p := range []*port{a1, a2} {
			if n := testing.AllocsPerRun(1, func() {
				if w.writeReason(p, syscall.EPROTO) != DropPortFailed || w.sendReason(b, syscall.EPROTO) != DropSendFailed {
					t.Error("another reason")
				}
			}); n > 0 { // AllocsPerRun calls it once before it counts
				t.Fatalf("%v allocations", n)
			}
		}
		now = now.Add(time.Second)
	}
	for what, want := range map[string]int{"device=a1": 2, "device=a2": 2, "peer=node-b": 2} {
		if n := strings.Count(log.String(), what); n != want {
			t.Errorf("%s is said %d times in 90 s, want %d:\n%s", what, n, want, log.String())
		}
	}
}
