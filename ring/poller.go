//go:build linux

package ring

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Event says what a descriptor is ready for.
type Event struct {
	Token uint64 // as given to Add
	flags uint32
}

// Readable: Read or Recv will find something.
func (e *Event) Readable() bool { return e.flags&unix.EPOLLIN != 0 }

// Error: something is pending that TakeError or Errors must clear, or the
// device is gone. Until then every Wait returns it at once.
func (e *Event) Error() bool { return e.flags&(unix.EPOLLERR|unix.EPOLLHUP) != 0 }

// wakeToken is that of the poller's own eventfd.
const wakeToken = ^uint64(0)

// Poller is a worker's epoll set, level triggered. Its methods belong to the
// worker, but for Wake.
type Poller struct {
	fd, wake int
	buf      [128]unix.EpollEvent
}

// NewPoller makes an empty set.
func NewPoller() (*Poller, error) {
	p := new(Poller)
	var err error
	if p.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, setup(err, "", "make an epoll set")
	}
	if p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		_ = unix.Close(p.fd)
		return nil, setup(err, "", "make an eventfd")
	}
	if err = p.control(unix.EPOLL_CTL_ADD, p.wake, wakeToken, unix.EPOLLIN); err != nil {
		_ = p.Close()
		return nil, setup(err, "", "add an eventfd to an epoll set")
	}
	return p, nil
}

func (p *Poller) control(op, fd int, token uint64, events uint32) error {
	// epoll_data is a union of 64 bits that x/sys splits in two.
	return unix.EpollCtl(p.fd, op, fd, &unix.EpollEvent{Events: events, Fd: int32(uint32(token)), Pad: int32(uint32(token >> 32))})
}

// Add waits for fd to be readable. All ones is not a token.
func (p *Poller) Add(fd int, token uint64) error {
	if err := p.control(unix.EPOLL_CTL_ADD, fd, token, unix.EPOLLIN); err != nil {
		return setup(err, "", "wait for descriptor %d", fd)
	}
	return nil
}

// Delete takes fd out. A descriptor must be taken out before it is closed if a
// duplicate of it lives on.
func (p *Poller) Delete(fd int) error {
	if err := p.control(unix.EPOLL_CTL_DEL, fd, 0, 0); err != nil {
		return setup(err, "", "stop waiting for descriptor %d", fd)
	}
	return nil
}

// Wait fills events with what is ready. With timeoutMs 0 it never blocks, and
// Go's scheduler does not know of the call; negative: for ever. A Wake or a
// signal ends the wait, possibly with no event.
func (p *Poller) Wait(events []Event, timeoutMs int) (int, error) {
	n, errno := sysEpollWait(p.fd, p.buf[:max(1, min(len(p.buf), len(events)))], timeoutMs)
	return p.collect(events, n, errno)
}

// Doze is Wait for a few ms at most that Go's scheduler does not know of, which
// makes it cheaper: the thread keeps its processor, and what stops the world
// (garbage collection) ends the doze by a signal, then with no event.
func (p *Poller) Doze(events []Event, timeoutMs int) (int, error) {
	n, errno := sysEpollDoze(p.fd, p.buf[:max(1, min(len(p.buf), len(events)))], timeoutMs)
	return p.collect(events, n, errno)
}

// Yield lets other threads of this core run, if there are any that would.
func Yield() { sysYield() }

// collect makes events of the first n of buf.
func (p *Poller) collect(events []Event, n int, errno unix.Errno) (int, error) {
	if errno == unix.EINTR {
		return 0, nil
	}
	if errno != 0 {
		return 0, errno
	}
	got := 0
	for i := range n {
		e := &p.buf[i]
		token := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32
		if token == wakeToken {
			var count [8]byte
			_, _ = sysRead(p.wake, count[:])
			continue
		}
		if got < len(events) {
			events[got] = Event{Token: token, flags: e.Events}
			got++
		}
	}
	return got, nil
}

// Wake ends a Wait that blocks now, or the next one. Any goroutine may call it
// until Close.
func (p *Poller) Wake() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	// EAGAIN means that 2^64-2 wakes wait already.
	_, _ = sysWrite(p.wake, one[:])
}

// Close closes the set; the descriptors in it stay open.
func (p *Poller) Close() error {
	_ = closeOnce(&p.wake)
	return closeOnce(&p.fd)
}
