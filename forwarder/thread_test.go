package forwarder

import (
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// niceOfThreads is every thread of ours with its nice value.
func niceOfThreads(t *testing.T) map[int]int {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	nice := map[int]int{}
	for _, e := range dir {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := syscall.Getpriority(syscall.PRIO_PROCESS, id); err == nil { // else it has ended
			nice[id] = 20 - raw // getpriority(2), C library/kernel differences
		}
	}
	return nice
}

// processTime is what all threads have used of the CPU.
func processTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestMovesInTurn: who comes to a thread has it as he should, whoever was there, whoever thinks that he still is, and
// in whatever order they find out.
func TestMovesInTurn(t *testing.T) {
	const first, even = ring.PriorityFirst, ring.PriorityEven
	s := testSettings(encap.KindUDP)
	s.Workers = 3
	r := newRig(t, s)
	r.f.use.priority = true
	nice := map[int]ring.Priority{}
	r.f.env.setPriority = func(thread int, p ring.Priority) error {
		if thread == 0 {
			t.Error("the calling thread is asked for, which may be another one by then")
		}
		nice[thread] = p
		return nil
	}
	a, b, refused := r.f.workers[0], r.f.workers[1], r.f.workers[2]
	for i, w := range r.f.workers {
		w.stay.thread.Store(int32(10 + i))
		nice[10+i] = even
	}
	a.standing, b.standing = standing{used: true, now: first}, standing{used: true, now: even}
	nice[10] = first
	for i, step := range []struct {
		w    *worker
		to   int32
		want map[int]ring.Priority
	}{
		{b, 10, map[int]ring.Priority{10: even, 11: even}},       // a has left it, and does not know yet
		{b, 13, map[int]ring.Priority{10: even, 13: even}},       //
		{a, 10, map[int]ring.Priority{10: first, 13: even}},      // back, it finds that another was there
		{a, 13, map[int]ring.Priority{10: even, 13: first}},      // b has left that one
		{b, 10, map[int]ring.Priority{10: even, 13: first}},      // they have changed places
		{refused, 13, map[int]ring.Priority{12: even, 13: even}}, // one that may not go first
		{a, 12, map[int]ring.Priority{12: first, 13: even}},      //
		{refused, 14, map[int]ring.Priority{12: first, 13: even, 14: even}},
	} {
		if step.w.stay.thread.Load() == step.to {
			t.Errorf("step %d: worker %d does not see that it has moved", i, step.w.index)
		}
		step.w.moved(step.to)
		for thread, want := range step.want {
			if nice[thread] != want {
				t.Errorf("step %d: thread %d is %v, want %v", i, thread, nice[thread], want)
			}
		}
	}
}

// TestTime: what others do on the worker's thread, while it has given it up, is not its own time.
func TestTime(t *testing.T) {
	w := newRig(t, testSettings(encap.KindUDP)).f.workers[0]
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // there is no other thread for them
	w.lockThread()
	defer runtime.UnlockOSThread()
	for range 20 {
		go func() {
			for begin := ring.ThreadTime(); ring.ThreadTime()-begin < 5e6; {
			}
		}()
		thread, before, cpu := ring.Thread(), ring.ThreadTime(), w.stay.cpu.Load()
		w.nanos += renewEvery
		w.renew()
		if ring.Thread() != thread {
			continue // nobody was on its thread
		}
		others := ring.ThreadTime() - before
		if others < 4e6 {
			continue // he was not done, or somewhere else
		}
		w.takeTime()
		if used := w.stay.cpu.Load() - cpu; used == 0 || used > others/2 {
			t.Errorf("it has used %v of the %v that its thread has, nearly all of it another's", time.Duration(used), time.Duration(others))
		}
		return
	}
	t.Error("in 20 times nobody has used the thread meanwhile")
}

// TestMoves: workers that have found themselves on other threads, each other's among them, have their priorities there and have left
// none behind; the time of all threads is counted once.
func TestMoves(t *testing.T) {
	if ring.SetPriority(0, ring.PriorityEven) != nil {
		t.Skip("nice values cannot be set here")
	}
	own := niceOfThreads(t)[os.Getpid()]
	s := testSettings(encap.KindUDP)
	s.Workers = 3
	r := newRig(t, s)
	r.f.env.setPriority, r.f.use.priority = ring.SetPriority, true
	var stop atomic.Bool
	var moved atomic.Int64
	rivals := make(chan struct{})
	for range 4 { // take up places that are given up
		go func() {
			for !stop.Load() {
				runtime.Gosched()
			}
			rivals <- struct{}{}
		}()
	}
	type end struct {
		w      *worker
		thread int
	}
	ends := make(chan end)
	leave := make(chan struct{})
	defer close(leave)
	stands := []ring.Priority{ring.PriorityFirst, ring.PriorityEven, ring.PriorityFirst}
	begin := processTime(t)
	for i, w := range r.f.workers {
		go func() {
			w.lockThread()
			w.standing.used = true
			w.take(stands[i])
			for !stop.Load() {
				was := w.stay.thread.Load()
				w.nanos += renewEvery
				w.renew()
				if w.stay.thread.Load() != was {
					moved.Add(1)
				}
			}
			w.takeTime()
			ends <- end{w, ring.Thread()}
			<-leave
			_ = ring.SetPriority(0, ring.PriorityEven)
		}()
	}
	for end := time.Now().Add(20 * time.Second); moved.Load() < 200 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	stop.Store(true)
	want := map[int]int{}
	var used time.Duration
	for range r.f.workers {
		e := <-ends
		if got := int(e.w.stay.thread.Load()); got != e.thread {
			t.Errorf("worker %d is on thread %d and thinks %d", e.w.index, e.thread, got)
		}
		if stands[e.w.index] == ring.PriorityFirst {
			want[e.thread] = min(own, -19)
		}
		used += time.Duration(e.w.stay.cpu.Load())
	}
	for range 4 {
		<-rivals
	}
	if moved.Load() < 3 {
		t.Errorf("they moved %d times", moved.Load())
	}
	if most := processTime(t) - begin; used <= 0 || used > most {
		t.Errorf("three workers have used %v, all of the process %v", used, most)
	}
	if !r.f.workers[0].standing.used {
		t.Skip("a thread may not go first here")
	}
	for id, nice := range niceOfThreads(t) {
		if w, is := want[id]; is && nice != w || !is && nice != own && nice != 0 {
			t.Errorf("thread %d has nice %d; workers' threads should have %v, others %d", id, nice, want, own)
		}
	}
}

// TestRenew: a worker renews its place when it is due, not oftener, and not for the time that it has slept.
func TestRenew(t *testing.T) {
	w := newRig(t, testSettings(encap.KindUDP)).f.workers[0]
	w.lockThread()
	defer runtime.UnlockOSThread()
	for i, c := range []struct {
		nanos  int64
		slept  bool
		renews bool
	}{{renewEvery - 1, false, false}, {renewEvery, false, true}, {2*renewEvery - 1, false, false}, {5 * renewEvery, true, false},
		{6*renewEvery - 1, false, false}, {6 * renewEvery, false, true}} {
		was := w.stay.renewed
		w.nanos, w.stay.slept = c.nanos, c.slept
		cpu := w.stay.cpu.Load()
		w.renew()
		if renewed := w.stay.cpu.Load() != cpu; renewed != c.renews {
			t.Errorf("%d: renewed %v, want %v (last %d)", i, renewed, c.renews, was)
		}
	}
}
