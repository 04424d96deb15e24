// Package beat lets what is looked at again and again, whatever happens, be looked at in the same moment:
//
//	watchdog      |    |    |    |    |            every 5 s
//	neighbours    |    |    |    |    |
//	idle rings    |    |    |    |    |
//	repairs       |                        …       every minute
//
// On an idle node what is looked at costs little. Waking does: a thread, Go's monitor, which then asks for a while
// whether there is more, and on a virtual machine a processor that had halted.
package beat

import "time"

// Period is the beat. All who keep to it wait for multiples of it.
const Period = 5 * time.Second

var start = time.Now()

// Next is how long it takes to the next multiple of period since the process began: more than 0, and period at most.
func Next(period time.Duration) time.Duration { return next(time.Since(start), period) }

func next(since, period time.Duration) time.Duration { return period - since%period }
