package main

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// A node that starts its pods starts dozens of plugins at once, and what each takes of the cores is what the last pod waits for. So a
// plugin goes without what Go's runtime does for long and wide programs: one processor is enough for what is done in sequence, and
// the runtime's monitor, which looks for blocked system calls every 20 µs, need look only every millisecond
// (docs/decisions/0011-lean-plugin.md has the figures).
func init() {
	runtime.GOMAXPROCS(1)
	slack(monitor())
}

// monitor is the thread of the runtime's monitor, the first that it starts (runtime.main).
func monitor() (thread string) {
	dir, err := unix.Open("/proc/self/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(dir)
	var b [512]byte
	n, err := unix.ReadDirent(dir, b[:])
	if err != nil {
		return ""
	}
	_, _, names := unix.ParseDirent(b[:n], -1, make([]string, 0, 16))
	self := strconv.Itoa(os.Getpid())
	for _, n := range names {
		if n != self {
			return n
		}
	}
	return ""
}

// slack lets the kernel wake a thread up to a millisecond late (PR_SET_TIMERSLACK, proc(5)), and those that it starts. Where that is
// forbidden nothing is lost.
func slack(thread string) {
	fd, err := unix.Open("/proc/"+thread+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	unix.Write(fd, []byte("1000000"))
	unix.Close(fd)
}
