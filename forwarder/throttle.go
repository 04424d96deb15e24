package forwarder

import (
	"slices"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// What a pod may send is bounded by not reading it: when its bucket is shut the
// port leaves the worker's epoll set, and an alarm brings it back. What the pod
// sends meanwhile waits in the kernel, which drops what its buffer does not hold
// (counted as ring drops on a veth, as tx_dropped of eth0 on a TUN). Nothing of
// this is seen by a port without a bound, but for one test a drain.

// throttle bounds what is read from a port. It belongs to the worker that reads.
type throttle struct {
	bucket
	paused bool // out of the epoll set; an alarm is set
}

// shapePort gives a port what its bandwidth asks for.
func (f *Forwarder) shapePort(p *port) {
	b, now := p.spec.Bandwidth, f.env.now().Sub(f.started).Nanoseconds()
	if bounded(b.EgressRate) {
		p.throttle = &throttle{bucket: newBucket(b.EgressRate, b.EgressBurst, now)}
	}
	if bounded(b.IngressRate) {
		p.queue = newQueue(b.IngressRate, b.IngressBurst, len(f.workers), now)
	}
}

// socketBuffer is what a packet socket may hold, as the kernel counts it: a
// full-size packet takes up to twice its bytes, small ones more. A socket that is
// not full yet takes one more frame of any length.
func (t *throttle) socketBuffer() int64 { return 2*int64(during(t.rate, shapeDelay)) + 64<<10 }

// A TUN's queue is bounded in packets. For it to be bounded in bytes a pod with a
// slow TUN sends packets of its MTU, no superframes: superframeRate is where 25 ms
// are so many superframes that a queue of them holds enough small packets too.
const superframeRate = 4e9

// tunQueue is how many packets may wait in the TUN's queue.
func (t *throttle) tunQueue(mtu int) int {
	if t.rate >= superframeRate {
		return max(during(t.rate, shapeDelay)/longestPacket, 500) // 500 is what TUNs come with
	}
	return (during(t.rate, shapeDelay) + longestPacket) / mtu
}

// refuseSuperframes tells a TUN to hand over packets only; it goes on taking
// superframes from us. Without a throttle, or on anything else, it does nothing.
func (t *throttle) refuseSuperframes(io ring.Port, taken ring.Offload) error {
	q, ok := io.(interface{ SetOffload(ring.Offload) error })
	if t == nil || !ok || t.rate >= superframeRate {
		return nil
	}
	return q.SetOffload(taken & ring.OffloadCSUM)
}

// readThrottled is Read of a port whose pod has a bound. A drain stops when the
// bucket is shut, at most one frame late.
func (w *worker) readThrottled(p *port) (n int, err error) {
	t := p.throttle
	t.fill(w.nanos)
	for n < len(w.frames) && t.open() {
		// As many as the bucket allows however long they are.
		want := min(len(w.frames)-n, 1+int(t.level/(8*longestPacket)))
		got, e := p.io.Read(w.slab, w.frames[n:n+want])
		for i := range w.frames[n : n+got] {
			t.take(readLength(p, &w.frames[n+i]))
		}
		n += got
		if n == 0 {
			err = e
		}
		if got < want {
			break
		}
	}
	switch {
	case !t.open():
		if !t.paused {
			t.paused = true
			w.poller.Delete(p.io.FD())
		}
		w.alarms.set(alarm{due: w.nanos + t.wait(), port: p})
	case t.paused:
		w.resume(p)
	}
	return n, err
}

// resume puts a port back into the epoll set.
func (w *worker) resume(p *port) {
	if err := w.poller.Add(p.io.FD(), tokenPort|uint64(p.index)); err != nil {
		w.f.complain("a port cannot be waited for; trying again", "device", p.spec.Device, err)
		w.alarms.set(alarm{due: w.nanos + int64(shapeDelay), port: p})
		return
	}
	p.throttle.paused = false
}

// readLength is what a frame that was read costs.
func readLength(p *port, r *ring.Frame) int {
	v := encap.Virtio(r.Virtio)
	v.HdrLen -= min(v.HdrLen, uint16(p.link))
	return shapedLength(max(len(r.Mem)-r.Start-p.link, 0), v)
}

// alarm is when a worker looks at a port again: to read it, or to write what
// waits for it.
type alarm struct {
	due   int64 // nanoseconds, as worker.nanos
	port  *port
	write bool
}

// alarms is a binary heap, the earliest first. A port has at most one alarm of
// each kind on a worker, and reserve has made room for them all, so that set
// never allocates.
type alarms []alarm

// reserve makes room for the alarms of so many ports.
func (a *alarms) reserve(ports int) { *a = slices.Grow(*a, max(2*ports-len(*a), 0)) }

func (a *alarms) set(x alarm) {
	*a = append(*a, x)
	h := *a
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if h[up].due <= h[i].due {
			break
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
}

// take removes the earliest.
func (a *alarms) take() alarm {
	h := *a
	x, last := h[0], len(h)-1
	h[0], h[last] = h[last], alarm{}
	*a = h[:last]
	a.sink(0)
	return x
}

func (a *alarms) sink(i int) {
	h := *a
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(h); c++ {
			if h[c].due < h[least].due {
				least = c
			}
		}
		if least == i {
			return
		}
		h[i], h[least] = h[least], h[i]
		i = least
	}
}

// forget removes the alarms of a port.
func (a *alarms) forget(p *port) {
	*a = slices.DeleteFunc(*a, func(x alarm) bool { return x.port == p })
	for i := len(*a)/2 - 1; i >= 0; i-- {
		a.sink(i)
	}
}

// serveAlarms serves those that are due; the wait that follows lasts timeout ms
// (-1: for ever), or less if an alarm comes before.
func (w *worker) serveAlarms(timeout int) int {
	w.begin()
	for now := w.nanos; len(w.alarms) > 0 && w.alarms[0].due <= now; {
		if x := w.alarms.take(); x.write {
			w.drain(x.port)
		} else {
			w.servePort(x.port, false)
		}
	}
	w.ledger.publish(&w.tally)
	if timeout == 0 || len(w.alarms) == 0 {
		return timeout
	}
	// Rounded up, or the worker would turn idly through the last millisecond.
	ms := int((w.alarms[0].due - w.nanos + int64(time.Millisecond) - 1) / int64(time.Millisecond))
	if timeout < 0 {
		return ms
	}
	return min(timeout, ms)
}
