package forwarder

import (
	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// A worker's place among the threads that want its core (ring.Priority). It is
// judged by what has come in a span of a few milliseconds:
//
//	somebody's request, TCP in bulk ─▶ first
//	many packets that nobody acknowledges ─▶ even: as everyone
//
// Each system call that hands a superframe on wakes a pod or a peer, who would take
// the core at once and find just that one; first the worker's batch should end. It is
// safe as TCP is a closed loop: a receiver that gets no time acknowledges nothing, and
// its sender stops. Who floods does not stop: a worker that went before the pods then
// would leave them no time to take what it brings, and get each packet by itself
// (docs/decisions/0015-priority.md).

const (
	// rankSpan is how long packets are counted before they are judged, in ns.
	rankSpan = 5e6
	// floodFrames a second are a flood; less than half of it ends it.
	floodFrames = 30e3
	// streamFrame is how many bytes TCP packets have on average, acknowledgements among
	// them, if they are bulk.
	streamFrame = 500
	// bigFrame bytes of a packet that is not TCP's count as one more: it may be a superframe.
	bigFrame = 2048
)

// standing is where a worker stands among other threads, and what it has seen
// since that was last judged.
type standing struct {
	used  bool // the setting, and whether the kernel allows it
	now   ring.Priority
	begun int64 // ns: when counting began

	loose         int // packets but TCP's, and what was dropped before it was known
	stream, bytes int // TCP packets
}

// saw counts the frame in hand, once.
func (s *standing) saw(f *frame) {
	f.judged = true
	p := &f.p
	if p.Proto == encap.ProtoTCP {
		s.stream++
		s.bytes += p.Len
		return
	}
	s.loose += 1 + p.Len/bigFrame
}

// rank judges what was seen in so many ns.
func (s *standing) rank(span int64) ring.Priority {
	n, flood := s.loose, floodFrames
	if s.bytes < streamFrame*s.stream {
		n += s.stream
	}
	if s.now == ring.PriorityEven {
		flood /= 2
	}
	if float64(n) >= flood*float64(span)/1e9 {
		return ring.PriorityEven
	}
	return ring.PriorityFirst
}

// judgeStanding changes the thread's priority behind a turn, if it is due.
func (w *worker) judgeStanding() {
	s := &w.standing
	span := w.nanos - s.begun
	if span < rankSpan || !s.used {
		return
	}
	if to := s.rank(span); to != s.now {
		w.take(to)
	}
	s.begun, s.loose, s.stream, s.bytes = w.nanos, 0, 0, 0
}

// goFirst lets the worker go first again before it sleeps: what wakes it is the first packet of something else.
func (w *worker) goFirst() {
	if s := &w.standing; s.used && s.now == ring.PriorityEven {
		w.take(ring.PriorityFirst)
		s.begun, s.loose, s.stream, s.bytes = w.nanos, 0, 0, 0
	}
}

// take changes the worker's priority.
func (w *worker) take(p ring.Priority) {
	if w.assign(p) {
		w.standing.now = p
		w.tally.priorities++
	}
}

// assign gives the worker's thread a priority. A kernel that refuses is not asked again.
func (w *worker) assign(p ring.Priority) bool {
	s, thread := &w.standing, int(w.stay.thread.Load())
	if err := w.f.env.setPriority(thread, p); err != nil {
		s.used, s.now = false, ring.PriorityEven
		w.f.first.Add(-1)
		w.f.switchedOff[switchPriority].Add(1)
		even := w.f.env.setPriority(thread, ring.PriorityEven) // raising a nice value is never refused by the kernel itself
		w.f.log.Warn("a worker cannot go before other threads", "worker", w.index, "error", err, "asEveryone", even == nil)
		return false
	}
	return true
}
