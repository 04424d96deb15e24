//go:build linux

package ring

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file and no other of the package's non-test files imports unsafe. The raw
// calls do not tell Go's scheduler that they are made: right for calls that
// never block, wrong for any other. Pointers become uintptr only within the
// call's argument list (rule 4 of package unsafe), but for addressOf and iovecsAt.
// All retry after EINTR.

// mmsghdr is struct mmsghdr of sys/socket.h; Go pads it as C does.
type mmsghdr struct {
	Hdr unix.Msghdr
	Len uint32
}

// sysRead reads into b, which must not be empty.
func sysRead(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// sysWrite writes b, which must not be empty.
func sysWrite(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// sysWritev writes the iovecs, of which there must be one at least.
func sysWritev(fd int, iovs []unix.Iovec) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iovs[0])), uintptr(len(iovs)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// sysRecvmsg receives one message without blocking.
func sysRecvmsg(fd int, h *unix.Msghdr, flags int) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(h)), uintptr(flags|unix.MSG_DONTWAIT))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// sysRecvmmsg receives up to len(msgs) messages without blocking.
func sysRecvmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
			unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// sysSendmmsg sends up to len(msgs) messages without blocking. It fails only if
// the first message does; after that a failure is a short count
// (__sys_sendmmsg, net/socket.c).
func sysSendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// sysEpollWait waits for events. With timeoutMs 0 it is a raw call; else it
// blocks and Go's scheduler knows. EINTR is the caller's: a wait may end early.
func sysEpollWait(epfd int, events []unix.EpollEvent, timeoutMs int) (int, unix.Errno) {
	// epoll_pwait, as arm64 has no epoll_wait.
	if timeoutMs == 0 {
		return sysEpollDoze(epfd, events, 0)
	}
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(timeoutMs), 0, 0)
	return int(n), errno
}

// sysEpollDoze waits as a raw call, so for a short time only. Preemption's signal
// ends the call with EINTR, which epoll never restarts (signal(7)).
func sysEpollDoze(epfd int, events []unix.EpollEvent, timeoutMs int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(timeoutMs), 0, 0)
	return int(n), errno
}

// sysYield is sched_yield.
func sysYield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// sysThreadTime is clock_gettime on CLOCK_THREAD_CPUTIME_ID, as a raw call: who asks goes on at once.
func sysThreadTime() uint64 {
	var t unix.Timespec
	_, _, _ = unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_THREAD_CPUTIME_ID, uintptr(unsafe.Pointer(&t)), 0)
	return uint64(t.Nano())
}

// sysIoctlPtr is an ioctl whose argument is a pointer to a 32-bit integer.
func sysIoctlPtr(fd int, req uint, arg *int32) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(arg)))
	return errno
}

// sysIoctlVal is an ioctl whose argument is the integer itself.
func sysIoctlVal(fd int, req uint, arg uintptr) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), arg)
	return errno
}

// sysSetsockoptBytes is setsockopt with a plain structure, len(b) > 0.
func sysSetsockoptBytes(fd, level, name int, b []byte) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0)
	return errno
}

// iovecBytes is what an iovec refers to.
func iovecBytes(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }

// loadShared reads a word that the kernel writes, at the start of b, whose
// first four bytes are aligned: nothing is read before it (acquire).
func loadShared(b []byte) uint32 {
	_ = b[3]
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[0])))
}

// storeShared writes a word that the kernel reads, after everything before it
// (release).
func storeShared(b []byte, v uint32) {
	_ = b[3]
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[0])), v)
}

// misalignment is how many bytes to skip so that b starts on a multiple of
// align, a power of two.
func misalignment(b []byte, align int) int {
	return int(-uintptr(unsafe.Pointer(&b[0])) & uintptr(align-1))
}

// sysUringSetup makes a ring of n entries; params is struct io_uring_params.
func sysUringSetup(n int, params []byte) (int, unix.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(n), uintptr(unsafe.Pointer(&params[0])), 0)
	return int(fd), errno
}

// sysUringEnter submits n entries, all of which complete at once.
func sysUringEnter(fd, n int) (int, unix.Errno) {
	for {
		got, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(n), 0, 0, 0, 0)
		if errno != unix.EINTR {
			return int(got), errno
		}
	}
}

// sysUringWait blocks until n entries are complete; Go's scheduler knows.
func sysUringWait(fd, n int) unix.Errno {
	const getEvents = 1 // IORING_ENTER_GETEVENTS
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), 0, uintptr(n), getEvents, 0, 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// addressOf is where b begins, for a ring's entry. b must be mapped or on the heap,
// which does not move, and kept alive until the kernel is done with it.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(&b[0]))) }

// iovecsAt is where iovecs begin, on the same terms.
func iovecsAt(iovs []unix.Iovec) uint64 { return uint64(uintptr(unsafe.Pointer(&iovs[0]))) }
