package forwarder

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/beat"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table"
)

// Sizes of a worker's memory. A batch is what one drain of one port or socket
// gives; everything that it needs is taken from these and given back after.
const (
	batchFrames   = 64        // frames of one drain: more would let one port delay the others
	slabBytes     = 2 << 20   // what a drain reads: 31 superframes, or a batch of small packets
	scratchBytes  = 512 << 10 // headers of segments, fragments and answers
	inboxMessages = 64        // receive buffers of 64 KiB; a page is taken when it is first used
	pollEvents    = 64
)

// worker is one goroutine on one thread with its own epoll set, ports,
// sockets, memory and counters. Only its goroutine touches it; others hand it
// functions (do), and read what it publishes for them.
type worker struct {
	f     *Forwarder
	index int

	// It waits,
	poller    *ring.Poller
	attention attention
	standing  standing
	stay      stay
	alarms    alarms // of ports whose pods have a bound
	blockable int    // ports whose ring the kernel can block
	unblocked int64  // ms since start when they were last looked at
	lookAt    int64  // ms since start when they are looked at in any case
	lively    bool   // frames came since
	stopping  bool
	done      chan struct{}
	commands  struct {
		sync.Mutex
		list    []command
		waiting atomic.Bool
	}

	// reads from these,
	ports  []*port // by index, without the host's queue
	host   *port
	lanes  []*lane // by endpoint index
	native *nativeWorker
	uring  *ring.Uring // by which TUN queues are read and written; nil: a system call each
	slab   *ring.Slab  // what is read from ports; reset for each drain
	inbox  *ring.Inbox
	frames [batchFrames]ring.Frame

	// judges by these, as they are at the batch's begin,
	view    *table.View[hop]
	network *table.Network[hop]
	live    *live
	now     int64       // Unix seconds
	nanos   int64       // monotonic, the same moment
	flows   *flowMemory // the forwarder's

	// a packet at a time,
	frame     frame                          // the one in hand
	answer    frame                          // ours to it
	question  [encap.NeighbourAdvertLen]byte // that asks a pod for its MAC
	limiter   answerLimiter
	segments  encap.Segments
	assembled []byte // a datagram that fragment.go puts together; made when it is first needed
	onError   func(*ring.SocketError)

	// gathers what leaves,
	scratch   *ring.Slab // headers; reset after each flush
	arena     arena
	merges    merges
	transmits []*transmit // by peerState.index
	outboxes  []*outbox   // by port.index
	hostboxes []*outbox   // by the host queue's worker
	egresses  []*egress   // with something to flush
	boxes     []*outbox   // with something to flush

	// hands it to the kernel,
	datagrams   *ring.Datagrams
	replays     *ring.Datagrams
	packets     *ring.Packets
	loaded      [maxMessages]int32  // which run or delivery each message is
	tunnel      tunnel              // queue of the TAP for whole superframes; nil: none
	superframes [wholeAtOnce][]byte // of one write to it
	refusals    [wholeAtOnce]syscall.Errno
	spare       []byte // headers of segments that are sent outside the arena

	// and counts, and shows, what became of it.
	tally    tally
	ledger   ledger
	progress atomic.Uint64 // turns of the loop: for the watchdog
	asleep   atomic.Bool   // waiting for packets
	taps     *taps         // that show this batch; nil: none
	tapsAt   *atomicTaps   // where they stand
	tapped   tapping
}

type command struct {
	fn   func(*worker) error
	done chan error
}

// live is what workers read of the settings; replaced as a whole by a reload.
type live struct {
	copyDSCP, clampMSS bool
	podMTU             int
	self4, self6       netip.Addr // the host's addresses among pods: the source of ICMP errors
}

func newWorker(f *Forwarder, index int) (*worker, error) {
	p, err := ring.NewPoller()
	if err != nil {
		return nil, err
	}
	w := &worker{f: f, index: index, tapsAt: &f.taps, flows: f.flows, poller: p, done: make(chan struct{}),
		slab: ring.NewSlab(slabBytes), scratch: ring.NewSlab(scratchBytes), inbox: ring.NewInbox(inboxMessages, 65535),
		datagrams: ring.NewDatagrams(maxMessages, maxIovecs), replays: ring.NewDatagrams(maxRunSegments, 3*maxRunSegments), packets: ring.NewPackets(maxMessages, maxIovecs),
		arena: newArena(), merges: newMerges(), spare: make([]byte, maxRunSegments*spareHeader)}
	w.onError = w.socketError
	return w, nil
}

// Tokens of the poller say what became ready.
const (
	tokenPort = iota << 32
	tokenHost
	tokenLane
	tokenNative
	tokenNativeTCP
	tokenKind = 0xff << 32
)

// laneToken numbers a lane's sockets: receiving ones first.
func laneToken(endpoint, socket int) uint64 {
	return tokenLane | uint64(endpoint)<<8 | uint64(socket)
}

// run is the worker's loop. Each ready source is drained once a turn, a batch
// at most, so that no source starves another; what is left shows again at the
// next wait, as epoll is level triggered.
func (w *worker) run() {
	w.lockThread()
	defer close(w.done)
	events := make([]ring.Event, pollEvents)
	w.attention.used = w.f.use.polling
	if w.standing.used = w.f.use.priority; w.standing.used {
		w.take(ring.PriorityFirst)
	}
	limit := 0 // ms that may pass until something other than a packet is due
	for !w.stopping {
		if w.commands.waiting.Load() {
			w.obey()
			limit = 0 // it may have brought a ring to look after, or an alarm
			continue
		}
		n, err := w.next(events, limit)
		w.progress.Add(1)
		if err != nil {
			w.f.log.Error("waiting for packets failed", "worker", w.index, "error", err)
			time.Sleep(time.Second)
			continue
		}
		for i := range events[:n] {
			w.serve(&events[i])
		}
		if n > 0 {
			w.attention.turned(w.clock())
		}
		if w.uring.Err() != nil {
			w.leaveUring()
		}
		if limit = -1; w.blockable > 0 {
			limit = w.unblock(n > 0)
		}
		if len(w.alarms) > 0 {
			limit = w.serveAlarms(limit)
		}
		if w.native != nil {
			limit = w.nativeTimers(limit)
		}
		w.judgeStanding()
		w.renew()
	}
	if w.native != nil {
		w.stopNative()
	}
}

// unblockEvery is how often, in ms, rings that the kernel can block are looked at where frames
// came lately. Where none did, once a beat.
const unblockEvery = 1000

// unblock repairs rings that a frame which no virtio header can express has
// blocked for good (see ring.PacketSocket.Unblock). It returns how many ms may pass
// until the next look. busy says that frames came.
func (w *worker) unblock(busy bool) (limit int) {
	w.lively = w.lively || busy
	now, due := time.Since(w.f.started).Milliseconds(), w.lookAt
	if w.lively {
		due = min(due, w.unblocked+unblockEvery)
	}
	if now < due {
		return int(due - now)
	}
	limit = int(beat.Next(beat.Period).Milliseconds()) + 1
	w.unblocked, w.lookAt, w.lively = now, now+int64(limit), false
	for _, p := range w.ports {
		if p == nil || p.unblock == nil {
			continue
		}
		if was, err := p.unblock(); was || err != nil {
			w.f.complain("a pod's ring was blocked by a frame that has no virtio header, and was made anew", "device", p.spec.Device, err)
			if b := p.breadth; err != nil && b != nil && b.polled != 0 {
				// A wide ring that could not be made anew would be ready for ever. The keeper gives it back.
				w.poller.Delete(b.polled)
				b.polled = 0
				b.broken.Store(true)
				w.f.keeper.poke()
			}
		}
	}
	return limit
}

// useUring lets u read and write TUN queues; nil: none does.
func (w *worker) useUring(u *ring.Uring) {
	w.uring = u
	w.slab.BatchReads(u)
	w.packets.BatchWrites(u)
	if w.tunnel != nil {
		w.tunnel.BatchWrites(u)
	}
}

// leaveUring goes on without a ring that the kernel serves no more; nothing is lost with it.
func (w *worker) leaveUring() {
	w.f.batching.Add(-1)
	w.f.switchedOff[switchTUNBatch].Add(1)
	w.f.log.Warn("the kernel refused to read or write many packets of a TUN at once; doing it one by one", "worker", w.index, "error", w.uring.Err())
	w.f.fds.remove(w.uring.FD())
	u := w.uring
	w.useUring(nil)
	_ = u.Close()
}

// serve handles one ready source: a batch from end to end.
func (w *worker) serve(e *ring.Event) {
	w.begin()
	switch index := e.Token & 0xffffffff; e.Token & tokenKind {
	case tokenPort:
		if p := w.ports[index]; p != nil {
			w.servePort(p, e.Error())
		}
	case tokenHost:
		w.servePort(w.host, e.Error())
	case tokenLane:
		if l := w.lanes[index>>8]; l != nil {
			w.serveLane(l, int(index&0xff), e.Readable(), e.Error())
		}
	case tokenNative:
		w.serveNative(e.Readable(), e.Error())
	case tokenNativeTCP:
		w.serveTCP(e.Error())
	}
	w.tally.tunBatches += w.uring.TakeCalls()
	w.tally.batches.note(w.tally.received[Pod] + w.tally.received[Host] + w.tally.received[Wire])
	w.ledger.publish(&w.tally)
}

// begin takes the table and the time once for the batch.
func (w *worker) begin() {
	w.view = w.f.table.Load()
	w.network = w.view.Network(w.f.vni)
	w.live = w.f.live.Load()
	now := w.f.env.now()
	w.now, w.nanos = now.Unix(), now.Sub(w.f.started).Nanoseconds()
	if w.taps = w.tapsAt.Load(); w.taps != nil {
		w.tapped.hand, w.tapped.wall = nil, now.UnixNano()
	}
}

// servePort drains a port once; failed says that its descriptor has an error.
func (w *worker) servePort(p *port, failed bool) {
	if failed {
		// A device that went down says so once; frames come again when it is up.
		if err := p.io.TakeError(); err == syscall.ENODEV || err == syscall.EBADFD {
			w.lost(p, err)
			return
		}
	}
	w.slab.Reset()
	var n int
	var err error
	if p.throttle == nil {
		n, err = p.io.Read(w.slab, w.frames[:])
	} else {
		n, err = w.readThrottled(p)
	}
	if err != nil {
		w.lost(p, err)
		return
	}
	if n == 0 {
		p.io.Release() // of a block in which there was nothing for us
		return
	}
	w.outbound(p, w.frames[:n])
	w.flush()
	p.io.Release()
	if p.breadth != nil {
		p.breadth.took(w, n)
	}
}

// lost takes a port whose device has gone out of the poller, or it would be
// ready for ever. Detach closes it.
func (w *worker) lost(p *port, err error) {
	if err == syscall.EIO || err == syscall.ENETDOWN {
		return // a TUN that is down; it comes back
	}
	w.f.log.Warn("a port cannot be read any more: its device has gone", "device", p.spec.Device, "container", p.spec.Container, "error", err)
	w.unpoll(p)
	p.lost.Store(true)
}

// serveLane receives once from the lane's socket i; got is how many receive buffers that filled.
func (w *worker) serveLane(l *lane, i int, readable, failed bool) (got int) {
	s := l.sockets[i]
	if failed {
		w.drainErrors(s)
	}
	if i >= l.receiving || !readable {
		return 0
	}
	got, err := s.Recv(w.inbox)
	switch {
	case err != nil:
		w.drainErrors(s)
		return 0
	case got == 0:
		return 0
	}
	w.inbound(l, got)
	w.flush()
	return got
}

// flush hands everything in hand to the kernel; after it nothing that was
// lent is referred to any more.
func (w *worker) flush() {
	if w.native != nil {
		w.flushNative()
	}
	for _, e := range w.egresses {
		w.flushEgress(e)
	}
	w.egresses = w.egresses[:0]
	for _, b := range w.boxes {
		w.flushOutbox(b)
	}
	w.boxes = w.boxes[:0]
	w.arena.reset()
	w.scratch.Reset()
	if w.native != nil {
		w.flushedNative()
	}
}

// alloc gives n bytes of scratch; what is in hand may be flushed for it.
func (w *worker) alloc(n int) []byte {
	b := w.scratch.Alloc(n)
	if b == nil {
		w.flush()
		b = w.scratch.Alloc(n)
	}
	return b
}

// do runs fn on the worker's goroutine between two batches and waits for it.
// Before the worker runs, and after it stopped, fn runs here.
func (w *worker) do(fn func(*worker) error) error {
	if !w.f.running.Load() {
		return fn(w)
	}
	return <-w.ask(fn)
}

// ask is do without the wait.
func (w *worker) ask(fn func(*worker) error) (done <-chan error) {
	c := command{fn, make(chan error, 1)}
	w.commands.Lock()
	w.commands.list = append(w.commands.list, c)
	w.commands.waiting.Store(true)
	w.commands.Unlock()
	w.poller.Wake()
	return c.done
}

func (w *worker) obey() {
	w.commands.Lock()
	list := w.commands.list
	w.commands.list = nil
	w.commands.waiting.Store(false)
	w.commands.Unlock()
	for _, c := range list {
		c.done <- c.fn(w)
	}
}

// addPort makes the worker read p. On the worker.
func (w *worker) addPort(p *port) error {
	for len(w.ports) <= p.index {
		w.ports = append(w.ports, nil)
	}
	w.ports[p.index] = p
	if p.unblock != nil {
		w.blockable++
	}
	if err := w.poller.Add(p.io.FD(), tokenPort|uint64(p.index)); err != nil {
		w.removePort(p)
		return err
	}
	return nil
}

func (w *worker) removePort(p *port) {
	w.alarms.forget(p)
	w.unpoll(p)
	if w.ports[p.index] = nil; p.unblock != nil {
		w.blockable--
	}
}

func (w *worker) addLane(index int, l *lane) error {
	for len(w.lanes) <= index {
		w.lanes = append(w.lanes, nil)
	}
	for i, s := range l.sockets {
		if err := w.poller.Add(s.FD(), laneToken(index, i)); err != nil {
			return fmt.Errorf("poll the sockets of %s: %w", l.key, err)
		}
	}
	w.lanes[index] = l
	return nil
}

func (w *worker) growTransmits(n int) {
	for len(w.transmits) < n {
		w.transmits = append(w.transmits, newTransmit(w.f.settings.SourcePorts))
	}
}

func (w *worker) growOutboxes(n int) {
	for len(w.outboxes) < n {
		w.outboxes = append(w.outboxes, &outbox{})
	}
}

// drop ends the frame in hand.
func (w *worker) drop(r Reason) {
	if !w.frame.judged { // junk takes a worker's time as well
		w.standing.loose++
	}
	w.reject(r, 1)
	w.dropN(r, 1)
	if w.taps != nil {
		w.tapDrop(r)
	}
}

// reject notes why frames in hand end, for the account of the peer that sent them.
func (w *worker) reject(r Reason, n int) {
	if reasonText[r].rejects {
		w.tally.rejected += uint64(n)
		w.tally.why = r
	}
}

// dropN counts frames that end elsewhere than in hand.
func (w *worker) dropN(r Reason, n int) {
	w.tally.dropped[r] += uint64(n)
	w.tally.lost += uint64(n)
}
