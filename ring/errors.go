//go:build linux

package ring

import (
	"fmt"
	"os"
)

// setup makes the one sentence of a failed set-up call: what and where by
// format, why by err, and what to do by advice, which may be empty.
func setup(err error, advice, format string, args ...any) error {
	if se, ok := err.(*os.SyscallError); ok {
		err = se.Err
	}
	what := fmt.Sprintf(format, args...)
	if advice == "" {
		return fmt.Errorf("penstock: cannot %s: %w", what, err)
	}
	return fmt.Errorf("penstock: cannot %s: %w; %s", what, err, advice)
}
