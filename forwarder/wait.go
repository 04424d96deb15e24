package forwarder

import "github.com/penstock-net/penstock/ring"

// How a worker waits, from lively to asleep. A step is one turn of its loop:
//
//	packets come at short intervals ─▶ ask: look, let others run, look again
//	                                     │ nothing for askFor, or somebody needs the core
//	they do not ─────────────────────▶ doze: block for dozeMs
//	                                     │ nothing
//	                                     sleep: block until something comes
//
// A thread that blocks has to be woken, and the core that it leaves halts: on a virtual
// machine that is a call to the hypervisor and some 50 µs, for each of the workers that a
// packet passes. So where the next packet will be there before that, a worker stays awake
// for it, on time that nobody else wants. Whether it will, the last wait tells: where
// packets come seldom there is no asking, and what is idle costs nothing.
//
// Between two looks the worker yields the core (sched_yield, which reaches as far as the
// scheduling group). If it has it back late, another thread needs the core and would take a whole
// time slice each time; a worker that blocks is woken before that thread (priority.go). So the
// worker then stops asking for a while (docs/decisions/0017-asking.md).
//
// Before it sleeps it takes the first place among threads again.
//
// An idle worker has no timer of its own: it dozes once after the last frame.

const (
	// askFor is how long, in ns, a worker asks for more behind a turn, if the wait before that
	// turn was shorter: a wake-up costs about that on both ends.
	askFor = 100e3
	// contested is how long, in ns, the core is away when somebody else needs it: more than another worker
	// asks, or a pod takes to read or write what is there, less than a time slice
	// (0.7 ms, times 1 + log2 of the cores up to 8: sysctl_sched_base_slice in
	// kernel/sched/fair.c; 1.4 ms with 2).
	contested = 1e6
	// askRest is how long, in ns, a worker does not ask then.
	askRest = 100e6
	// dozeMs bounds a wait that Go's scheduler does not know of. Such a wait is
	// cheaper; garbage collection, which has to reach this thread, ends it by a
	// signal.
	dozeMs = 2
)

// attention is where a worker stands between work and sleep.
type attention struct {
	used  bool  // the setting: it may ask
	ended int64 // ns: when the last turn was over
	until int64 // ns: it asks till then; 0: it does not
	rest  int64 // ns: it does not ask before
	short bool  // the last wait was
	dozed bool
}

// next waits once for events, for at most limit ms (-1: no limit). It may return
// early without any, so that the caller looks for commands.
func (w *worker) next(events []ring.Event, limit int) (n int, err error) {
	s := &w.attention
	switch {
	case s.until != 0:
		from := w.clock()
		if n, err = w.poller.Wait(events, 0); n == 0 {
			ring.Yield()
			w.tally.asking += uint64(s.vain(from, w.clock()))
		}
	case !s.dozed && (limit < 0 || limit > dozeMs):
		w.asleep.Store(true)
		n, err = w.poller.Doze(events, dozeMs)
		w.asleep.Store(false)
		s.dozed = true
	default:
		if limit < 0 || limit > dozeMs {
			w.goFirst()
			w.takeTime()
			w.stay.slept = true
		}
		w.asleep.Store(limit != 0)
		n, err = w.poller.Wait(events, limit)
		w.asleep.Store(false)
	}
	if n > 0 {
		s.came(w.clock())
	}
	return n, err
}

// clock is the time now, where w.nanos is that of the batch.
func (w *worker) clock() int64 { return w.f.env.now().Sub(w.f.started).Nanoseconds() }

// came is told when something has.
func (s *attention) came(now int64) { s.short = now-s.ended < askFor }

// vain learns from having asked for nothing, and having had others run: how long that took.
func (s *attention) vain(from, now int64) (took int64) {
	took = now - from
	if took > contested {
		s.rest, s.until = now+askRest, 0
	} else if now >= s.until {
		s.until = 0
	}
	return took
}

// turned is told when a turn is over in which something was ready.
func (s *attention) turned(now int64) {
	s.dozed, s.until = false, 0
	s.ended = now
	if s.used && s.short && now >= s.rest {
		s.until = now + askFor
	}
}
