package load

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file are those that a thread of work makes again and again, by RawSyscall: without a word to
// the Go scheduler, as a program in C makes them. Told of it, that scheduler may give the place of a thread in a call of some
// 20 µs to another, and the call's end then needs two more threads to wake. With one bulk stream through Penstock that was 8 to 9 % of
// all CPU on two cores, and whoever received got each turn by two waits for a core more. No pod that is not
// written in Go has that, so the instrument must not: a C program with these loops gets the rates of these.
//
// What it takes: places for all threads ([quiet]), as none is given back while a call blocks, and calls
// that end within a [tick] or two, as all who want to stop the threads wait for them.

// places is more than any job has threads of work: 50 pods with a flow each are the most.
const places = 128

// quiet has the Go scheduler of a traffic process keep off its threads of work.
func quiet() { runtime.GOMAXPROCS(places) }

// calm is for the environment of a traffic process: no signals to threads that have run for 10 ms, as these end
// blocking calls.
const calm = "GODEBUG=asyncpreemptoff=1"

func read(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return done(n, errno)
}

func write(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return done(n, errno)
}

// receiveFrom fills b with a datagram and from with its sender.
func receiveFrom(fd int, b []byte, from *unix.RawSockaddrInet4) (int, error) {
	size := uint32(unix.SizeofSockaddrInet4)
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
		uintptr(len(b)), 0, uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(&size)))
	return done(n, errno)
}

func sendTo(fd int, b []byte, to *unix.RawSockaddrInet4) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
		uintptr(len(b)), 0, uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4)
	return done(n, errno)
}

// epollWait waits for at most a tick.
func epollWait(epoll int, events []unix.EpollEvent) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))),
		uintptr(len(events)), uintptr(tick.Milliseconds()), 0, 0)
	return done(n, errno)
}

func done(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
