package daemon

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

func init() { gatePlaces = 1 << 12 }

// TestGate: as many as there are places, the next when one leaves, and nobody waits for ever: neither for one that never came
// back nor behind too many.
func TestGate(t *testing.T) {
	key := func(i int) control.PodKey { return control.PodKey{Container: fmt.Sprint(i), Interface: "eth0"} }
	// enter says how long it took.
	enter := func(ctx context.Context, g *gate, i int) time.Duration {
		began := time.Now()
		g.enter(ctx, key(i))
		return time.Since(began)
	}
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2)
		for i, want := range []time.Duration{0, 0, insideFor} { // 2 goes in when 0 has been inside for too long
			if took := enter(t.Context(), g, i); took != want {
				t.Errorf("%d entered after %v, want %v", i, took, want)
			}
		}
		if took := enter(t.Context(), g, 2); took != 0 {
			t.Errorf("one that is inside waited for %v", took)
		}
		synctest.Wait()
		time.AfterFunc(20*time.Millisecond, func() { g.leave(key(2)) })
		synctest.Wait()
		g.leave(key(2))
		g.leave(key(2)) // twice, and of somebody who never entered
		g.leave(key(99))
		if took := enter(t.Context(), g, 3); took != 0 {
			t.Errorf("with a place free it took %v", took)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(g.places) != 0 || len(g.inside) != 0 {
			t.Errorf("after a minute %d places are taken by %v", len(g.places), g.inside)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1)
		g.places <- struct{}{} // for good
		if took := enter(t.Context(), g, 1); took != outsideFor {
			t.Errorf("went in after %v, want %v", took, outsideFor)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if took := enter(ctx, g, 2); took != time.Second {
			t.Errorf("one who gave up after a second was kept for %v", took)
		}
	})
	synctest.Test(t, func(t *testing.T) { // the timer of a first stay does not end a second one
		g := newGate(1)
		g.enter(t.Context(), key(1))
		time.Sleep(insideFor - time.Millisecond)
		g.leave(key(1))
		g.enter(t.Context(), key(1))
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if len(g.inside) != 1 {
			t.Error("the second stay was cut short")
		}
		g.leave(key(1))
	})
}
