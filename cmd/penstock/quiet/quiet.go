// Package quiet readies Go's runtime for a program that is over in milliseconds. It does so by being linked: it imports so little that it
// is initialised among the first, in front of all that has something to quiet (specification of Go, "Package initialization").
//
// A node that starts its pods starts dozens of plugins at once, and what each takes of the cores is what the last pod waits for. So a
// plugin goes without what Go's runtime does for long and wide programs (docs/decisions/0011-lean-plugin.md has the figures):
//
//   - One processor is enough for what is done in sequence.
//   - The runtime's monitor, which looks for blocked system calls every 20 µs, need look only every millisecond.
//   - The main goroutine's stack gets its final size while it is empty. It would be copied to twice the size again and again, each
//     time from deeper calls, of whose frames the runtime must learn where they have pointers.
package quiet

import (
	"runtime"
	"syscall"
)

func init() {
	runtime.GOMAXPROCS(1)
	slack(monitor())
	roomy(false)
}

// monitor is the thread of the runtime's monitor, the first that it starts (runtime.main).
func monitor() (thread string) {
	dir, err := syscall.Open("/proc/self/task", syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer syscall.Close(dir)
	var b [512]byte
	n, err := syscall.ReadDirent(dir, b[:])
	if err != nil {
		return ""
	}
	_, _, names := syscall.ParseDirent(b[:n], -1, make([]string, 0, 16))
	if len(names) < 2 {
		return ""
	}
	return names[1] // in the order in which they were started (first_tid in fs/proc/base.c)
}

// slack lets the kernel wake a thread up to a millisecond late (PR_SET_TIMERSLACK, proc(5)), and those that it starts. Where that is
// forbidden nothing is lost.
func slack(thread string) {
	fd, err := syscall.Open("/proc/"+thread+"/timerslack_ns", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	syscall.Write(fd, []byte("1000000"))
	syscall.Close(fd)
}

// roomy makes room for a call that it does not make. The frame is never touched, so it costs no page.
//
//go:noinline
func roomy(call bool) {
	if call {
		take([frame]byte{})
	}
}

// frame makes a stack of 64 KiB.
const frame = 40 << 10

//go:noinline
func take([frame]byte) {}
