//go:build linux

package ring

import "errors"

// Reader is the reading side of a port. Interfaces are crossed once per batch.
type Reader interface {
	// Read fills fs with the frames that wait, in the order of their arrival,
	// and never blocks: n == 0 and no error means that nothing is there, and
	// n < len(fs) that all is drained, the slab full, or enough for one turn. An error comes only
	// with n == 0; ErrNoRoom says that the slab cannot take one more frame.
	Read(s *Slab, fs []Frame) (n int, err error)

	// Release ends the loan of all frames read so far: ring slots go back to
	// the kernel. Frames in the slab live until the slab is reset.
	Release()

	// FD is the descriptor to wait on, level triggered.
	FD() int

	// TakeError is for an Event with Error set: it clears the pending error and
	// returns it. ENETDOWN: the device went down or away. nil: nothing was wrong.
	TakeError() error
}

// Writer is the writing side of a port.
type Writer interface {
	// Write hands the messages of p from index from on to the kernel, in order,
	// and never blocks. n were taken; err says why message from+n was not, and
	// is nil if all were. The caller counts it and goes on at from+n+1: messages
	// behind it may be written already, and what became of them is remembered in p
	// until its Reset.
	Write(p *Packets, from int) (n int, err error)
}

// Port is where a pod or the host is attached.
type Port interface {
	Reader
	Writer
	Close() error
}

// ErrNoRoom means that the slab has less than FrameRoom left.
var ErrNoRoom = errors.New("penstock: the worker's slab is too full to read one more frame; write and reset it first")
