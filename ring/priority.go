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

// SetPriority gives the calling thread a priority; the goroutine is locked to it.
// A thread may go first with CAP_SYS_NICE or within RLIMIT_NICE, else EACCES or
// EPERM, and it is as it was.
func SetPriority(p Priority) error {
	nice := niceEven()
	if p == PriorityFirst {
		nice = min(nice, niceFirst)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		return setup(err, "give the service LimitNICE=-19 or CAP_SYS_NICE", "give a worker the nice value %d", nice)
	}
	return nil
}

// probePriority tries on this thread, which nothing else has meanwhile.
func probePriority() (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, p := range []Priority{PriorityFirst, PriorityEven} {
		if err := SetPriority(p); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("nice %d but in floods, among threads of one group", min(niceEven(), niceFirst)), nil
}
