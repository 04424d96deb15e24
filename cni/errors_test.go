package cni

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// TestPatiently: what is returned is what went wrong, and not that the time was up in the attempt after it.
func TestPatiently(t *testing.T) {
	dead := fmt.Errorf("nobody listens: %w", control.ErrUnreachable)
	late := fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	starting := control.Errorf(control.NotReady, "starting")
	for name, test := range map[string]struct {
		attempts []error // the last one takes the rest of the time, or ends a moment before it
		early    bool
		want     error
	}{
		"dead, then cut short":          {[]error{dead, late}, false, dead},
		"dead, then short of the end":   {[]error{dead, late}, true, dead},
		"dead, then starting":           {[]error{dead, starting}, true, starting},
		"cut short at once":             {[]error{late}, false, late},
		"short of the end in the first": {[]error{late}, true, late},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		n := 0
		err := patiently(ctx, func(ctx context.Context) error {
			err := test.attempts[min(n, len(test.attempts)-1)]
			if n++; n >= len(test.attempts) {
				if !test.early {
					<-ctx.Done()
				} else if n == len(test.attempts) {
					time.AfterFunc(5*time.Millisecond, cancel) // within the pause that follows
				}
			}
			return err
		})
		if cancel(); !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused := control.Errorf(control.Conflict, "no")
	if err := patiently(t.Context(), func(context.Context) error { return refused }); err != refused {
		t.Errorf("a refusal became %v", err)
	}
}
