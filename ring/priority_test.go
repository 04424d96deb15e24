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
	"unsafe"

	"golang.org/x/sys/unix"
)

// niceOf is a thread's nice value, as the kernel says it (proc_pid_stat(5), field 19).
func niceOf(t *testing.T, tid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	must(t, err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])) // field 3 is the first
	nice, err := strconv.Atoi(f[19-3])
	must(t, err)
	return nice
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
	main := niceOf(t, os.Getpid())
	var refused error
	onThread(func() {
		for _, c := range []struct {
			p    Priority
			nice int
		}{{PriorityFirst, niceFirst}, {PriorityEven, main}, {PriorityFirst, niceFirst}} {
			if refused = SetPriority(0, c.p); refused != nil {
				return
			}
			if nice := niceOf(t, unix.Gettid()); nice != c.nice {
				t.Errorf("%v: nice %d, want %d", c.p, nice, c.nice)
			}
			if attr, err := unix.SchedGetAttr(0, 0); err != nil || attr.Flags&unix.SCHED_FLAG_RESET_ON_FORK == 0 && c.p == PriorityFirst {
				t.Errorf("%v: what it begins would go first too: %+v, %v", c.p, attr, err)
			}
		}
	})
	switch {
	case errors.Is(refused, unix.EACCES) || errors.Is(refused, unix.EPERM):
		t.Skip("needs CAP_SYS_NICE: ", refused)
	case refused != nil:
		t.Error(refused)
	}
	if nice := niceOf(t, os.Getpid()); nice != main {
		t.Errorf("the main thread has nice %d now", nice)
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
		err := SetPriority(0, PriorityFirst)
		if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "LimitNICE=-19") {
			t.Errorf("without a permission: %v", err)
		}
		if nice := niceOf(t, unix.Gettid()); nice != niceEven() {
			t.Errorf("refused, it has nice %d", nice)
		}
	})
}

// TestPriorityFiltered: under a seccomp filter that forbids sched_setattr, as systemd's RestrictRealtime= may, a thread goes first all the same.
func TestPriorityFiltered(t *testing.T) {
	onThread(func() { // it ends with its filter
		filter := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the call's number: struct seccomp_data begins with it
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SCHED_SETATTR, Jf: 1},
			{Code: unix.BPF_RET | unix.BPF_K, K: 0x00050000 | uint32(unix.EPERM)}, // SECCOMP_RET_ERRNO
			{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000},                      // SECCOMP_RET_ALLOW
		}
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
			t.Errorf("a filter: %v", err)
			return
		}
		if err := unix.SchedSetAttr(0, &unix.SchedAttr{}, 0); err != unix.EPERM {
			t.Errorf("the filter lets sched_setattr pass: %v", err)
		}
		err := SetPriority(0, PriorityFirst)
		if errors.Is(err, unix.EACCES) {
			return // RLIMIT_NICE and capabilities, not the filter
		}
		if nice := niceOf(t, unix.Gettid()); err != nil || nice != niceFirst {
			t.Errorf("nice %d, %v", nice, err)
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
		for _, p := range []Priority{PriorityFirst, PriorityEven, PriorityFirst} {
			if err := SetPriority(0, p); err != nil {
				t.Errorf("%v: %v", p, err)
			}
		}
		if nice := niceOf(t, unix.Gettid()); nice != niceFirst {
			t.Errorf("nice %d", nice)
		}
	})
}
