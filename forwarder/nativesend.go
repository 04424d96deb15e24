package forwarder

import (
	"syscall"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// Frames of one peer become bursts, bursts become sends. All of it is lent until
// the flush; a burst never waits for one more frame when the drain ends.

const (
	// nativeSpans bounds a burst's iovecs: cutting adds two a piece, and a message has 1024.
	nativeSpans  = 800
	nativeFrames = 512
	nativeBursts = 64   // of a batch
	nativeSide   = 2048 // bytes of headers that have no room in front of their packets
	nativeSends  = 16   // bursts of one sendmmsg
	nativeHeads  = native.MaxPieces * (native.UDPLen + 4)
)

// nativeWorker is a worker's part of the stream.
type nativeWorker struct {
	sock    ring.Socket
	tcp     *nativeTCP      // nil: no tcp carrier
	bursts  []nativeSending // of this batch: the first n
	n       int
	sends   *ring.Datagrams
	heads   [nativeSends][nativeHeads]byte // headers of pieces, then the directory
	holding []*nativeOut                   // that wait for a fence

	ins        []*nativeIn // by peerState.index
	buffers    *native.Buffers
	frame      native.Frame
	incomplete []*nativeStream // that wait for the rest of a burst
	fences     []nativeEvent   // to be answered when what came in front of them has left
}

// nativeBuffers is how many bursts a worker may have incomplete.
const nativeBuffers = 64

func newNativeWorker() *nativeWorker {
	return &nativeWorker{sends: ring.NewDatagrams(nativeSends, nativeSends*1024), buffers: native.NewBuffers(nativeBuffers),
		fences: make([]nativeEvent, 0, inboxMessages)}
}

// nativeOut is one worker's stream to one peer.
type nativeOut struct {
	peer       *peer
	way        *nativeWay             // by which frames go; nil: the encapsulation
	tag        uint16                 // of the first worker's stream
	offset     [nativeCarriers]uint32 // where in the stream of a carrier the next burst begins
	path       *UplinkPath            // of outer
	outer      native.Outer           // of the tcp carrier
	burst      int                    // that is open, if generation is the arena's
	open       bool
	generation uint32
	hold       nativeHold
}

// nativeSending is a burst that is being put together.
type nativeSending struct {
	out         *nativeOut
	way         *nativeWay
	first, last int32 // pieces
	spans       int
	ends        []uint16 // by frame that has begun: bytes up to its end
	bytes       int
	frames      int32 // that end in it
	inner       int32
	saved       int32 // bytes that the encapsulation would have cost
	side        []byte
	tos         uint8
	message     []byte // instead of frames
	placed      bool   // it has its place in the stream,
	start       uint32 // which begins here
}

// toNative puts f on its way to p as the stream does; false: it is to go by the encapsulation.
func (w *worker) toNative(f *frame, p *peer) bool {
	s := &p.state.native
	if !s.wanted.Load() && !s.wanted.Swap(true) {
		w.f.native.poke()
	}
	t := w.transmits[p.state.index]
	way := s.way.Load()
	o := t.native
	if o == nil || o.peer.state != p.state {
		if way == nil {
			return false
		}
		o = &nativeOut{}
		t.native = o
	}
	o.peer = p
	if way != o.way && !o.hold.on {
		w.changeNative(o, way)
	}
	switch {
	case o.hold.on:
		w.holdNative(o, f)
	case !w.passable(o):
		w.setWay(o, nil) // from here on the encapsulation is what a change has to wait for
		return false
	default:
		w.sendNative(o, f)
	}
	return true
}

// sendNative puts f into o's burst.
func (w *worker) sendNative(o *nativeOut, f *frame) {
	if f.p.Len+native.MaxHeader > o.way.room && packetSize(f)+native.MaxHeader > o.way.room {
		w.toStandard(f, o.peer) // no burst holds it: the underlay's MTU is nearly that of an IP packet
		return
	}
	if !f.v.IsGSO() || f.p.Len+native.MaxHeader <= o.way.room {
		w.appendNative(o, f, f.mem[:f.at], f.ip(), nil, f.v, true)
		return
	}
	if f.p.Proto != encap.ProtoTCP {
		w.segmentNative(o, f)
		return
	}
	// Two halves, each a superframe. The first keeps the headers where they are.
	ip, hlen := f.ip(), encap.HeaderLen(f.ip(), &f.p)
	half := (len(ip) - hlen) / 2 / int(f.v.GSOSize) * int(f.v.GSOSize)
	if hlen > encap.MaxHeaderLen || half == 0 {
		w.segmentNative(o, f)
		return
	}
	var second [encap.MaxHeaderLen]byte
	h := second[:copy(second[:hlen], ip)]
	v1 := encap.Part(ip[:hlen], hlen+half, &f.p, f.v, 0, false)
	v2 := encap.Part(h, len(ip)-half, &f.p, f.v, half, true)
	w.appendNative(o, f, f.mem[:f.at], ip[:hlen+half], nil, v1, false)
	w.appendNative(o, f, nil, h, ip[hlen+half:], v2, true)
}

// segmentNative cuts a superframe that no burst holds.
func (w *worker) segmentNative(o *nativeOut, f *frame) {
	s := &w.segments
	if fault := s.Init(f.ip(), &f.p, f.v); fault != encap.OK {
		w.drop(faultReason[fault])
		return
	}
	w.tally.segmented++
	var h [encap.MaxHeaderLen]byte
	for i, n := 0, s.Count(); i < n; i++ {
		payload, _ := s.Next(h[:])
		w.appendNative(o, f, nil, h[:s.HeaderLen()], payload, encap.Virtio{}, i == n-1)
	}
}

// appendNative puts one packet, ip and then payload, into o's burst; ends says
// that f ends with it. If there is a payload, ip is copied, else it is lent as the
// payload is; room is what may be overwritten in front of ip.
func (w *worker) appendNative(o *nativeOut, f *frame, room, ip, payload []byte, v encap.Virtio, ends bool) {
	w.makeRoom()
	size := len(ip) + len(payload)
	head := native.HeaderLen(v, &f.p)
	tos := encap.ECNEncap(f.p.TOS, w.live.copyDSCP)
	side := 0
	switch {
	case payload != nil:
		side = head + len(ip)
	case len(room) < head:
		side = head
	}
	b := w.openNativeBurst(o)
	if b == nil || b.tos != tos || b.bytes+head+size > o.way.room || b.spans+2 > nativeSpans || len(b.ends) == nativeFrames || len(b.side)+side > nativeSide {
		b = w.beginNative(o)
		b.tos = tos
	}
	span := func(x []byte) {
		b.last = w.arena.chain(b.last, x)
		if b.first < 0 {
			b.first = b.last
		}
		b.spans++
	}
	if side > 0 {
		at := len(b.side)
		b.side = b.side[:at+side]
		native.PutHeader(b.side[at:at+head], size, v, &f.p)
		if payload != nil {
			copy(b.side[at+head:], ip)
			ip = payload
		}
		span(b.side[at:])
		span(ip)
	} else {
		native.PutHeader(room, size, v, &f.p)
		span(f.mem[len(room)-head : len(room)+len(ip)])
	}
	b.bytes += head + size
	b.ends = append(b.ends, uint16(b.bytes))
	b.saved += int32(o.peer.header.Len() - head)
	if ends {
		b.frames++
		b.inner += int32(f.p.Len)
	}
}

// openNativeBurst is the burst that o's next frame may join, or nil.
func (w *worker) openNativeBurst(o *nativeOut) *nativeSending {
	if !o.open || o.generation != w.arena.generation {
		return nil
	}
	return &w.native.bursts[o.burst]
}

// beginNative begins a burst behind all that waits.
func (w *worker) beginNative(o *nativeOut) *nativeSending {
	n := w.native
	if n.n == nativeBursts {
		w.flush()
	}
	if n.n == len(n.bursts) {
		n.bursts = append(n.bursts, nativeSending{ends: make([]uint16, 0, nativeFrames), side: make([]byte, 0, nativeSide)})
	}
	b := &n.bursts[n.n]
	*b = nativeSending{out: o, way: o.way, first: -1, last: -1, ends: b.ends[:0], side: b.side[:0]}
	o.open, o.generation, o.burst = true, w.arena.generation, n.n
	n.n++
	return b
}

// flushNative sends all bursts, in the order in which they were begun.
func (w *worker) flushNative() {
	n := w.native
	for from, to := 0, 0; from < n.n; from = to {
		by := n.bursts[from].way.carrier
		for to = from + 1; to < n.n && n.bursts[to].way.carrier == by; to++ {
		}
		if by == native.TCP {
			w.flushTCP(from, to)
		} else {
			w.flushUDP(from, to)
		}
	}
	n.n = 0
}

// flushUDP sends bursts by the udp carrier.
func (w *worker) flushUDP(from, to int) {
	n := w.native
	for from < to {
		n.sends.Reset()
		k := 0
		for from+k < to && k < nativeSends && w.loadNative(&n.bursts[from+k], n.heads[k][:]) {
			k++
		}
		if k == 0 { // it cannot be: an empty batch takes any burst
			w.endNative(&n.bursts[from], DropSendFailed)
			from++
			continue
		}
		for at := 0; at < k; {
			sent, err := n.sock.Send(n.sends, at)
			for i := at; i < at+sent; i++ {
				w.endNative(&n.bursts[from+i], dropNone)
			}
			if at += sent; err == nil {
				break
			}
			b := &n.bursts[from+at]
			if err == syscall.EIO && b.out.peer.state.native.broken.CompareAndSwap(false, true) {
				w.f.switchedOff[switchUDPSegment].Add(1)
				w.f.log.Warn("the route to a peer refuses UDP_SEGMENT; the native stream to it stays off", "peer", b.out.peer.spec.Name)
			}
			w.endNative(b, w.sendReason(b.out.peer, err))
			at++
		}
		from += k
	}
}

// place gives a burst of so many bytes its place in its stream, once.
func (b *nativeSending) place(length int) {
	if o := &b.out.offset[carrierIndex(b.way.carrier)]; !b.placed {
		b.placed, b.start = true, *o
		*o += uint32(length)
	}
}

// loadNative cuts a burst into datagrams of one message; false: there is no room.
func (w *worker) loadNative(b *nativeSending, heads []byte) bool {
	d, size := w.native.sends, b.way.piece
	if b.message != nil {
		return d.Begin(&b.way.to, 0, 0) && d.Append(b.message)
	}
	pieces := native.Pieces(b.bytes, size)
	dirLen := native.DirectoryLen(pieces)
	length := b.bytes + 2*dirLen
	segment := 0
	if pieces > 1 {
		segment = size + native.UDPLen
	}
	if !d.Begin(&b.way.to, b.tos, segment) {
		return false
	}
	b.place(length)
	dir := heads[:dirLen]
	native.PutDirectory(dir, size, b.ends)
	heads = heads[dirLen:]
	at, left, ok := 0, 0, true // left: of the piece
	put := func(x []byte) {
		for len(x) > 0 {
			if left == 0 {
				h := heads[:native.UDPLen]
				heads = heads[native.UDPLen:]
				native.PutUDP(h, b.way.me.FirstTag+uint16(w.index), b.start, length, at)
				ok = ok && d.Append(h)
				left = size
			}
			k := min(left, len(x))
			ok = ok && d.Append(x[:k])
			x, at, left = x[k:], at+k, left-k
		}
	}
	put(dir)
	for i := b.first; i >= 0; i = w.arena.pieces[i].next {
		put(w.arena.pieces[i].b)
	}
	put(dir)
	if !ok {
		d.Drop()
		return false
	}
	return true
}

// endNative counts a burst that was sent, or dropped for a reason.
func (w *worker) endNative(b *nativeSending, why Reason) {
	p := b.out.peer
	a := &p.state.accounts[w.index]
	if why != dropNone {
		w.dropN(why, int(b.frames))
		a.drop(uint64(b.frames))
		return
	}
	w.tally.sends++
	if b.message != nil {
		return
	}
	c := &w.tally.forwarded[Wire][encapNative]
	c.packets += uint64(b.frames)
	c.bytes += uint64(b.inner)
	a.sent.add(uint64(b.frames), uint64(b.inner))
	s := &p.state.native.counts
	s.bursts.Add(1)
	s.frames.Add(uint64(b.frames))
	s.saved.Add(uint64(max(b.saved, 0)))
}
