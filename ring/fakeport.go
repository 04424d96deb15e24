//go:build linux

package ring

import (
	"encoding/binary"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// FakePacket is a frame in or out of a FakeQueue.
type FakePacket struct {
	Data            []byte
	Virtio          Virtio
	Truncated, VLAN bool
}

// FakeQueue is a Port in memory, with the lending rules of the real ones: every
// frame has a buffer of its own, which Release poisons, so that a late use
// shows. Its descriptor is an eventfd that is readable while frames wait.
// Inject, Sent and Fail may be called from any goroutine.
type FakeQueue struct {
	mu      sync.Mutex
	event   fakeEvent
	waiting []FakePacket
	lent    [][]byte
	sent    []FakePacket
	fails   fakeFailures
	err     error
}

// FakePoison is what Release writes over what was lent.
const FakePoison = 0xDB

// NewFakeQueue makes an empty queue.
func NewFakeQueue() *FakeQueue { return &FakeQueue{event: newFakeEvent()} }

// Inject appends copies of ps to what will be read.
func (q *FakeQueue) Inject(ps ...FakePacket) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range ps {
		p.Data = slices.Clone(p.Data)
		q.waiting = append(q.waiting, p)
	}
	q.event.set(len(q.waiting) > 0)
}

// Sent returns what was written since the last call.
func (q *FakeQueue) Sent() []FakePacket {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.sent
	q.sent = nil
	return s
}

// Fail makes the at-th message written from now on, counted from 0, fail once
// with err; trying it again succeeds.
func (q *FakeQueue) Fail(at int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fails.add(at, err)
}

// SetError is what the next TakeError returns.
func (q *FakeQueue) SetError(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
}

// Read lends the frames that wait, outside the slab.
func (q *FakeQueue) Read(_ *Slab, fs []Frame) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for ; n < len(fs) && n < len(q.waiting); n++ {
		p := &q.waiting[n]
		mem := make([]byte, Headroom+len(p.Data))
		copy(mem[Headroom:], p.Data)
		q.lent = append(q.lent, mem)
		fs[n] = Frame{Mem: mem, Start: Headroom, Virtio: p.Virtio, Truncated: p.Truncated, VLAN: p.VLAN}
	}
	q.waiting = slices.Delete(q.waiting, 0, n)
	q.event.set(len(q.waiting) > 0)
	return n, nil
}

// Release poisons what was lent.
func (q *FakeQueue) Release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, mem := range q.lent {
		for i := range mem {
			mem[i] = FakePoison
		}
	}
	q.lent = q.lent[:0]
}

// Write takes copies.
func (q *FakeQueue) Write(p *Packets, from int) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := from; i < p.Len(); i++ {
		if err := q.fails.next(); err != nil {
			return i - from, err
		}
		data := make([]byte, p.Bytes(i))
		p.CopyTo(i, data)
		q.sent = append(q.sent, FakePacket{Data: data, Virtio: p.Virtio(i)})
	}
	return p.Len() - from, nil
}

// FD is the eventfd.
func (q *FakeQueue) FD() int { return q.event.fd }

// TakeError returns what SetError has set, once.
func (q *FakeQueue) TakeError() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	err := q.err
	q.err = nil
	return err
}

// Close closes the eventfd.
func (q *FakeQueue) Close() error { return q.event.close() }

// fakeEvent is an eventfd that is readable while it is set.
type fakeEvent struct {
	fd       int
	readable bool
}

func newFakeEvent() fakeEvent {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		fd = -1 // the fake works, but cannot be waited for
	}
	return fakeEvent{fd: fd}
}

func (e *fakeEvent) set(on bool) {
	if on == e.readable || e.fd < 0 {
		return
	}
	e.readable = on
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1)
	if on {
		_, _ = sysWrite(e.fd, b[:])
	} else {
		_, _ = sysRead(e.fd, b[:])
	}
}

func (e *fakeEvent) close() error {
	if e.fd < 0 {
		return nil
	}
	fd := e.fd
	e.fd = -1
	return unix.Close(fd)
}

// fakeFailures are errors to come, by how many messages are written before.
type fakeFailures struct {
	at  []int
	err []error
}

func (f *fakeFailures) add(at int, err error) {
	f.at = append(f.at, at)
	f.err = append(f.err, err)
}

// next counts one message and returns the error it is to fail with.
func (f *fakeFailures) next() (err error) {
	for i := 0; i < len(f.at); i++ {
		if f.at[i] == 0 && err == nil {
			err = f.err[i]
			f.at = slices.Delete(f.at, i, i+1)
			f.err = slices.Delete(f.err, i, i+1)
			i--
		}
	}
	if err == nil {
		for i := range f.at {
			f.at[i]--
		}
	}
	return err
}
