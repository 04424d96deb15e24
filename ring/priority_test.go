//go:build linux

package ring

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// scheduled is a thread's nice value and policy, as the kernel says it (proc_pid_stat(5), fields 19 and 41).
func scheduled(t *testing.T, tid int) (nice, policy int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	must(t, err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // field 3 is the first
	nice, err = strconv.Atoi(f[19-3])
	must(t, err)
	policy, err = strconv.Atoi(f[41-3])
	must(t, err)
	return nice, policy
}

// onThread runs fn on a thread that ends with it: not the main thread, which cannot end.
func onThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		fn()
	}()
	<-done
}

// without lets fn run on a thread that lacks CAP_SYS_NICE.
func without(t *testing.T, fn func()) {
	onThread(func() {
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&head, &data[0])
		if err == nil {
			data[0].Effective &^= 1 << unix.CAP_SYS_NICE
			data[0].Permitted &^= 1 << unix.CAP_SYS_NICE
			err = unix.Capset(&head, &data[0])
		}
		if err != nil {
			t.Errorf("give up CAP_SYS_NICE: %v", err)
			return
		}
		fn()
	})
}

// TestPriority: it is that of the calling thread alone, and goes back to the process's own.
func TestPriority(t *testing.T) {
	main, _ := scheduled(t, os.Getpid())
	onThread(func() {
		tid := unix.Gettid()
		for _, c := range []struct {
			p            Priority
			nice, policy int
		}{
			{PriorityPrompt, niceFirst, unix.SCHED_NORMAL},
			{PrioritySteady, niceFirst, unix.SCHED_BATCH},
			{PriorityEven, main, unix.SCHED_NORMAL},
			{PrioritySteady, niceFirst, unix.SCHED_BATCH},
			{PriorityPrompt, niceFirst, unix.SCHED_NORMAL},
		} {
			if err := SetPriority(c.p); errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
				t.Skip("needs CAP_SYS_NICE: ", err)
			} else if err != nil {
				t.Error(err)
			}
			if nice, policy := scheduled(t, tid); nice != c.nice || policy != c.policy {
				t.Errorf("%v: nice %d, policy %d; want %d, %d", c.p, nice, policy, c.nice, c.policy)
			}
		}
	})
	if nice, policy := scheduled(t, os.Getpid()); nice != main || policy != unix.SCHED_NORMAL {
		t.Errorf("the main thread has nice %d and policy %d now", nice, policy)
	}
}

// TestPriorityRefused: without the capability or the limit it stays as it was, and the error says what is missing.
func TestPriorityRefused(t *testing.T) {
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NICE, &limit))
	if limit.Cur > 0 {
		t.Skip("RLIMIT_NICE allows it to everyone here")
	}
	without(t, func() {
		err := SetPriority(PriorityPrompt)
		if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "LimitNICE=-19") {
			t.Errorf("without a permission: %v", err)
		}
		if nice, policy := scheduled(t, unix.Gettid()); nice != niceEven() || policy != unix.SCHED_NORMAL {
			t.Errorf("refused, it has nice %d and policy %d", nice, policy)
		}
	})
}

// TestPriorityLimit: systemd's LimitNICE= is enough, without the capability.
func TestPriorityLimit(t *testing.T) {
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NICE, &was))
	const most = 20 - niceFirst // as the limit counts (getrlimit(2))
	if err := unix.Setrlimit(unix.RLIMIT_NICE, &unix.Rlimit{Cur: most, Max: max(most, was.Max)}); err != nil {
		t.Skip("needs CAP_SYS_RESOURCE to raise RLIMIT_NICE: ", err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NICE, &was)
	without(t, func() {
		for _, p := range []Priority{PrioritySteady, PriorityEven, PriorityPrompt} {
			if err := SetPriority(p); err != nil {
				t.Errorf("%v: %v", p, err)
			}
		}
	})
}
