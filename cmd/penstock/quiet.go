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
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	self := strconv.Itoa(os.Getpid())
	for _, t := range threads {
		if t.Name() != self { // the main thread waits for what is asked of it
			slack(t.Name())
		}
	}
}

// slack lets the kernel wake a thread up to a millisecond late (PR_SET_TIMERSLACK, proc(5)). Where that is forbidden nothing is lost.
func slack(thread string) {
	fd, err := unix.Open("/proc/"+thread+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	unix.Write(fd, []byte("1000000"))
	unix.Close(fd)
}
