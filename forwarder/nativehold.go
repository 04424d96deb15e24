package forwarder

import (
	"fmt"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
)

// The change from one way to another keeps the order: the sender sends a fence
// behind the last frame on the old way, keeps what comes meanwhile, and goes on
// by the new way when the receiver says that the fence has come and that all in front of it
// has left its hands. Silence on the old way is no proof: under load a
// receiver's queues are far longer than any pause that one would like to make.

const (
	nativeFenceWait = 100 * time.Millisecond
	nativeFenceRest = time.Second // before it is tried again; twice as long each time that fences are not answered, up to
	nativeFenceMost = 6           // times in a row
	nativeHeldBytes = 4 << 20
	nativeHeldMost  = 4096
	nativeHeldRoom  = 128 // in front of each kept frame
)

// nativeHold is a change under way.
type nativeHold struct {
	on       bool
	to       *nativeWay
	serial   uint32
	waiting  uint64 // fences that have not been answered, by bit
	deadline int64  // nanoseconds
	rest     int64  // not before this
	failed   int    // fences in a row that nobody answered
	mem      []byte
	frames   []heldFrame
	fences   []byte // their bytes: lent until the flush
}

// heldFrame is one that waits.
type heldFrame struct {
	at, n int // of its IP packet in mem
	v     encap.Virtio
	in    *port
}

// changeNative changes o's way, or begins to.
func (w *worker) changeNative(o *nativeOut, to *nativeWay) {
	switch {
	case o.way.same(to):
		o.way = to // only what is known of the others has changed
		return
	case to != nil && to.carrier == native.TCP && w.pathTCP(o.peer.state) == nil:
		// Nothing can go by it yet. What goes by the other carrier stays there while that one is good.
		if o.way != nil && (o.way.carrier&to.dead != 0 || o.way.me != to.me) {
			w.setWay(o, nil)
		}
		return
	case to == nil || !to.fence || o.way != nil && (o.way.carrier&to.dead != 0 || !w.passable(o)):
		w.setWay(o, to) // what is left is dead
		return
	}
	h := &o.hold
	if w.nanos < h.rest {
		return
	}
	*h = nativeHold{on: true, to: to, serial: h.serial + 1, failed: h.failed, deadline: w.nanos + nativeFenceWait.Nanoseconds(), mem: make([]byte, 0, 64<<10)}
	if o.way != nil {
		w.fenceNative(o)
	} else {
		w.fenceStandard(o)
	}
	w.native.holding = append(w.native.holding, o)
	if h.waiting == 0 {
		w.endHold(o, true)
	}
}

// setWay is the change itself. A stream with another tag begins at 0; what waits has its place in the one before, and takes it now.
func (w *worker) setWay(o *nativeOut, to *nativeWay) {
	if to != nil && to.me.FirstTag != o.tag {
		if w.native.n > 0 {
			w.flush()
		}
		o.tag, o.offset = to.me.FirstTag, [nativeCarriers]uint32{}
	}
	o.way, o.open = to, false
}

// A fence's nonce says who waits for it: the worker, which fence of the change, the peer, the change.
func fenceNonce(worker, fence, peer int, serial uint32) uint64 {
	return uint64(worker)<<56 | uint64(fence&0xff)<<48 | uint64(peer&0xffffff)<<24 | uint64(serial&0xffffff)
}

func fenceWorker(nonce uint64) int { return int(nonce >> 56) }

// fence is the message with this number.
func (w *worker) fence(o *nativeOut, number int) native.Message {
	m := o.hold.to.me
	m.Kind, m.Nonce = native.Fence, fenceNonce(w.index, number, o.peer.state.index, o.hold.serial)
	return m
}

// fenceStandard sends a fence behind the last frame on each socket of the encapsulation that frames have left by. By others
// a fence may never pass (a firewall that lets protocol 4 through and not 41), and all frames would wait for it in vain.
func (w *worker) fenceStandard(o *nativeOut) {
	p, h := o.peer, &o.hold
	l := w.lanes[p.endpoint]
	room := p.header.Len()
	h.fences = make([]byte, len(l.egress)*(room+native.MessageLen))
	for i, e := range l.egress {
		if !w.transmits[p.state.index].sources[i].used() {
			continue
		}
		w.makeRoom()
		b := h.fences[i*(room+native.MessageLen):][:room+native.MessageLen]
		p.header.Put(b, false)
		m := w.fence(o, i)
		m.Put(b[room:])
		h.waiting |= 1 << i
		r := w.beginRun(p, e, 0, 0)
		r.first = w.arena.chain(-1, b)
		r.last, r.count, r.bytes, r.segment, r.closed = r.first, 1, int32(len(b)), int32(len(b)), true
	}
}

// fenceNative sends a fence behind the last burst.
func (w *worker) fenceNative(o *nativeOut) {
	b := w.beginNative(o)
	o.open = false
	o.hold.fences = make([]byte, native.MessageLen)
	m := w.fence(o, 0)
	m.Put(o.hold.fences)
	b.message, o.hold.waiting = o.hold.fences, 1
}

// holdNative keeps a copy of f. If there are too many, the change is given up.
func (w *worker) holdNative(o *nativeOut, f *frame) {
	h := &o.hold
	need := nativeHeldRoom + f.p.Len
	if len(h.frames) == nativeHeldMost || len(h.mem)+need > nativeHeldBytes {
		hand, in := *f, w.frame // f may be the answer to the frame in hand
		w.endHold(o, false)
		w.frame, *f = in, hand
		w.byWay(o, f)
		return
	}
	at := len(h.mem) + nativeHeldRoom
	h.mem = append(append(h.mem, make([]byte, nativeHeldRoom)...), f.ip()...)
	h.frames = append(h.frames, heldFrame{at, f.p.Len, f.v, f.in})
}

// fencePassed takes the answer to a fence.
func (w *worker) fencePassed(nonce uint64) {
	for _, o := range w.native.holding {
		h := &o.hold
		number := int(nonce >> 48 & 0xff)
		if !h.on || nonce != fenceNonce(w.index, number, o.peer.state.index, h.serial) {
			continue
		}
		if h.waiting &^= 1 << number; h.waiting == 0 {
			w.begin()
			w.endHold(o, true)
			w.flush()
			w.ledger.publish(&w.tally)
		}
		return
	}
}

// drainLane receives what waits at an endpoint now. A flood fills its sockets again at once: more than they can hold is not waited for.
func (w *worker) drainLane(endpoint int) {
	if endpoint >= len(w.lanes) || w.lanes[endpoint] == nil {
		return
	}
	l := w.lanes[endpoint]
	for i := range l.receiving {
		for range receiveBuffer / leastTruesize / inboxMessages {
			w.begin()
			got := w.serveLane(l, i, true, false)
			w.ledger.publish(&w.tally)
			if got < inboxMessages {
				break
			}
		}
	}
}

// leastTruesize is what the kernel takes at least from a receive buffer for a packet: its sk_buff and 256 bytes (SKB_TRUESIZE).
const leastTruesize = 512

// endHold lets go what was kept: by the new way if the fences have passed, else
// by the old one, or by the encapsulation if the old one is no longer good.
func (w *worker) endHold(o *nativeOut, passed bool) {
	h := &o.hold
	n := w.native
	for i, x := range n.holding {
		if x == o {
			n.holding = append(n.holding[:i], n.holding[i+1:]...)
			break
		}
	}
	frames, mem := h.frames, h.mem
	h.on, h.frames, h.mem = false, nil, nil
	// The peer may have changed since, or gone, and its sockets with it.
	x := w.view.Peer(o.peer.spec.Address)
	if x == nil || x.peer.state != o.peer.state {
		w.setWay(o, nil)
		w.dropN(DropNoRoute, len(frames))
		return
	}
	o.peer = x.peer
	now := o.peer.state.native.way.Load()
	switch {
	case passed && now.same(h.to):
		h.failed = 0
		w.setWay(o, now)
	case now == nil:
		w.setWay(o, nil)
	default:
		h.rest = w.nanos + nativeFenceRest.Nanoseconds()<<min(h.failed, nativeFenceMost)
		if w.nanos >= h.deadline {
			w.unanswered(o)
		}
	}
	o.open = false
	for _, x := range frames {
		f := &w.frame
		*f = frame{mem: mem[: x.at+x.n : x.at+x.n], at: x.at, v: x.v, in: x.in}
		if fault := encap.Parse(f.ip(), &f.p); fault != encap.OK {
			w.drop(faultReason[fault])
			continue
		}
		w.byWay(o, f)
	}
}

// unanswered notes a fence that was waited for in vain. One may be lost as any packet; several in a row have a cause.
func (w *worker) unanswered(o *nativeOut) {
	if o.hold.failed++; o.hold.failed >= 3 {
		w.f.complain("a peer answers no fence, so frames to it go on the way they went: is a port or protocol of the encapsulation closed between the nodes?",
			"peer", o.peer.spec.Name, errNoFence)
	}
}

var errNoFence = fmt.Errorf("none within %v", nativeFenceWait)

// byWay sends f by o's way, whatever the plane says now.
func (w *worker) byWay(o *nativeOut, f *frame) {
	if w.passable(o) {
		w.sendNative(o, f)
		return
	}
	w.setWay(o, nil)
	w.toStandard(f, o.peer)
}

// nativeTimers ends waits that have lasted too long; it returns the wait that is left, in ms.
func (w *worker) nativeTimers(timeout int) int {
	n := w.native
	if len(n.holding) == 0 && len(n.incomplete) == 0 {
		return timeout
	}
	w.begin()
	for i := 0; i < len(n.holding); {
		if o := n.holding[i]; w.nanos >= o.hold.deadline {
			w.endHold(o, false)
			continue
		}
		i++
	}
	w.expireNative(false)
	w.flush()
	w.ledger.publish(&w.tally)
	if len(n.holding) > 0 || len(n.incomplete) > 0 {
		if timeout < 0 || timeout > nativeTimerEvery {
			timeout = nativeTimerEvery
		}
	}
	return timeout
}

// stopNative lets go all that waits, as the worker ends: what was received has left then, or is counted as a drop.
func (w *worker) stopNative() {
	w.begin()
	for len(w.native.holding) > 0 {
		w.endHold(w.native.holding[0], false)
	}
	w.expireNative(true)
	w.flush()
	w.ledger.publish(&w.tally)
}

// nativeTimerEvery is how often, in ms, waits are looked at.
const nativeTimerEvery = 2
