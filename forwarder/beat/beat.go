// Package beat lets what an idle node looks at again and again be looked at in the same moment:
//
//	watchdog      |    |    |    |    |    |    |       every 5 s (a third of WatchdogSec, if that is less)
//	neighbours    |    |    |    |    |    |    |
//	idle rings    |    |    |    |    |    |    |
//	flows         |                             |       every 30 s
//	repairs       |                                 …   every minute
//
// On an idle node what is looked at costs little. Waking does: a thread, Go's monitor, which then asks for a while
// whether there is more, and on a virtual machine a processor that had halted.
package beat

import "time"

// Period is the beat. Who has another period, a multiple of it, meets the others there.
const Period = 5 * time.Second

var start = time.Now()

// Next is how long it takes to the next multiple of period since the process began: more than 0, and period at most.
func Next(period time.Duration) time.Duration { return next(time.Since(start), period) }

func next(since, period time.Duration) time.Duration { return period - since%period }
