//go:build linux

package ring

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Priority is how the scheduler treats a worker's thread beside others of its
// scheduling group (sched(7): a cgroup with the cpu controller, or a session where
// autogroup is on). Between groups it counts nothing, their weights do.
type Priority uint8

// PriorityEven is the process's own, as it was started. PriorityFirst goes before others.
const (
	PriorityEven Priority = iota
	PriorityFirst
)

func (p Priority) String() string {
	if p == PriorityFirst {
		return "first"
	}
	return "even"
}

// niceFirst is the nice value that goes before others: the kernel's own network
// code goes before every thread, too.
const niceFirst = -19

// niceEven is what the process was started with.
var niceEven = sync.OnceValue(func() int {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // 20 - nice (getpriority(2), C library/kernel differences)
	if err != nil {
		return 0
	}
	return 20 - raw
})

// SetPriority gives one of our threads a priority; 0 is the calling one. A thread may go first with CAP_SYS_NICE or
// within RLIMIT_NICE, else EACCES or EPERM, and it is as it was. Threads and processes that are begun by one which goes first have
// nice 0, unless the kernel refuses that (resetOnFork).
func SetPriority(thread int, p Priority) error {
	nice := niceEven()
	if p == PriorityFirst {
		nice = min(nice, niceFirst)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, thread, nice); err != nil {
		return setup(err, "give the service LimitNICE=-19 or CAP_SYS_NICE", "give a worker the nice value %d", nice)
	}
	if p == PriorityFirst {
		resetOnFork(thread)
	}
	return nil
}

// resetOnFork keeps what the thread begins from inheriting its nice value (sched(7), SCHED_RESET_ON_FORK). A seccomp filter may forbid
// sched_setattr, as it cannot look into its argument for real-time scheduling, so nothing else must hang on it: without, a
// thread that Go happens to begin from a worker's goes first as well.
func resetOnFork(thread int) {
	attr, err := unix.SchedGetAttr(thread, 0)
	if err != nil || attr.Flags&unix.SCHED_FLAG_RESET_ON_FORK != 0 {
		return
	}
	attr.Flags |= unix.SCHED_FLAG_RESET_ON_FORK
	if attr.Policy == unix.SCHED_NORMAL || attr.Policy == unix.SCHED_BATCH {
		attr.Runtime = 0 // what was got is the time slice of now, and setting it would be for good
	}
	_ = unix.SchedSetAttr(thread, attr, 0)
}

// probePriority tries on this thread, which nothing else has meanwhile.
func probePriority() (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, p := range []Priority{PriorityFirst, PriorityEven} {
		if err := SetPriority(0, p); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("nice %d but in floods, among threads of one group", min(niceEven(), niceFirst)), nil
}

// Thread is the kernel's ID of the calling thread.
func Thread() int { return unix.Gettid() }

// ThreadTime is what the calling thread has used of the CPU, in ns.
func ThreadTime() uint64 { return sysThreadTime() }
