package daemon

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// gate lets few ADDs be at work at once: between the reservation of addresses and the attachment a plugin makes devices, and all
// of that goes through one lock of the kernel (RTNL), which is handed to the waiter that comes next, also when that has
// to wait for a core. Fifty plugins that queue for it so get less done than four (docs/decisions/0012-gate.md has the
// figures). Those that wait here wait for an answer, and cost nothing.
//
// The gate delays and never refuses: who has waited for long goes in, and who was let in and never came back (a plugin that
// was killed) keeps no place.
type gate struct {
	places chan struct{} // as many as may be inside

	mu     sync.Mutex
	inside map[control.PodKey]*stay
}

// stay ends by its timer if nobody ends it.
type stay struct{ timer *time.Timer }

const (
	insideFor  = 500 * time.Millisecond // an ADD takes 30 ms when it is alone
	outsideFor = 3 * time.Second        // ADD gives up after 10 s (package cni)
)

func newGate(places int) *gate {
	return &gate{places: make(chan struct{}, places), inside: make(map[control.PodKey]*stay)}
}

// gatePlaces are three a core: one works while the others wait for the disk, or for a grace period of RCU (medians of three runs
// with 3, 4, 6 and 10 places on two cores: 1.05, 1.09, 0.97 and 1.00 s for the last of 50), up to a bound, as the lock is one for all
// cores. Tests that reserve without attaching have more.
var gatePlaces = min(3*runtime.NumCPU(), 12)

// enter waits for a place, unless k has one.
func (g *gate) enter(ctx context.Context, k control.PodKey) {
	g.mu.Lock()
	_, in := g.inside[k]
	g.mu.Unlock()
	if in {
		return
	}
	patience := time.NewTimer(outsideFor)
	defer patience.Stop()
	select {
	case g.places <- struct{}{}:
	case <-patience.C:
		return
	case <-ctx.Done():
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, in := g.inside[k]; in { // asked twice at once
		<-g.places
		return
	}
	s := new(stay)
	s.timer = time.AfterFunc(insideFor, func() { g.drop(k, s) })
	g.inside[k] = s
}

// leave gives k's place to the next.
func (g *gate) leave(k control.PodKey) { g.drop(k, nil) }

// drop is leave, if s is still k's stay; nil is any.
func (g *gate) drop(k control.PodKey, s *stay) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if has, in := g.inside[k]; in && (s == nil || s == has) {
		has.timer.Stop()
		delete(g.inside, k)
		<-g.places
	}
}
