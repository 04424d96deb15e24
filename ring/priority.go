//go:build linux

package ring

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Priority is how the scheduler treats a worker's thread beside all others.
type Priority uint8

// PriorityEven is the process's own, as it was started. PriorityPrompt goes before
// others, and interrupts them when packets come. PrioritySteady goes before others
// too, but waits for the end of their time slice (SCHED_BATCH).
const (
	PriorityEven Priority = iota
	PriorityPrompt
	PrioritySteady
)

func (p Priority) String() string {
	switch p {
	case PriorityEven:
		return "even"
	case PriorityPrompt:
		return "prompt"
	case PrioritySteady:
		return "steady"
	}
	return fmt.Sprintf("Priority(%d)", uint8(p))
}

// niceFirst is the nice value of the priorities that go before others: the kernel's
// own network code goes before every thread, too.
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
// A thread may go before others with CAP_SYS_NICE or within RLIMIT_NICE, else EACCES
// or EPERM, and the priority is as it was.
func SetPriority(p Priority) error {
	nice, policy := niceEven(), unix.SCHED_NORMAL
	if p != PriorityEven {
		nice = min(nice, niceFirst)
	}
	if p == PrioritySteady {
		policy = unix.SCHED_BATCH
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		return setup(err, "give the service LimitNICE=-19 or CAP_SYS_NICE", "give a worker the nice value %d", nice)
	}
	// Not sched_setattr, which does both: a seccomp filter cannot look at its argument, and forbids it whole.
	if errno := sysSetScheduler(policy); errno != 0 {
		return setup(errno, "", "give a worker the scheduling policy %d", policy)
	}
	return nil
}

// probePriority tries on this thread, which nothing else has meanwhile.
func probePriority() (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, p := range []Priority{PriorityPrompt, PrioritySteady, PriorityEven} {
		if err := SetPriority(p); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("nice %d while pods wait for answers or send in bulk", min(niceEven(), niceFirst)), nil
}
