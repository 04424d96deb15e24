package load

import (
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of this file and of mmsg.go are those that a thread of work makes again and again, by RawSyscall: without a word to
// the Go scheduler, as a program in C makes them. Told of it, that scheduler may give the place of a thread in a call of some
// 20 µs to another, and the call's end then needs two more threads to wake. With one bulk stream through Penstock that was 8 to 9 % of
// all CPU on two cores, and a receiver waited for a core three times before it read. No pod that is not
// written in Go has that, so the instrument must not: a C program with these loops gets the rates of these.
//
// What it takes: a place in the scheduler for each of them, as none is given back while a call blocks ([quiet]); calls that
// end by themselves ([tick]); and a thread for each of them that it keeps (thread.go).

const (
	places = 128        // in the scheduler of a traffic process
	most   = places - 8 // threads of work of a job
)

// quiet has the Go scheduler of a traffic process keep off its threads of work.
func quiet() { runtime.GOMAXPROCS(places) }

// calm is Go's environment for a traffic process: no signals to those who have gone on for 10 ms, as these end blocking calls.
func calm() string {
	const off = "asyncpreemptoff=1"
	if was := os.Getenv("GODEBUG"); was != "" {
		return "GODEBUG=" + was + "," + off
	}
	return "GODEBUG=" + off
}

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

// now is CLOCK_MONOTONIC, which all processes share, without a system call.
func now() time.Duration { return base + time.Since(begun) }

// base is now's value at begun: the best of some readings, as a process may lose its core between the two.
var base, begun = func() (base time.Duration, begun time.Time) {
	best := time.Duration(1<<63 - 1)
	for range 10 {
		var ts unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			panic(err) // clock_gettime(2): there is none without this clock
		}
		if took := time.Since(before); took < best {
			best, base, begun = took, time.Duration(ts.Nano()), before
		}
	}
	return base, begun
}()

func done(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
