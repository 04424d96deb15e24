package forwarder

import (
	"syscall"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// What leaves for a peer goes through here: frames become datagrams, datagrams
// of one peer, source port, TOS and size become a run, which is one send with
// UDP_SEGMENT, and all runs of a socket go out in few sendmmsg.
//
//	frame ─▶ append ─▶ run (open) ─┬─▶ egress (a socket's runs, in order) ─▶ sendmmsg
//	                   run (closed)┘
//
// Order: datagrams of a flow have one socket, a socket's runs leave in the order
// in which they were begun, and a flow's datagram joins no run in front of the
// one with the flow's last.

const (
	maxRunSegments = 128
	// maxRunBytes: IP_MAX_MTU is 65,520 (net/ipv4/ip_output.c), less IP and UDP headers.
	maxRunBytes = 65400
	maxMessages = 256
	maxIovecs   = 4096

	arenaPieces = 4096
	arenaRuns   = 1024
)

// piece is a span of lent bytes in a list.
type piece struct {
	b    []byte
	next int32
}

// run is consecutive datagrams to one peer, equal in size but for a shorter
// last one. With count 1 it is a plain datagram.
type run struct {
	peer        *peer
	first, last int32 // pieces
	next        int32 // run of the same egress
	count       int32 // datagrams
	bytes       int32
	segment     int32 // bytes of every datagram but the last
	tos         uint8
	closed      bool
	continues   bool  // its first frame began in the run before
	unfinished  bool  // its last frame ends in the run after
	frames      int32 // frames that end in it
	inner       int32 // bytes of these frames' IP packets

	flow       uint32       // of the packet that began it
	superframe []byte       // a superframe for the TAP, from its virtio header on; else nil
	at         int32        // where in superframe the inner packet begins
	v          encap.Virtio // the inner packet's
}

// arena is where a batch's runs, deliveries and their pieces stand.
type arena struct {
	pieces     []piece
	runs       []run
	deliveries []delivery
	generation uint32 // of reset: tells whether an index is of this batch
}

func newArena() arena {
	return arena{pieces: make([]piece, 0, arenaPieces), runs: make([]run, 0, arenaRuns), deliveries: make([]delivery, 0, arenaRuns), generation: 1}
}

func (a *arena) reset() {
	a.pieces, a.runs, a.deliveries = a.pieces[:0], a.runs[:0], a.deliveries[:0]
	if a.generation++; a.generation == 0 {
		a.generation = 1 // 0 is that of a source that was never used
	}
}

// chain appends b to the list that ends at last (-1: a new list); it returns b's place.
func (a *arena) chain(last int32, b []byte) int32 {
	i := int32(len(a.pieces))
	a.pieces = append(a.pieces, piece{b, -1})
	if last >= 0 {
		a.pieces[last].next = i
	}
	return i
}

// makeRoom makes sure that one more datagram or write fits the arena. Call it
// before scratch is taken: a flush gives scratch back.
func (w *worker) makeRoom() {
	a := &w.arena
	if cap(a.pieces)-len(a.pieces) < 4 || cap(a.runs)-len(a.runs) < 2 || cap(a.deliveries)-len(a.deliveries) < 2 {
		w.flush()
	}
}

// egress is a socket and the runs that wait to leave by it, in order.
type egress struct {
	sock        ring.Socket
	index       int // in its lane
	first, last int32
	queued      bool
	broken      bool // the frame that the next run with `continues` goes on with has lost a piece
}

func newEgress(s ring.Socket, index int) *egress {
	return &egress{sock: s, index: index, first: -1, last: -1}
}

// transmit is one worker's way to one peer.
type transmit struct {
	sources    []source // one a socket of the lane
	native     *nativeOut
	unfinished bool  // the last datagram did not end its frame, which goes on in
	current    int32 // this run
}

// source is what leaves for a peer by one socket. Several runs are open side by
// side, one for each size, as flows that mix sizes would else end each other's
// runs. A flow's datagram never joins a run that leaves before the flow's last
// one; flows that share a bucket only wait for each other.
type source struct {
	generation uint32 // of the arena; another one: nothing below is of this batch
	n          int
	open       [openRuns]int32
	last       [flowBuckets]int32 // the latest run with a datagram of the flow, plus 1
	outer      wholeHeader        // of superframes that leave whole
}

const (
	openRuns    = 8
	flowBuckets = 64
)

// newTransmit has room for the sockets of any lane.
func newTransmit(sourcePorts int) *transmit {
	return &transmit{sources: make([]source, max(sourcePorts, laneInner6+1))}
}

// used reports whether anything has left by this socket, for the peer or one whose place it has.
func (s *source) used() bool { return s.generation != 0 }

// at is the state of a socket for this batch.
func (t *transmit) at(e *egress, a *arena) *source {
	s := &t.sources[e.index]
	if s.generation != a.generation {
		s.generation, s.n, s.last = a.generation, 0, [flowBuckets]int32{}
	}
	return s
}

// egressOf is the socket by which a flow leaves for p: always the same one.
func (w *worker) egressOf(p *peer, pkt *encap.Packet) *egress {
	l := w.lanes[p.endpoint]
	switch {
	case p.kind == encap.KindIPIP && pkt.Version == 6:
		return l.egress[laneInner6]
	case p.kind == encap.KindIPIP || len(l.egress) == 1:
		return l.egress[0]
	}
	return l.egress[int(pkt.Hash>>16)%len(l.egress)]
}

// transmit encapsulates a frame that is one packet: the header goes into the
// room in front of it.
func (w *worker) transmit(f *frame, p *peer) {
	w.makeRoom()
	encap.Complete(f.ip(), &f.p, &f.v)
	at := f.at - p.header.Len()
	p.header.Put(f.mem[at:], f.p.Version == 6)
	w.append(p, w.egressOf(p, &f.p), f, f.mem[at:], nil, true)
}

// transmitSegments cuts a superframe: each segment gets headers of its own in
// scratch, its payload stays where it is.
func (w *worker) transmitSegments(f *frame, p *peer) {
	s := &w.segments
	if fault := s.Init(f.ip(), &f.p, f.v); fault != encap.OK {
		w.drop(faultReason[fault])
		return
	}
	w.tally.segmented++
	e, room := w.egressOf(p, &f.p), p.header.Len()
	for i, n := 0, s.Count(); i < n; i++ {
		w.makeRoom()
		b := w.alloc(room + s.HeaderLen())
		p.header.Put(b, f.p.Version == 6)
		payload, _ := s.Next(b[room:])
		w.append(p, e, f, b, payload, i == n-1)
	}
}

// append puts one datagram (head, then payload) on its way; ends says that f
// ends with it. The bytes are lent until the flush.
func (w *worker) append(p *peer, e *egress, f *frame, head, payload []byte, ends bool) {
	a, t := &w.arena, w.transmits[p.state.index]
	tos := encap.ECNEncap(f.p.TOS, w.live.copyDSCP)
	size := int32(len(head) + len(payload))
	r := w.findRun(t, t.at(e, a), f.p.Hash, size, tos)
	if r == nil {
		r = w.beginRun(p, e, f.p.Hash, tos)
		r.segment = size
		r.closed = !w.f.use.udpSegment || p.kind == encap.KindIPIP || p.state.noSegment.Load()
		r.continues = t.unfinished
	}
	for _, b := range [2][]byte{head, payload} {
		if len(b) == 0 {
			continue
		}
		r.last = a.chain(r.last, b)
		if r.first < 0 {
			r.first = r.last
		}
	}
	r.count++
	r.bytes += size
	r.closed = r.closed || size < r.segment
	r.unfinished, t.unfinished = !ends, !ends
	if ends {
		r.frames++
		r.inner += int32(f.p.Len)
	}
}

// findRun is the earliest open run that a datagram may join, or nil. The last,
// shorter segment of a superframe ends the run of the others; a short packet of
// its own would only spoil the run for those that fit.
func (w *worker) findRun(t *transmit, s *source, flow uint32, size int32, tos uint8) *run {
	a := &w.arena
	fits := func(r *run) bool {
		return !r.closed && r.tos == tos && r.bytes+size <= maxRunBytes && r.count < w.f.use.maxSegments
	}
	if t.unfinished && s.n > 0 {
		if r := &a.runs[t.current]; size <= r.segment && fits(r) {
			return r
		}
		return nil
	}
	last := &s.last[flow%flowBuckets]
	for _, i := range s.open[:s.n] {
		if r := &a.runs[i]; i+1 >= *last && size == r.segment && fits(r) {
			*last, t.current = i+1, i
			return r
		}
	}
	return nil
}

// beginRun begins a run behind all that waits for a socket.
func (w *worker) beginRun(p *peer, e *egress, flow uint32, tos uint8) *run {
	a, t := &w.arena, w.transmits[p.state.index]
	s := t.at(e, a)
	i := int32(len(a.runs))
	a.runs = append(a.runs, run{peer: p, first: -1, last: -1, next: -1, tos: tos, flow: flow})
	if s.n == openRuns {
		s.n = copy(s.open[:], s.open[1:])
	}
	s.open[s.n] = i
	s.n++
	s.last[flow%flowBuckets], t.current = i+1, i
	if !e.queued {
		e.queued, e.first = true, i
		w.egresses = append(w.egresses, e)
	} else {
		a.runs[e.last].next = i
	}
	e.last = i
	return &a.runs[i]
}

// join lets single shorter datagrams ride at the end of the run in front of
// them: nothing else can follow there any more.
func (w *worker) join(e *egress) {
	a := &w.arena
	for i := e.first; i >= 0; i = a.runs[i].next {
		r := &a.runs[i]
		if r.closed || r.superframe != nil || r.next < 0 {
			continue
		}
		n := &a.runs[r.next]
		if n.superframe != nil || n.count != 1 || n.continues || n.unfinished || n.peer != r.peer || n.tos != r.tos || n.segment >= r.segment ||
			r.bytes+n.bytes > maxRunBytes || r.count >= w.f.use.maxSegments {
			continue
		}
		a.pieces[r.last].next, r.last = n.first, n.last
		r.count++
		r.bytes += n.bytes
		r.frames += n.frames
		r.inner += n.inner
		r.closed, r.next = true, n.next
	}
}

// flushEgress sends all that waits for a socket.
func (w *worker) flushEgress(e *egress) {
	d, a := w.datagrams, &w.arena
	w.join(e)
	for next := e.first; next >= 0; {
		if a.runs[next].superframe != nil {
			next = w.sendWhole(e, next)
			continue
		}
		d.Reset()
		n := 0
		for next >= 0 && n < len(w.loaded) && a.runs[next].superframe == nil && load(d, a, &a.runs[next]) {
			w.loaded[n] = next
			n++
			next = a.runs[next].next
		}
		w.send(e, w.loaded[:n])
	}
	e.queued, e.first, e.last = false, -1, -1
}

// load makes a run one message of d; false: d is full.
func load(d *ring.Datagrams, a *arena, r *run) bool {
	segment := 0
	if r.count > 1 {
		segment = int(r.segment)
	}
	if !d.Begin(&r.peer.to, r.tos, segment) {
		return false
	}
	for i := r.first; i >= 0; i = a.pieces[i].next {
		if !d.Append(a.pieces[i].b) {
			d.Drop()
			return false
		}
	}
	return true
}

// send sends the loaded runs; what the kernel does not take is dropped by
// name, or sent again in a way that the kernel does take.
func (w *worker) send(e *egress, loaded []int32) {
	for from := 0; from < len(loaded); {
		n, err := e.sock.Send(w.datagrams, from)
		for _, i := range loaded[from : from+n] {
			w.sent(e, &w.arena.runs[i])
		}
		from += n
		if err == nil {
			return
		}
		r := &w.arena.runs[loaded[from]]
		from++
		switch {
		case r.count > 1 && w.runRefused(r.peer, err):
			w.replay(e, r)
		default:
			reason := w.sendReason(r.peer, err)
			w.unsent(e, r, reason)
			for ; reason == DropSendFull && from < len(loaded); from++ {
				w.unsent(e, &w.arena.runs[loaded[from]], reason)
			}
		}
	}
}

// runRefused tells whether an error is about a run as such, so that its datagrams
// may pass one by one. EIO is of the route and remembered; no buffer (ENOBUFS,
// ENOMEM) may be none for so long a one, or none at all, which the first datagram
// tells. Of a run that is too long for the device the kernel does not say for how
// much; of a datagram it does (socketError).
func (w *worker) runRefused(p *peer, err error) bool {
	switch err {
	case syscall.EIO:
		if p.state.noSegment.CompareAndSwap(false, true) {
			w.f.switchedOff[switchUDPSegment].Add(1)
			w.f.log.Warn("the route to a peer refuses UDP_SEGMENT; sending datagrams one by one", "peer", p.spec.Name)
		}
		return true
	case syscall.EINVAL, syscall.EOPNOTSUPP, syscall.EMSGSIZE:
		return true
	}
	return noBuffers(err)
}

func noBuffers(err error) bool { return err == syscall.ENOBUFS || err == syscall.ENOMEM }

func (w *worker) sendReason(p *peer, err error) Reason {
	switch err {
	case syscall.EAGAIN:
		return DropSendFull
	case syscall.ENOBUFS, syscall.ENOMEM:
		return DropSendNoBuffers
	case syscall.EPERM, syscall.EACCES:
		return DropSendRefused
	case syscall.EMSGSIZE:
		return DropUnderlayMTU
	case syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ECONNREFUSED, syscall.ENETDOWN:
		return DropUnderlayUnreachable
	}
	if p.state.said.again(w.now) {
		w.f.log.Warn("sending to a peer failed", "peer", p.spec.Name, "error", err)
	}
	return DropSendFailed
}

// sent counts a run that left.
func (w *worker) sent(e *egress, r *run) {
	frames := uint64(r.frames)
	if e.broken && r.continues && frames > 0 {
		// The frame that ends here first has lost a piece on its way.
		w.lose(r, 1, DropSendFailed)
		frames--
		e.broken = false
	}
	w.tally.sends++
	w.tally.datagrams += uint64(r.count)
	w.tally.runSizes.note(uint64(r.count))
	if r.count > 1 {
		w.tally.runs++
	}
	c := &w.tally.forwarded[Wire][r.peer.kind]
	c.packets += frames
	c.bytes += uint64(r.inner)
	r.peer.state.accounts[w.index].sent.add(frames, uint64(r.inner))
}

// unsent drops a run's frames.
func (w *worker) unsent(e *egress, r *run, reason Reason) {
	w.lose(r, int(r.frames), reason)
	if w.taps != nil {
		w.tapRun(r, reason)
	}
	// Runs of other sizes may stand between this one and the one in which its last frame ends.
	e.broken = r.unfinished || e.broken && !r.continues
}

func (w *worker) lose(r *run, frames int, reason Reason) {
	w.dropN(reason, frames)
	r.peer.state.accounts[w.index].drop(uint64(frames))
}

// replay sends a run that UDP_SEGMENT was refused for datagram by datagram, until
// the kernel has no buffers.
func (w *worker) replay(e *egress, r *run) {
	d, a := w.replays, &w.arena
	passed, failed, why, out := 0, 0, dropNone, false
	for i := r.first; i >= 0; {
		d.Reset()
		for i >= 0 {
			if !d.Begin(&r.peer.to, r.tos, 0) {
				break
			}
			for size := 0; i >= 0 && size < int(r.segment); i = a.pieces[i].next {
				d.Append(a.pieces[i].b)
				size += len(a.pieces[i].b)
			}
		}
		for from := 0; from < d.Len(); {
			if out {
				failed += d.Len() - from
				break
			}
			n, err := e.sock.Send(d, from)
			from += n
			passed += n
			if err == nil {
				break
			}
			from++
			failed++
			why, out = w.sendReason(r.peer, err), noBuffers(err)
		}
	}
	if passed == 0 {
		w.unsent(e, r, why)
		return
	}
	// Which frames the lost datagrams were of is not known any more: as many
	// as were lost, at most all.
	lost := min(failed, int(r.frames))
	if lost > 0 {
		w.lose(r, lost, why)
		r.frames -= int32(lost)
	}
	w.sent(e, r)
}
