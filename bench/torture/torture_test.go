package torture

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

const inside = "TORTURE_INSIDE"

// TestMain starts the test binary again in a mount namespace of its own: namespaces are mounted on files, and no mount may
// outlive a run that is killed.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" || lab.Possible() != nil {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // PDEATHSIG is about this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestTorture is `make torture`, and a short one in `make test`. SEED and KILLS say which and how long.
func TestTorture(t *testing.T) {
	lab.Require(t)
	number := func(name string, or uint64) uint64 {
		v := os.Getenv(name)
		if v == "" {
			return or
		}
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil {
			t.Fatalf("%s=%s is not a number", name, v)
		}
		return n
	}
	o := Options{
		Seed: number("SEED", uint64(time.Now().UnixNano())%1_000_000), Kills: int(number("KILLS", 60)), Pods: int(number("PODS", 50)),
		Say: func(format string, args ...any) { fmt.Printf(format+"\n", args...) },
	}
	o.Limit = 3*time.Minute + 2*time.Duration(o.Kills)*time.Second
	o.Say("torture: SEED=%d KILLS=%d PODS=%d", o.Seed, o.Kills, o.Pods)
	Run(t, o)
	if t.Failed() {
		t.Logf("again with: SEED=%d KILLS=%d make torture", o.Seed, o.Kills)
	}
}
