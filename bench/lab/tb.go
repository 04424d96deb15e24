package lab

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// TB is what the lab needs of a test. *testing.T is one; the demo brings its own.
type TB interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any) // must not return
	Skipf(format string, args ...any)  // must not return
	Failed() bool
	Cleanup(func())
	Name() string
}

// Possible reports in one sentence why no lab can run here, or nil.
func Possible() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and TUN devices need root: run this as root")
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun cannot be opened (%w): load the tun module or create the device with mknod", err)
	}
	unix.Close(fd)
	if err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
		return fmt.Errorf("this system does not allow new network namespaces (%w): run this as root outside of a restricted container", err)
	}
	return nil
}

// Require skips the test where no lab can run, or fails it if LAB_REQUIRED is set (as it is in CI, where a
// skipped suite must not look like a passed one).
func Require(t TB) {
	t.Helper()
	err := Possible()
	if err == nil {
		return
	}
	if os.Getenv("LAB_REQUIRED") != "" {
		t.Fatalf("%v", err)
	}
	t.Skipf("%v", err)
}
