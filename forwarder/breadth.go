package forwarder

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock-net/penstock/ring"
)

// A veth pod is read through a narrow ring, as a hundred idle pods with wide ones
// would take hundreds of megabytes. While a pod is busy it has a wide ring beside
// the narrow one (ring/widen.go says how the kernel changes between them):
//
//	the worker finds a ring crowded ──asks──▶ the keeper opens a wide ring and hands it to the worker
//	the pod is quiet for quietBreadth ──────▶ the keeper lets the worker read it to its end, and closes it
//
// A flood of small packets gets a ring of blocks (V3): the kernel fills it for less, and wakes the worker once a block instead
// of once a frame. A frame may wait a millisecond there, and each millisecond may end a block, however little is in it, so that
// a worker that is kept from running for as many as there are blocks loses frames. In a flood both do no harm; so the pod
// gets it at floodRate only, and loses it when it has come down from there, or thin reads show that the flood is over.
//
// Both bounds hold: a pod's rings and queues stay within limits.podBuffer and all
// pods' within limits.totalBuffer; a pod that is being attached goes first.

const (
	narrowBuffer = 2 << 20 // ring and queue of a pod that is not busy, at most
	leastBreadth = 1 << 20 // a wide ring and its queue that are worth it
	wideSlotSize = 2048
	mostSlots    = 4096

	quietBreadth = 8 * time.Second // so long without a crowd, and the wide ring is given back
	lookBreadth  = 2 * time.Second // how often the keeper looks at wide rings, if nothing but their pods' quiet can change them

	floodRate  = 150_000                // frames a second that are a flood
	lookCrowd  = 5 * time.Millisecond   // over so long a crowd's rate is taken before it gets a ring
	lookWave   = 200 * time.Millisecond // how often a pod is looked at that may begin to flood
	lookFlood  = 500 * time.Millisecond // how often a flood is looked at
	blocksMost = 4 << 20                // bytes of blocks
	thinMost   = 3                      // reads in a row that are no full batch end a flood
)

// breadth is what a port with a V2 ring knows of its wide one.
type breadth struct {
	socket *ring.PacketSocket // the port's
	narrow int64              // bytes of its ring and queue

	busy  atomic.Int64 // Unix seconds when a ring was last found crowded
	asked atomic.Bool  // the keeper is to look at this port
	read  atomic.Int64 // frames. The worker's to write

	broken atomic.Bool // the wide ring cannot be read any more
	over   atomic.Bool // the flood is, for which the wide ring is one of blocks

	// Changed under Forwarder.control.
	wide   *ring.PacketSocket
	size   int64     // bytes of the wide ring and its queue; 0: none
	looked time.Time // when the keeper last looked at this port; zero: it had no reason to
	had    uint64    // what had come by then
	due    time.Time // when it is to look again

	polled int // the wide descriptor in the worker's epoll set; 0: none. The worker's,
	thin   int // as how many reads in a row were thin; -1: not counted until one is full
}

// took counts n frames and tells the keeper of a crowd. After each read, on the worker.
func (b *breadth) took(w *worker, n int) {
	b.read.Store(b.read.Load() + int64(n))
	if b.polled != 0 {
		switch {
		case n == batchFrames:
			b.thin = 0
		case b.thin >= 0:
			if b.thin++; b.thin == thinMost && !b.over.Swap(true) {
				w.f.keeper.poke()
			}
		}
	}
	if !b.socket.Crowded() {
		return
	}
	b.busy.Store(w.now)
	if !b.asked.Load() {
		b.asked.Store(true)
		w.f.keeper.poke()
	}
}

// keeper opens wide rings and gives them back, off the workers: both wait for the
// kernel. It sleeps while no pod is busy.
type keeper struct {
	wake, quit chan struct{}
	once       sync.Once
	done       sync.WaitGroup
}

func newKeeper() *keeper {
	return &keeper{wake: make(chan struct{}, 1), quit: make(chan struct{})}
}

func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// stop ends the keeper; control is not held.
func (k *keeper) stop() {
	k.once.Do(func() { close(k.quit) })
	k.done.Wait()
}

func (k *keeper) run(f *Forwarder) {
	var tick <-chan time.Time
	for {
		select {
		case <-k.quit:
			return
		case <-k.wake:
		case <-tick:
		}
		tick = nil
		if again := f.adjustBreadths(); again > 0 {
			tick = time.After(again)
		}
	}
}

// adjustBreadths looks at every port that has asked and is due, and says when it is to be called again; 0: when one asks.
func (f *Forwarder) adjustBreadths() (again time.Duration) {
	for _, p := range *f.portList.Load() {
		b := p.breadth
		if b == nil || !b.asked.Load() {
			continue
		}
		f.control.Lock()
		if !f.stopped && slices.Contains(f.ports, p) {
			now := f.env.now()
			wait := b.due.Sub(now)
			if wait <= 0 || b.broken.Load() || b.over.Load() && b.blocks() { // else another port's crowd has woken us
				wait = f.adjustBreadth(p, now)
				b.due = now.Add(wait)
			}
			if wait > 0 && (again == 0 || wait < again) {
				again = wait
			}
		}
		f.control.Unlock()
	}
	return again
}

// adjustBreadth changes how wide one port is, if it is time to, and says when it is to be looked at again; 0: it is narrow, and
// will ask.
func (f *Forwarder) adjustBreadth(p *port, now time.Time) (again time.Duration) {
	b := p.breadth
	rate, known := b.rate(now)
	flood := f.use.flood > 0 && rate >= f.use.flood
	quiet := now.Unix()-b.busy.Load() >= int64(quietBreadth/time.Second)
	switch {
	case b.wide == nil && quiet:
	case b.wide == nil && !known && f.use.flood > 0:
		return lookCrowd
	case b.wide == nil:
		return f.widenFor(p, flood)
	case b.broken.Load():
		if err := f.narrow(p); err != nil {
			return lookBreadth
		}
	case b.blocks() && rate >= f.use.flood/2 && !b.over.Load():
		return lookFlood
	case b.wide.Ring() == ring.RingV2 && !quiet && !flood:
		return f.lookSlots()
	default: // no longer what its ring is for
		was := b.wide.Ring()
		if err := f.narrow(p); err != nil {
			f.complain("a pod keeps a wide ring that is not what it needs", "device", p.spec.Device, err)
			return lookBreadth
		}
		if was == ring.RingV3 {
			b.busy.Store(now.Unix()) // the next wave finds room, in a ring that delays nobody
		}
		if flood || was == ring.RingV3 {
			return f.widenFor(p, flood && was != ring.RingV3)
		}
	}
	b.looked = time.Time{}
	b.asked.Store(false)
	return 0
}

// blocks reports whether the wide ring is one of blocks.
func (b *breadth) blocks() bool { return b.wide != nil && b.wide.Ring() == ring.RingV3 }

// widenFor is widen for a crowd or a flood, with the log told of an error; it says when to look again.
func (f *Forwarder) widenFor(p *port, flood bool) time.Duration {
	if flood && f.widen(p, ring.RingV3) == nil {
		return lookFlood
	}
	if err := f.widen(p, ring.RingV2); err != nil {
		f.complain("a busy pod gets no wide ring and may lose packets", "device", p.spec.Device, err)
		return lookBreadth
	}
	return f.lookSlots()
}

// lookSlots is when to look again at a pod whose wide ring is one of slots.
func (f *Forwarder) lookSlots() time.Duration {
	if f.use.flood > 0 {
		return lookWave
	}
	return lookBreadth
}

// rate is how many frames a second the pod has sent since the last look, those included for which there was no room; known: there
// was one.
func (b *breadth) rate(now time.Time) (perSecond float64, known bool) {
	st, _ := b.socket.Stats() // on an error what was known before
	came, since := st.Received+st.Dropped, now.Sub(b.looked)
	if known = !b.looked.IsZero() && since > 0; known {
		perSecond = float64(came-b.had) / since.Seconds()
	}
	b.looked, b.had = now, came
	return perSecond, known
}

// widen gives the port a wide ring. On an error it has its narrow one as before.
func (f *Forwarder) widen(p *port, kind ring.PacketRing) error {
	b := p.breadth
	size := min(f.settings.PodBuffer-b.narrow, f.bufferLeft())
	if size < leastBreadth {
		return fmt.Errorf("limits.podBuffer %d and limits.totalBuffer %d leave %d bytes for it, it needs %d", f.settings.PodBuffer, f.settings.TotalBuffer, max(size, 0), leastBreadth)
	}
	cfg := ring.PacketConfig{Ring: kind}
	if kind == ring.RingV3 {
		cfg.Slots, cfg.SlotSize = int(min(size, blocksMost)/blockV3), blockV3
		size = int64(cfg.Slots) * blockV3
	} else {
		cfg.Slots, cfg.SlotSize = wideSlots(size), wideSlotSize
		cfg.RecvBuffer = int(size) - cfg.Slots*cfg.SlotSize
	}
	wide, err := f.env.openWide(b.socket, cfg)
	if err != nil {
		return err
	}
	if err := f.takeWide(p, wide); err != nil {
		wide.Close()
		return err
	}
	b.wide, b.size = wide, size
	f.fds.add(fmt.Sprintf("pod/%s/%s/wide", p.spec.Container, p.spec.Interface), wide.FD())
	f.widened.Add(1)
	return nil
}

// wideSlots is how many slots the ring of a wide socket has that may take size
// bytes: about two thirds of them, the rest are for superframes.
func wideSlots(size int64) int {
	slots := mostSlots
	for int64(slots)*wideSlotSize > size*2/3 {
		slots /= 2
	}
	return slots
}

// takeWide lets the worker wait for and read the wide ring, then the kernel fill it.
func (f *Forwarder) takeWide(p *port, wide *ring.PacketSocket) error {
	b := p.breadth
	err := f.onWorker(p.worker, func(w *worker) error {
		if err := w.poller.Add(wide.FD(), tokenPort|uint64(p.index)); err != nil {
			return err
		}
		b.polled, b.thin = wide.FD(), -1
		b.over.Store(false)
		b.socket.Adopt(wide)
		return nil
	})
	if err != nil {
		return err
	}
	if err := b.socket.Choose(true); err != nil {
		f.onWorker(p.worker, func(w *worker) error { w.leaveWide(p); return nil })
		return err
	}
	f.onWorker(p.worker, func(*worker) error { b.socket.Settled(); return nil })
	return nil
}

// narrow gives the wide ring back. On an error the port keeps it, unless it is only that its descriptor could not be closed.
func (f *Forwarder) narrow(p *port) error {
	b := p.breadth
	if !f.readUntil(p, b.socket.Leave) {
		return fmt.Errorf("what came to its narrow ring cannot be read")
	}
	if err := b.socket.Choose(false); err != nil {
		f.onWorker(p.worker, func(*worker) error { b.socket.Adopt(b.wide); return nil })
		return err
	}
	if !f.readUntil(p, b.socket.Left) { // nothing is added any more
		f.complain("what was left in a pod's wide ring cannot be read and is lost", "device", p.spec.Device, fmt.Errorf("no progress for %v", stuck))
	}
	f.onWorker(p.worker, func(w *worker) error { w.leaveWide(p); return nil })
	f.fds.remove(b.wide.FD())
	err := b.wide.Close()
	b.wide, b.size = nil, 0
	b.broken.Store(false)
	return err
}

// stuck is how long a ring that is read to its end may give nothing.
const stuck = 200 * time.Millisecond

// readUntil has the worker read a port until done, asked on the worker, says so of a ring that the kernel does not fill any more.
// What is in a block comes when its timer fires, and other ports are served meanwhile. false: it cannot be read.
func (f *Forwarder) readUntil(p *port, done func() bool) (is bool) {
	last := int64(-1)
	for end := time.Now(); ; time.Sleep(200 * time.Microsecond) {
		if n := p.breadth.read.Load(); n != last {
			last, end = n, time.Now().Add(stuck)
		}
		f.onWorker(p.worker, func(w *worker) error {
			for turns := 0; turns < mostSlots/batchFrames; turns++ {
				before := p.breadth.read.Load()
				if is = done(); is {
					break
				}
				w.begin()
				w.servePort(p, false)
				w.ledger.publish(&w.tally)
				if p.breadth.read.Load() == before {
					break
				}
			}
			return nil
		})
		if is || p.lost.Load() || time.Now().After(end) {
			return is
		}
	}
}

// leaveWide ends the reading of a wide ring. On the worker.
func (w *worker) leaveWide(p *port) {
	if b := p.breadth; b.polled != 0 {
		w.poller.Delete(b.polled)
		b.polled = 0
	}
	p.breadth.socket.Shed()
}

// unpoll takes the port out of the epoll set. On the worker.
func (w *worker) unpoll(p *port) {
	w.poller.Delete(p.io.FD())
	if b := p.breadth; b != nil && b.polled != 0 {
		w.poller.Delete(b.polled)
		b.polled = 0
	}
}

// bufferLeft is what no pod has taken of limits.totalBuffer.
func (f *Forwarder) bufferLeft() int64 {
	left := f.settings.TotalBuffer
	for _, o := range f.claimed() {
		left -= o.buffer
		if o.breadth != nil {
			left -= o.breadth.size
		}
	}
	return left
}

// makeRoom gives wide rings back until a pod that is being attached finds so much
// of limits.totalBuffer, and returns what there is.
func (f *Forwarder) makeRoom(want int64) int64 {
	for _, o := range f.ports {
		if f.bufferLeft() >= want {
			break
		}
		if o.breadth == nil || o.breadth.wide == nil {
			continue
		}
		if err := f.narrow(o); err != nil {
			f.complain("a pod keeps its wide ring, although another one needs the memory", "device", o.spec.Device, err)
		}
	}
	return f.bufferLeft()
}
