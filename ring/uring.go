//go:build linux

package ring

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Uring does many reads or writes of a TUN queue in one system call, as TUN has
// neither recvmmsg nor sendmmsg (io_uring(7)):
//
//	entries:  read, read, read …  ──one io_uring_enter──▶  results: n, n, EAGAIN …
//
// Each says RWF_NOWAIT, so that it ends at once, in the order of the entries:
// nothing is under way between two calls, and no memory stays lent to the
// kernel. A Uring belongs to one worker, which lends it to its Slab and Packets.
type Uring struct {
	fd             int
	rings, entries []byte // mapped: heads, tails and completions; what is submitted
	memory         []byte // mapped: what is read by it; no part of Go's heap, whose size decides how much garbage there may be
	sqTail, cqHead []byte // words in rings
	cqTail         []byte
	cqes           []byte
	sqMask, cqMask uint32
	tail, head     uint32 // ours: what we have submitted, and seen completed
	queued         int    // entries since the last submit
	results        [UringEntries]int32
	calls          uint64 // submits
	err            error  // why it is of no use any more
}

// UringEntries is how many reads or writes one system call does at most.
const UringEntries = 64

// From linux/io_uring.h: sizes, opcodes, and offsets in struct io_uring_params.
const (
	uringParams    = 120
	uringSqe       = 64
	uringCqe       = 16
	uringRead      = 22 // IORING_OP_READ, kernel 5.6
	uringWrite     = 23 // IORING_OP_WRITE
	uringWritev    = 2  // IORING_OP_WRITEV
	uringNowait    = 8  // RWF_NOWAIT, which TUN takes from kernel 5.11 on (tun_chr_open sets FMODE_NOWAIT)
	uringSingle    = 1  // IORING_FEAT_SINGLE_MMAP
	uringOffSqes   = 0x10000000
	uringSqEntries = 0
	uringCqEntries = 4
	uringFeatures  = 20
	uringSqOff     = 40 // struct io_sqring_offsets: head, tail, mask, entries, flags, dropped, array
	uringCqOff     = 80 // struct io_cqring_offsets: head, tail, mask, entries, overflow, cqes
)

// NewUring makes a ring. EPERM: the sysctl kernel.io_uring_disabled or a seccomp
// filter forbids it; ENOSYS: the kernel has none.
func NewUring() (*Uring, error) {
	params := make([]byte, uringParams)
	fd, errno := sysUringSetup(UringEntries, params)
	if errno != 0 {
		return nil, setup(errno, "see the sysctl kernel.io_uring_disabled; a container's seccomp filter may forbid it", "make an io_uring")
	}
	u := &Uring{fd: fd}
	if err := u.open(params); err != nil {
		_ = u.Close()
		return nil, err
	}
	return u, nil
}

func (u *Uring) open(params []byte) (err error) {
	word := func(at int) int { return int(binary.NativeEndian.Uint32(params[at:])) }
	sqes, cqes := word(uringSqEntries), word(uringCqEntries)
	if word(uringFeatures)&uringSingle == 0 || sqes < UringEntries || cqes < UringEntries {
		return setup(unix.EOPNOTSUPP, "it needs kernel 5.11", "make an io_uring of %d entries", UringEntries)
	}
	array, completions := word(uringSqOff+24), word(uringCqOff+20)
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if u.rings, err = unix.Mmap(u.fd, 0, max(array+4*sqes, completions+uringCqe*cqes), prot, flags); err == nil {
		u.entries, err = unix.Mmap(u.fd, uringOffSqes, uringSqe*sqes, prot, flags)
	}
	if err == nil {
		u.memory, err = unix.Mmap(-1, 0, UringEntries*FrameRoom, prot, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	}
	if err != nil {
		return setup(err, "", "map an io_uring")
	}
	u.sqTail, u.cqHead, u.cqTail = u.rings[word(uringSqOff+4):], u.rings[word(uringCqOff):], u.rings[word(uringCqOff+4):]
	u.sqMask = binary.NativeEndian.Uint32(u.rings[word(uringSqOff+8):])
	u.cqMask = binary.NativeEndian.Uint32(u.rings[word(uringCqOff+8):])
	u.cqes = u.rings[completions:]
	for i := range sqes { // entry i stands at place i for good
		binary.NativeEndian.PutUint32(u.rings[array+4*i:], uint32(i))
	}
	return nil
}

// FD is the descriptor.
func (u *Uring) FD() int { return u.fd }

// Close gives the ring back, and the memory of all frames that were read by it.
func (u *Uring) Close() error {
	for _, m := range [][]byte{u.rings, u.entries, u.memory} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	u.rings, u.entries, u.memory = nil, nil, nil
	return closeOnce(&u.fd)
}

// Err says why the ring is of no use any more; nil: it works, or none was made.
// What it would have done is done by a system call each.
func (u *Uring) Err() error {
	if u == nil {
		return nil
	}
	return u.err
}

// TakeCalls is how many system calls the ring has made since it was last asked.
func (u *Uring) TakeCalls() (n uint64) {
	if u != nil {
		n, u.calls = u.calls, 0
	}
	return n
}

// works: a ring that was lent and has not failed.
func (u *Uring) works() bool { return u != nil && u.err == nil }

// add queues one operation; there must be room for it. What lies at address is
// lent until submit has returned.
func (u *Uring) add(op byte, fd int, address uint64, length int) {
	e := u.entries[uringSqe*int((u.tail+uint32(u.queued))&u.sqMask):][:uringSqe]
	clear(e)
	e[0] = op
	binary.NativeEndian.PutUint32(e[4:], uint32(fd))
	binary.NativeEndian.PutUint64(e[16:], address)
	binary.NativeEndian.PutUint32(e[24:], uint32(length))
	binary.NativeEndian.PutUint32(e[28:], uringNowait)
	binary.NativeEndian.PutUint64(e[32:], uint64(u.queued))
	u.queued++
}

// submit does what was added and says what became of each: a length, or a
// negative errno. The results live until the next submit. If there are fewer, the
// rest was not done: for want of memory, or the ring has failed (Err).
func (u *Uring) submit() []int32 {
	n := u.queued
	u.queued = 0
	u.calls++
	storeShared(u.sqTail, u.tail+uint32(n))
	done, errno := sysUringEnter(u.fd, n)
	if errno != 0 {
		done = 0
	}
	u.tail += uint32(done)
	storeShared(u.sqTail, u.tail) // takes back what the kernel has not taken
	if errno != 0 && errno != unix.EAGAIN && errno != unix.ENOMEM && errno != unix.EBUSY {
		u.fail(n, errno)
	}
	for i := range done {
		u.results[i] = -int32(unix.EIO)
	}
	for seen := u.collect(done); seen < done && u.err == nil; seen += u.collect(done) {
		// Not observed: an operation that did not end at once. It has our memory.
		if errno := sysUringWait(u.fd, done-seen); errno != 0 {
			u.fail(done-seen, errno) // these count as failed, and are not done again
		}
	}
	return u.results[:done]
}

// collect takes the completions that are there, of n operations.
func (u *Uring) collect(n int) (seen int) {
	for tail := loadShared(u.cqTail); u.head != tail; u.head++ {
		c := u.cqes[uringCqe*int(u.head&u.cqMask):]
		if i := binary.NativeEndian.Uint64(c); i < uint64(n) {
			u.results[i] = int32(binary.NativeEndian.Uint32(c[8:]))
		}
		seen++
	}
	storeShared(u.cqHead, u.head)
	return seen
}

// fail gives the ring up.
func (u *Uring) fail(operations int, errno unix.Errno) {
	u.err = fmt.Errorf("io_uring did not do %d operations: %w", operations, errno)
}
