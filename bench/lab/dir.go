package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const dirPrefix = "penstock-lab."

// makeDir makes a directory for one lab's sockets and files, named after this process, and removes those of
// labs that were killed: files are the only thing that the kernel does not take back by itself.
func makeDir() (string, error) {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	for _, dir := range old {
		pid, err := strconv.Atoi(strings.Split(filepath.Base(dir), ".")[1])
		if err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			os.RemoveAll(dir)
		}
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d.", dirPrefix, os.Getpid()))
	if err != nil {
		return "", fmt.Errorf("lab: directory for sockets and state: %w", err)
	}
	return dir, nil
}
