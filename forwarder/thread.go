package forwarder

import (
	"runtime"
	"sync/atomic"

	"github.com/penstock-net/penstock/ring"
)

// A worker is locked to a thread, whose nice value is its place among others (priority.go). But Go's monitor takes
// from any goroutine what it has had for 10 ms without a break, and one that is locked gets it back by way
// of two others:
//
//	taken ─▶ its thread sleeps ─▶ a thread without any priority wakes, where there is a core for it
//	           ▲                    │ finds the worker
//	           └────── wakes it ────┘
//
// Where pods keep the cores busy that is a wait of milliseconds, a hundred times a second. So a worker gives its
// place up by itself, oftener, and unlocked: it mostly has it again at once, on the same thread, which takes
// a microsecond. Otherwise somebody else's thread has taken it up, and it takes its priority along.

// renewEvery is how long, in ns, a worker goes on before it renews its place: less than the 10 ms of Go's monitor.
const renewEvery = 8e6

// stay is a worker's stay on a thread.
type stay struct {
	thread  atomic.Int32 // the kernel's ID; other workers that move look at it
	renewed int64        // ns: when the place was last renewed, or the worker woke
	slept   bool         // since then: what wakes it begins a new time
	base    uint64       // ns: what the thread had used of the CPU when the time was last taken
	cpu     atomic.Uint64
}

// settle locks the worker to its first thread.
func (w *worker) settle() {
	runtime.LockOSThread()
	w.stay.thread.Store(int32(ring.Thread()))
	w.stay.base = ring.ThreadTime()
}

// renew gives the thread up for a moment, behind a turn, if it is due.
func (w *worker) renew() {
	s := &w.stay
	if s.slept {
		s.slept, s.renewed = false, w.nanos
		return
	}
	if w.nanos-s.renewed < renewEvery {
		return
	}
	s.renewed = w.nanos
	w.takeTime()
	runtime.UnlockOSThread()
	runtime.Gosched()
	runtime.LockOSThread()
	if now := int32(ring.Thread()); now != s.thread.Load() {
		w.moved(now)
	}
}

// moved takes the priority along to another thread, and leaves none behind. One worker at a time does so: of two that
// change places neither takes from the other what it has just got.
func (w *worker) moved(to int32) {
	w.f.moving.Lock()
	defer w.f.moving.Unlock()
	s := &w.stay
	from := s.thread.Swap(to)
	s.base = ring.ThreadTime()
	if !w.standing.used {
		return
	}
	if !w.f.occupied(from) { // whatever we are: who was here before us may have thought that we still are
		_ = w.f.env.setPriority(int(from), ring.PriorityEven) // never refused: it is less
	}
	w.assign(w.standing.now)
}

// occupied tells whether a worker is on the thread.
func (f *Forwarder) occupied(thread int32) bool {
	for _, w := range f.workers {
		if w.stay.thread.Load() == thread {
			return true
		}
	}
	return false
}

// takeTime adds up what the worker has used of the CPU: on whichever threads, so it is read on each.
func (w *worker) takeTime() {
	s := &w.stay
	now := ring.ThreadTime()
	s.cpu.Add(now - s.base)
	s.base = now
}
