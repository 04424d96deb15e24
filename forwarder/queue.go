package forwarder

import (
	"sync"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// What a pod with a bound receives passes a bucket. While it is open and nothing
// waits, writes go straight through; else they wait in the port's queue, and the
// worker that found it empty sets an alarm, on which it writes what the bucket
// allows and sets the next. What the queue does not hold is drop `shaped`.
//
//	worker ─┬─ nothing waits, bucket open ─▶ port
//	        ├─ room ─▶ queue ── alarm ─────▶ port
//	        └─ no room ─▶ drop
//
// Any worker writes to a port, so queue and bucket are shared, under a mutex:
// only ports with a bound have one, and those are slow by definition. It is held
// over the writes too, or one worker's frames would overtake what another is just
// taking out of the queue. The order of a flow is that of its worker, as always.
//
// Bytes are lent to a worker for one batch only, so the queue copies what waits,
// into memory that it has from the attachment to the detachment.

// queue is what waits to be written to a port.
type queue struct {
	mu sync.Mutex
	bucket
	limit   int // bytes that may wait and still take one more frame
	waits   int // bytes that wait, as the bucket counts them
	slots   []waiting
	head, n int      // slots[head], and n-1 after it, circularly
	mem     []byte   // of the frames, circularly; none is split
	tail    int      // where the next frame goes, if it fits
	alarmed bool     // a worker has an alarm for it
	broken  []Reason // by worker: why the frame that it writes in pieces has lost one that waited
}

// waiting is one write.
type waiting struct {
	at, size   int // in mem
	cost       int
	v          ring.Virtio
	frames     int32 // frames that end in it
	bytes      int32 // of these frames' IP packets
	worker     int32 // that queued it
	begins     bool  // its first byte is a frame's
	unfinished bool  // it is a piece of a frame that ends in a later write of this worker
	to         Direction
}

// newQueue is an empty queue of shapeDelay of a rate. One more frame than the
// limit may wait, so that a superframe always finds room in an empty one. Frames
// of less than 128 bytes fill the slots before they fill the limit.
func newQueue(rate, burst uint64, workers int, now int64) *queue {
	limit, slots, mem := queueSize(rate)
	return &queue{bucket: newBucket(rate, burst, now), limit: limit, slots: make([]waiting, slots), mem: make([]byte, mem), broken: make([]Reason, workers)}
}

// queueSize is what a queue of shapeDelay of a rate has.
func queueSize(rate uint64) (limit, slots, mem int) {
	const longest = longestPacket + encap.EthernetLen
	limit = min(max(during(rate, shapeDelay), minQueue), maxQueue)
	slots = limit/128 + 64
	return limit, slots, limit + slots*encap.EthernetLen + 2*longest
}

// minQueue is what TCP needs to move without running into its timers: eight
// packets, which last longer than 25 ms below 4 Mbit/s.
const minQueue = 8 * 1500

// cuts tells that a superframe lasts longer than what may wait. Such a port gets
// packets: of a superframe that finds the queue nearly full some then arrive,
// which tells TCP what was lost; of a superframe that is dropped nothing does,
// and its sender waits for a timer.
func (q *queue) cuts() bool { return q.limit < longestPacket }

// maxQueue bounds a queue's memory, which is 25 ms of 10 Gbit/s; faster ports
// queue for a shorter time. Its pages become resident when they are first used.
const maxQueue = 32 << 20

// size is the memory of the queue.
func (q *queue) size() int64 { return queueMemory(len(q.slots), len(q.mem)) }

func queueMemory(slots, mem int) int64 { return int64(mem + slots*64) }

// room finds where size bytes fit in one piece; false: nowhere.
func (q *queue) room(size int) bool {
	switch first := q.slots[q.head].at; {
	case q.n == 0:
		q.tail = 0 // the same pages again
		return size <= len(q.mem)
	case q.n == len(q.slots):
		return false
	case q.tail <= first:
		return size <= first-q.tail
	case size <= len(q.mem)-q.tail:
		return true
	case size <= first:
		q.tail = 0
		return true
	}
	return false
}

// slot is the i-th that waits.
func (q *queue) slot(i int) *waiting {
	if i += q.head; i >= len(q.slots) {
		i -= len(q.slots)
	}
	return &q.slots[i]
}

// release forgets the first n.
func (q *queue) release(n int) {
	for i := range n {
		q.waits -= q.slot(i).cost
	}
	if q.head += n; q.head >= len(q.slots) {
		q.head -= len(q.slots)
	}
	q.n -= n
}

// flushShaped is flushOutbox for a port whose pod has a bound.
func (w *worker) flushShaped(b *outbox) {
	a, p, q := &w.arena, w.packets, b.port.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fill(w.nanos)
	for next := b.first; next >= 0; {
		p.Reset()
		n := 0
		for next >= 0 && n < len(w.loaded) && q.n == 0 && q.open() && b.load(p, a, &a.deliveries[next]) {
			d := &a.deliveries[next]
			q.take(shapedLength(d.length(a), d.v))
			b.midway = d.unfinished
			w.loaded[n] = next
			n++
			next = d.next
		}
		if n > 0 {
			w.write(b, w.loaded[:n])
			continue
		}
		w.queue(q, b, &a.deliveries[next])
		next = a.deliveries[next].next
	}
	if q.n > 0 && !q.alarmed {
		q.alarmed = true
		w.alarms.set(alarm{due: w.nanos + q.wait(), port: b.port, write: true})
	}
}

// length is how long a write is, without the link header.
func (d *delivery) length(a *arena) (n int) {
	for i := d.first; i >= 0; i = a.pieces[i].next {
		n += len(a.pieces[i].b)
	}
	return n
}

// queue copies a write to the end of q, which is locked, or drops it.
func (w *worker) queue(q *queue, b *outbox, d *delivery) {
	begins := !b.midway
	b.midway = d.unfinished
	link, v := b.head(d)
	length := d.length(&w.arena)
	size := len(link) + length
	if q.waits >= q.limit && q.n > 0 || !q.room(size) {
		w.unwritten(b, d, DropShaped)
		return
	}
	frames, bytes := d.frames, d.bytes
	if b.broken != dropNone && frames > 0 { // the frame that ends here has lost a piece
		frames--
		w.dropN(b.broken, 1)
		w.dropFor(b.port, 1)
		b.broken = dropNone
	}
	e := q.slot(q.n)
	*e = waiting{at: q.tail, size: size, cost: shapedLength(length, d.v), v: v, frames: frames, bytes: bytes, worker: int32(w.index),
		begins: begins, unfinished: d.unfinished, to: d.to}
	mem := q.mem[q.tail : q.tail+size : q.tail+size]
	n := copy(mem, link)
	for i := d.first; i >= 0; i = w.arena.pieces[i].next {
		n += copy(mem[n:], w.arena.pieces[i].b)
	}
	q.tail += size
	q.waits += e.cost
	q.n++
}

// drain writes what waits for p as far as the bucket allows, on its alarm.
func (w *worker) drain(p *port) {
	q, out := p.queue, w.packets
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fill(w.nanos)
	for q.n > 0 && q.open() {
		out.Reset()
		n := 0
		for n < q.n && q.open() {
			e := q.slot(n)
			if !out.Begin(e.v) {
				break
			}
			if !out.Append(q.mem[e.at : e.at+e.size]) {
				out.Drop()
				break
			}
			q.take(e.cost)
			n++
		}
		for from := 0; from < n; {
			done, err := p.io.Write(out, from)
			for i := range done {
				w.end(p, q.slot(from+i), dropNone)
			}
			if from += done; err == nil {
				break
			}
			w.end(p, q.slot(from), w.writeReason(p, err))
			from++
		}
		q.release(n)
	}
	if q.alarmed = q.n > 0; q.alarmed {
		w.alarms.set(alarm{due: w.nanos + q.wait(), port: p, write: true})
	}
}

// end counts a write that has waited: written, or dropped for a reason.
func (w *worker) end(p *port, e *waiting, r Reason) {
	frames, broken := e.frames, &p.queue.broken[e.worker]
	if e.begins {
		*broken = dropNone
	}
	if r != dropNone {
		*broken = r
		w.dropN(r, int(frames))
		w.dropFor(p, uint64(frames))
		if w.taps != nil {
			w.tap(tapSlot{stage: Dropped, reason: r, port: p, ethernet: p.link != 0}, p.queue.mem[e.at:e.at+e.size])
		}
		return
	}
	if *broken != dropNone && frames > 0 {
		frames--
		w.dropN(*broken, 1)
		w.dropFor(p, 1)
	}
	w.tally.writes++
	w.delivered(p, e.to, uint64(frames), uint64(e.bytes))
}

// abandon drops what waits for a port that is going away. No other worker
// knows the port any more.
func (w *worker) abandon(p *port) {
	q := p.queue
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.n {
		w.end(p, q.slot(i), DropPortDown)
	}
	q.release(q.n)
	w.ledger.publish(&w.tally)
}
