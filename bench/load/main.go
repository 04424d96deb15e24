package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Main must be the first call of every program that uses [StartAgent]: in a process that StartAgent has started it
// serves until the other end is closed, and never returns.
func Main() {
	pods, err := strconv.Atoi(os.Getenv(childVar))
	if err != nil {
		return
	}
	// Threads block in system calls and hardly allocate; a collection in the middle of a run would be measured too.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(math.MaxInt64) // GOMEMLIMIT may be set
	quiet()
	control := os.NewFile(3, "control")
	read := bufio.NewReader(control)
	w := &worker{pods: pods}
	for {
		line, err := read.ReadBytes('\n')
		if err != nil {
			os.Exit(0)
		}
		var c command
		var r reply
		if err = json.Unmarshal(line, &c); err == nil {
			r, err = w.do(c)
		}
		if err != nil {
			r.Error = err.Error()
		}
		line, _ = json.Marshal(r)
		if _, err := control.Write(append(line, '\n')); err != nil {
			os.Exit(0)
		}
	}
}

// worker runs one job at a time.
type worker struct {
	pods int
	job  *running
}

// running is a job under way: threads that look at stopped at least once a tick.
type running struct {
	Job
	stopped atomic.Bool
	epoch   atomic.Uint32 // raised by every mark
	threads []*thread
	wait    sync.WaitGroup
	fds     []int
}

// thread has the counters of one thread of work, on a cache line of its own.
type thread struct {
	_       [64]byte
	packets atomic.Uint64
	bytes   atomic.Uint64
	lost    atomic.Uint64
	failed  atomic.Pointer[error]
	times   []time.Duration // of requests since the first mark; read after the thread has ended
	_       [64]byte
}

func (t *thread) count(packets, bytes int) {
	t.packets.Add(uint64(packets))
	t.bytes.Add(uint64(bytes))
}

func (w *worker) do(c command) (r reply, err error) {
	switch c.Op {
	case "start":
		if w.job != nil {
			return r, fmt.Errorf("load: a job is still running")
		}
		j := &running{Job: *c.Job}
		r.Ports, err = w.start(j)
		if err != nil {
			j.stop()
			return r, err
		}
		w.job = j
	case "mark":
		if w.job == nil {
			return r, fmt.Errorf("load: there is no job to mark")
		}
		w.job.epoch.Add(1)
		r.Result.Mark = w.job.mark()
	case "stop":
		if w.job != nil {
			w.job.stop()
			r.Result = w.job.result()
			w.job = nil
			runtime.GC()
		}
	default:
		return r, fmt.Errorf("load: %q is no command", c.Op)
	}
	return r, nil
}

// start makes the sockets and starts the threads.
func (w *worker) start(j *running) (ports []uint16, err error) {
	if len(j.Flows) == 0 {
		return nil, fmt.Errorf("load: a job without flows")
	}
	if len(j.Flows) > most {
		return nil, fmt.Errorf("load: %d flows are more than the %d that a process has room for", len(j.Flows), most)
	}
	for _, f := range j.Flows {
		if f.Pod < 0 || f.Pod >= w.pods {
			return nil, fmt.Errorf("load: there is no pod %d", f.Pod)
		}
	}
	switch j.Kind {
	case SendDatagrams:
		return nil, j.sendDatagrams()
	case ReceiveDatagrams:
		return j.receiveDatagrams()
	case SendStreams:
		return nil, j.sendStreams()
	case ReceiveStreams:
		return j.listen(j.readStream)
	case AskDatagrams, AskStreams, Connect:
		return nil, j.ask()
	case AnswerDatagrams:
		return j.answerDatagrams()
	case AnswerStreams:
		return j.listen(j.answerStream)
	}
	return nil, fmt.Errorf("load: %q is no kind of job", j.Kind)
}

// run starts a thread. An error that it returns after the job was stopped is nobody's fault.
func (j *running) run(fn func(t *thread) error) {
	t := &thread{}
	j.threads = append(j.threads, t)
	j.wait.Go(func() {
		if err := fn(t); err != nil && !j.stopped.Load() {
			t.failed.Store(&err)
		}
	})
}

// repeat is loop (thread.go) for turns that Go's scheduler has to know of, as their sockets are made anew each time: they may change their thread.
func (j *running) repeat(turn func() error) error {
	for !j.stopped.Load() {
		if err := turn(); err != nil {
			return err
		}
	}
	return nil
}

// failing says what failed; nil: nothing.
func failing(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("load: %s: %w", what, err)
}

// own makes the job close the descriptor at its end.
func (j *running) own(fd int) { j.fds = append(j.fds, fd) }

func (j *running) stop() {
	j.stopped.Store(true)
	j.wait.Wait()
	for _, fd := range j.fds {
		unix.Close(fd)
	}
	j.fds = nil
}

func (j *running) mark() Mark {
	m := Mark{Time: now()}
	for _, t := range j.threads {
		m.Packets += t.packets.Load()
		m.Bytes += t.bytes.Load()
		m.Lost += t.lost.Load()
		if err := t.failed.Load(); err != nil {
			m.Failed = (*err).Error()
		}
	}
	return m
}

func (j *running) result() Result {
	r := Result{Mark: j.mark()}
	var all []time.Duration
	for _, t := range j.threads {
		all = append(all, t.times...)
	}
	if len(all) > 0 {
		slices.Sort(all)
		at := func(q float64) time.Duration { return all[min(len(all)-1, int(q*float64(len(all))))] }
		r.P50, r.P99, r.P999 = at(0.5), at(0.99), at(0.999)
	}
	return r
}
