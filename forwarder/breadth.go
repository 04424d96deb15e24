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
// Both bounds hold: a pod's rings and queues stay within limits.podBuffer and all
// pods' within limits.totalBuffer; a pod that is being attached goes first.

const (
	narrowBuffer = 2 << 20 // ring and queue of a pod that is not busy, at most
	leastBreadth = 1 << 20 // a wide ring and its queue that are worth it
	wideSlotSize = 2048
	mostSlots    = 4096

	quietBreadth = 8 * time.Second // so long without a crowd, and the wide ring is given back
	lookBreadth  = 2 * time.Second // how often the keeper looks at wide rings
)

// breadth is what a port with a V2 ring knows of its wide one.
type breadth struct {
	socket *ring.PacketSocket // the port's
	narrow int64              // bytes of its ring and queue

	busy  atomic.Int64 // Unix seconds when a ring was last found crowded
	asked atomic.Bool  // the keeper is to look at this port

	// Changed under Forwarder.control.
	wide *ring.PacketSocket
	size int64 // bytes of the wide ring and its queue; 0: none

	polled int // the wide descriptor in the worker's epoll set; 0: none. The worker's
}

// crowded tells the keeper of a crowd. After each read, on the worker.
func (b *breadth) crowded(w *worker) {
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
		if tick = nil; f.adjustBreadths() {
			tick = time.After(lookBreadth)
		}
	}
}

// adjustBreadths looks at every port that has asked; more: it is to be called again.
func (f *Forwarder) adjustBreadths() (more bool) {
	for _, p := range *f.portList.Load() {
		if b := p.breadth; b == nil || !b.asked.Load() {
			continue
		}
		f.control.Lock()
		if !f.stopped && slices.Contains(f.ports, p) && f.adjustBreadth(p) {
			more = true
		}
		f.control.Unlock()
	}
	return more
}

// adjustBreadth widens or narrows one port; false: it is narrow and quiet.
func (f *Forwarder) adjustBreadth(p *port) bool {
	b := p.breadth
	quiet := f.env.now().Unix()-b.busy.Load() >= int64(quietBreadth/time.Second)
	switch {
	case quiet && b.wide != nil:
		if err := f.narrow(p); err != nil {
			f.complain("a quiet pod keeps its wide ring", "device", p.spec.Device, err)
			return true
		}
	case !quiet && b.wide == nil:
		if err := f.widen(p); err != nil {
			f.complain("a busy pod gets no wide ring and may lose packets", "device", p.spec.Device, err)
		}
		return true
	case !quiet:
		return true
	}
	b.asked.Store(false)
	return false
}

// widen gives the port a wide ring. On an error it has its narrow one as before.
func (f *Forwarder) widen(p *port) error {
	b := p.breadth
	size := min(f.settings.PodBuffer-b.narrow, f.bufferLeft())
	if size < leastBreadth {
		return fmt.Errorf("limits.podBuffer %d and limits.totalBuffer %d leave %d bytes for it, it needs %d", f.settings.PodBuffer, f.settings.TotalBuffer, max(size, 0), leastBreadth)
	}
	slots := wideSlots(size)
	wide, err := f.env.openWide(b.socket, slots, int(size)-slots*wideSlotSize)
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
		b.polled = wide.FD()
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

// narrow gives the wide ring back. On an error the port keeps it.
func (f *Forwarder) narrow(p *port) error {
	b := p.breadth
	f.onWorker(p.worker, func(*worker) error { b.socket.Leave(); return nil })
	if err := b.socket.Choose(false); err != nil {
		f.onWorker(p.worker, func(*worker) error { b.socket.Adopt(b.wide); return nil })
		return err
	}
	f.onWorker(p.worker, func(w *worker) error {
		// Nothing is added any more. The bound is for a ring that cannot be read.
		for range mostSlots {
			if b.socket.Left() {
				break
			}
			w.begin()
			w.servePort(p, false)
			w.ledger.publish(&w.tally)
		}
		w.leaveWide(p)
		return nil
	})
	f.fds.remove(b.wide.FD())
	err := b.wide.Close()
	b.wide, b.size = nil, 0
	return err
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
