package torture

import (
	"sync"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// finish is one DEL for each pod that the runtime knows, and one GC; the anchor stays.
func (x *torture) finish() {
	if x.dead() {
		return
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	x.mu.Lock()
	var rest []*life
	for _, id := range sortedKeys(x.pods) {
		if id != "anchor" {
			rest = append(rest, x.pods[id])
		}
	}
	x.mu.Unlock()
	for _, l := range rest {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			x.end(l)
			c := l.call("DEL")
			c.previous = l.previous
			if o := x.plugin(c, fuse{}); o.failure != nil {
				x.errorf("%s at the end failed: %s %s", c, o.failure, o.failure.Details)
			}
			x.count.add("DEL", "at the end")
			x.afterDel(l)
			x.forget(l)
			l.box.remove()
		})
	}
	all.Wait()
	for _, w := range x.workers {
		w.live = nil
		w.foreign.del(x.n)
	}
	x.count.add("GC", "at the end")
	x.gcAll(nil)
}

// rehearse is the whole life of all pods once more, without a kill, under one daemon whose descriptors are counted; then the
// node must be as it was before the first pod.
func (x *torture) rehearse(clean snapshot, anchor *worker) {
	if x.dead() {
		return
	}
	before := len(x.snapshot()["descriptors"])
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, w := range x.workers {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			l, err := w.newLife()
			if err != nil {
				x.fatal("a pod cannot be made: %v", err)
				return
			}
			c := l.call("ADD")
			if l.attach == control.AttachRouted {
				c.previous = w.foreign.result(l)
			}
			if o := x.plugin(c, fuse{}); o.failure != nil {
				x.errorf("%s without a kill failed: %s %s", c, o.failure, o.failure.Details)
				return
			} else {
				w.up(l, o.output)
			}
			x.reaches(l, x.n.HostAddr(false), "the host")
			<-slots
			time.Sleep(500 * time.Millisecond) // until most of them are there
			slots <- struct{}{}
			x.ledger.take(l.id, l.addresses)
			if o := x.plugin(l.call("DEL"), fuse{}); o.failure != nil {
				x.errorf("DEL without a kill failed: %s %s", o.failure, o.failure.Details)
			}
			x.afterDel(l)
			w.removeSandbox(l)
		})
	}
	all.Wait()
	open := len(x.snapshot()["descriptors"])
	for end := time.Now().Add(20 * time.Second); open > before && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		open = len(x.snapshot()["descriptors"])
	}
	if open > before {
		x.errorf("the daemon had %d descriptors before %d pods came and went, and %d after", before, len(x.workers), open)
	}
	l := anchor.live
	if o := x.plugin(l.call("DEL"), fuse{}); o.failure != nil {
		x.errorf("DEL of the anchor failed: %s", o.failure)
	}
	x.forget(l)
	anchor.removeSandbox(l)
	x.gcAll(nil)
	var now snapshot
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) { // the kernel removes namespaces in its own time
		if now = x.snapshot(); len(now.more(clean)) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, line := range now.more(clean) {
		x.errorf("differs from before the first pod: %s", line)
	}
	x.Say("leaked: %s", now.leaked(clean))
}

// report prints what was counted.
func (x *torture) report() {
	x.Say("seed %d: %d kills in %v: %s", x.Seed, x.kills.Load(), time.Since(x.began).Round(100*time.Millisecond), x.count.line("killed"))
	for _, group := range []string{"ADD killed", "daemon killed", "found after a daemon's death", "ADD", "CHECK", "DEL", "DEL was", "GC", "GC had to be repeated for", "adopt", "abandoned", "pods", "spec versions", "pings", "pings between pods"} {
		x.Say("  %s: %s", group, x.count.line(group))
	}
	x.Say("  addresses: %s, %d given twice", x.ledger, x.count.get("addresses", "given twice"))
	for _, n := range sortedKeys(x.notes) {
		x.Say("  said %d times: %s", x.notes[n], n)
	}
}
