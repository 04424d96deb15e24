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
// place (Go's P) up by itself, oftener, and unlocked: it mostly has it again at once, on the same thread, which takes
// a few microseconds. Otherwise somebody else's thread has taken it up, and it takes its priority along.

// renewEvery is how long, in ns, a worker goes on before it renews its place: less than the 10 ms of Go's monitor.
const renewEvery = 8e6

// stay is a worker's stay on a thread.
type stay struct {
	thread  atomic.Int32 // the kernel's ID of what it was last seen on; 0: another worker has that now
	renewed int64        // ns: when the place was last renewed, or the worker woke
	slept   bool         // since its last turn: Go would take the place while the worker dozes, if at all
	base    uint64       // ns: what the thread had used of the CPU when the worker came to it, or last took the time
	cpu     atomic.Uint64
}

// lockThread locks the worker to its first thread.
func (w *worker) lockThread() {
	runtime.LockOSThread()
	w.f.moving.Lock()
	defer w.f.moving.Unlock()
	w.claim(int32(ring.Thread()))
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
	w.takeTime() // while it is surely this thread's
	runtime.UnlockOSThread()
	runtime.Gosched()
	runtime.LockOSThread()
	s.base = ring.ThreadTime() // others may have had it meanwhile
	if now := int32(ring.Thread()); now != s.thread.Load() {
		w.moved(now)
	}
}

// moved takes the priority along to another thread, and leaves none behind. One worker at a time does so. A thread is whose
// worker has claimed it last. If one leaves thread 1 and, before it knows that it has moved, a second one comes there, the
// second takes the claim away and gives the thread its own priority; the first then finds itself moved even if it is back on 1.
func (w *worker) moved(to int32) {
	w.f.moving.Lock()
	defer w.f.moving.Unlock()
	from := w.claim(to)
	if !w.f.use.priority {
		return
	}
	if w.standing.used { // first itself, as others may wait for it
		w.assign(w.standing.now)
	} else {
		_ = w.f.env.setPriority(int(to), ring.PriorityEven)
	}
	if from != 0 {
		_ = w.f.env.setPriority(int(from), ring.PriorityEven) // never refused: it is less
	}
}

// claim notes the worker's thread, and returns the one before, unless another worker has claimed that.
func (w *worker) claim(thread int32) (before int32) {
	for _, o := range w.f.workers {
		o.stay.thread.CompareAndSwap(thread, 0)
	}
	return w.stay.thread.Swap(thread)
}

// takeTime adds up what the worker has used of the CPU: on whichever threads, so it is read on each.
func (w *worker) takeTime() {
	s := &w.stay
	now := ring.ThreadTime()
	s.cpu.Add(now - s.base)
	s.base = now
}
