package forwarder

import "github.com/penstock-net/penstock/ring"

// A worker's place among the threads that want its core (ring.Priority). It is
// judged by what has come in a span of a few milliseconds:
//
//	few frames, somebody's request ─▶ prompt: at once, whoever has the core
//	TCP in bulk                    ─▶ steady: before others, interrupting nobody
//	many small packets             ─▶ even:   as everyone
//
// In bulk, each system call wakes a pod or a peer, who would take the core at once
// and find one superframe; first the worker's batch should end. That is safe: a TCP
// sender whose receiver gets no time stops. Who floods with small packets does not
// stop, and a worker that goes before the pods then would leave them no time to take
// what it brings, and get each packet by itself (docs/decisions/0015-priority.md).

const (
	// rankSpan is how long frames are counted before they are judged, in ns.
	rankSpan = 5e6
	// floodFrames a second are a flood, streamBytes of TCP a second are bulk if there
	// are streamFrame bytes and more of it for each frame. Less than half ends either.
	floodFrames = 30e3
	streamBytes = 50e6
	streamFrame = 1000
)

// standing is where a worker stands among other threads, and what it has seen
// since that was last judged.
type standing struct {
	used   bool // the setting, and whether the kernel allows it
	now    ring.Priority
	begun  int64 // ns: when counting began
	frames int
	stream int // bytes of TCP packets
}

// rank judges what was seen in so many ns.
func (s *standing) rank(span int64) ring.Priority {
	frames, stream, frame := floodFrames, streamBytes, streamFrame
	if s.now == ring.PriorityEven {
		frames /= 2
	}
	if s.now == ring.PrioritySteady {
		stream, frame = stream/2, frame/2
	}
	seconds := float64(span) / 1e9
	switch {
	case float64(s.stream) >= stream*seconds && s.stream >= frame*s.frames:
		return ring.PrioritySteady
	case float64(s.frames) >= frames*seconds:
		return ring.PriorityEven
	}
	return ring.PriorityPrompt
}

// ranked counts the frames of a turn, and changes the thread's priority if it is due.
func (w *worker) ranked(frames int) {
	s := &w.standing
	s.frames += frames
	span := w.nanos - s.begun
	if span < rankSpan || !s.used {
		return
	}
	if to := s.rank(span); to != s.now {
		w.tally.priorities++
		w.take(to)
	}
	s.begun, s.frames, s.stream = w.nanos, 0, 0
}

// take gives the worker's thread a priority. A kernel that refuses is not asked again.
func (w *worker) take(p ring.Priority) {
	s := &w.standing
	if err := w.f.env.setPriority(p); err != nil {
		s.used = false
		w.f.switchedOff[switchPriority].Add(1)
		w.f.log.Warn("a worker cannot go before other threads any more; it is as everyone from now on", "worker", w.index, "error", err)
		_ = w.f.env.setPriority(ring.PriorityEven)
		return
	}
	s.now = p
}
