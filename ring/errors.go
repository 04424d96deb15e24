//go:build linux

package ring

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// setup makes the one sentence of a failed set-up call: what and where by
// format, why by err, and what to do by advice, which may be empty. Any call may
// meet the end of descriptors, which no other advice helps.
func setup(err error, advice, format string, args ...any) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		advice = "this process may open no more descriptors: raise LimitNOFILE of its unit (ulimit -n)"
	case errors.Is(err, unix.ENFILE):
		advice = "this machine may open no more descriptors: raise the sysctl fs.file-max"
	}
	if se, ok := err.(*os.SyscallError); ok {
		err = se.Err
	}
	what := fmt.Sprintf(format, args...)
	if advice == "" {
		return fmt.Errorf("penstock: cannot %s: %w", what, err)
	}
	return fmt.Errorf("penstock: cannot %s: %w; %s", what, err, advice)
}
