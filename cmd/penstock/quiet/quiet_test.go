package quiet

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// TestQuiet: init has run in this process as it does in the plugin.
func TestQuiet(t *testing.T) {
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("%d processors", n)
	}
	read := func(thread string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%s/timerslack_ns", thread))
		if err != nil {
			t.Skipf("the slack of a thread cannot be read: %v", err)
		}
		return strings.TrimSpace(string(b))
	}
	if m := monitor(); m == strconv.Itoa(os.Getpid()) || read(m) != "1000000" {
		t.Errorf("the monitor %s may be late by %s ns", m, read(m))
	}
	if s := read(strconv.Itoa(os.Getpid())); s == "1000000" {
		t.Error("the main thread may be late")
	}
}
