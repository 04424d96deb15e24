package beat

import (
	"testing"
	"time"
)

// TestNext: everyone meets at the multiples, and who comes just then waits for the next one.
func TestNext(t *testing.T) {
	for _, c := range []struct{ since, period, want time.Duration }{
		{0, Period, Period},
		{time.Millisecond, Period, Period - time.Millisecond},
		{Period - 1, Period, 1},
		{Period, Period, Period},
		{Period + 1, 12 * Period, 11*Period - 1},
		{12*Period - 1, 12 * Period, 1},
	} {
		if got := next(c.since, c.period); got != c.want {
			t.Errorf("%v since the start, every %v: in %v, want %v", c.since, c.period, got, c.want)
		}
	}
	if n := Next(time.Hour); n <= 0 || n > time.Hour {
		t.Errorf("in %v", n)
	}
}
