package cni

import (
	"fmt"
	"os"
)

// undoList takes steps back, last first. What cannot be taken back is said on standard error and left to DEL.
type undoList struct{ steps []func() error }

func (u *undoList) add(step func() error) (index int) {
	u.steps = append(u.steps, step)
	return len(u.steps) - 1
}

func (u *undoList) forget(index int) { u.steps[index] = nil }

// forgetAll is for when it turns out that nothing here is ours.
func (u *undoList) forgetAll() { u.steps = nil }

func (u *undoList) run() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		if u.steps[i] == nil {
			continue
		}
		if err := u.steps[i](); err != nil {
			fmt.Fprintln(os.Stderr, "penstock: the failed ADD is not wholly undone, DEL will do the rest:", err)
		}
	}
}
