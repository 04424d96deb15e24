package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ours begins the name of what the kernel does not take back by itself; the id of the lab's process follows, and a dot.
const ours = "penstock-lab."

// sweep removes from root what labs that were killed have left.
func sweep(root string, remove func(string) error) {
	old, _ := filepath.Glob(filepath.Join(root, ours+"*"))
	for _, path := range old {
		pid, err := strconv.Atoi(strings.Split(filepath.Base(path), ".")[1])
		if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			remove(path)
		}
	}
}

// makeDir makes a directory for one lab's sockets and files, named after this process, and removes those of
// labs that were killed.
func makeDir() (string, error) {
	sweep(os.TempDir(), os.RemoveAll)
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d.", ours, os.Getpid()))
	if err != nil {
		return "", fmt.Errorf("lab: directory for sockets and state: %w", err)
	}
	return dir, nil
}
