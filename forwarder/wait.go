package forwarder

import "github.com/penstock-net/penstock/ring"

// How a worker waits, from lively to asleep. A step is one turn of its loop:
//
//	many frames a source ─▶ ask at once; let others run, ask again (patience)
//	                          │ nothing
//	a frame a source ───────▶ doze: block for dozeMs
//	                          │ nothing
//	                          sleep: block until something comes
//
// Waking a thread costs more than a packet does. Where frames come in batches,
// pods get the CPU for a moment instead of a wake-up for each frame, and the
// frames that they make meanwhile are one batch. Where they come one by one
// nothing follows at once: asking first would only be a system call more.
//
// Before it sleeps it takes the first place among threads again (priority.go).
//
// An idle worker has no timer of its own: it dozes once after the last frame.

const (
	// maxPatience is how often others get the CPU before the worker blocks.
	// What it gives is small, if anything (docs/decisions/0008-waiting.md).
	maxPatience = 3
	// batchOf frames from each ready source are worth being patient for.
	batchOf = 4
	// dozeMs bounds a wait that Go's scheduler does not know of. Such a wait is
	// cheaper; garbage collection, which has to reach this thread, ends it by a
	// signal.
	dozeMs = 2
)

// attention is where a worker stands between work and sleep.
type attention struct {
	patience int
	dozed    bool
	frames   int // taken in this turn
}

// next waits once for events, for at most limit ms (-1: for ever). None may
// come before that: commands are looked for in between.
func (w *worker) next(events []ring.Event, limit int) (n int, err error) {
	switch s := &w.attention; {
	case s.patience > 0:
		if n, err = w.poller.Wait(events, 0); n == 0 {
			ring.Yield()
			s.patience--
		}
	case !s.dozed && (limit < 0 || limit > dozeMs):
		w.asleep.Store(true)
		n, err = w.poller.Doze(events, dozeMs)
		w.asleep.Store(false)
		s.dozed = true
	default:
		if limit < 0 || limit > dozeMs {
			w.rested()
			w.takeTime()
			w.stay.slept = true
		}
		w.asleep.Store(limit != 0)
		n, err = w.poller.Wait(events, limit)
		w.asleep.Store(false)
	}
	return n, err
}

// turned learns from a turn in which n sources were ready.
func (s *attention) turned(n int) {
	if n > 0 {
		s.dozed, s.patience = false, 0
		if s.frames >= batchOf*n {
			s.patience = maxPatience
		}
	}
	s.frames = 0
}
