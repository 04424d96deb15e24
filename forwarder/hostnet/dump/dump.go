// Package dump lists what the kernel has by rtnetlink, whole. It is apart from hostnet so that the plugin may link what needs it.
package dump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// All asks again while the kernel says that its answer was interrupted by a change (NLM_F_DUMP_INTR); what it has after six times it returns
// with that error.
func All[T any](list func() ([]T, error)) ([]T, error) {
	for try := 0; ; try++ {
		l, err := list()
		if err == nil || try == 5 || !errors.Is(err, netlink.ErrDumpInterrupted) {
			return l, err
		}
	}
}
