package forwarder

import (
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// nativeExpire is how long the rest of a burst is waited for.
const nativeExpire = 5 * time.Millisecond

// nativeStands is how long all that comes of a stream may have come before, or too late: what is late for longer is no underlay's doing,
// but where the stream was thought to be was a forger's word.
const nativeStands = time.Second

// nativeIn is what a worker receives from one peer. It is made anew when the peer is another one.
type nativeIn struct {
	from    *nativePeer
	streams [nativeCarriers][]*nativeStream // by tag
}

// nativeStream is one stream of a peer.
type nativeStream struct {
	native.Stream
	peer  *peer
	since int64 // nanoseconds, when its last piece came
	moved int64 // nanoseconds, when it last went on
	noted bool  // it stands among the incomplete
}

// serveNative receives once from the stream's socket.
func (w *worker) serveNative(readable, failed bool) {
	n := w.native
	if failed {
		w.drainErrors(n.sock)
	}
	if !readable {
		return
	}
	got, err := n.sock.Recv(w.inbox)
	if err != nil {
		w.drainErrors(n.sock)
		return
	}
	for i := range got {
		d := w.inbox.Datagram(i)
		if w.taps != nil {
			w.tapped.hand, w.tapped.outer, w.tapped.key = nil, d, endpointKey{encap.KindUDP, w.f.tunnelPorts.native}
		}
		h := w.view.Peer(d.From.Addr())
		switch {
		case h == nil:
			w.stranger(DropUnknownPeer, d)
		case d.Truncated:
			w.tally.received[Wire]++
			w.frame.judged = false
			w.drop(DropTruncated)
		default:
			before := w.taken()
			w.credit(h.peer, before, w.nativeDatagrams(h.peer, d))
		}
	}
	if got > 0 {
		w.flush()
	}
}

// nativeDatagrams takes a run of datagrams from p. Neighbouring pieces of a burst
// become one: their bytes are moved over the headers between them.
func (w *worker) nativeDatagrams(p *peer, d ring.Datagram) (bytes int) {
	b, segment := d.Data, d.Segment
	if segment <= 0 {
		segment = len(b)
	}
	var run native.Piece
	var wire []byte // run as it came: its first header, and the bytes of all
	have := false
	for len(b) > 0 {
		k := min(segment, len(b))
		came := b[:k:k]
		pc, ok := native.ParseUDP(came)
		b = b[k:]
		switch {
		case !ok:
			w.refuseNative(p, DropNativeBad, came)
		case pc.Length == 0:
			if have { // a fence ends the wait for more of a burst, so that what is here has to be in it
				bytes += w.nativePiece(p, run, native.UDP, wire)
				have = false
			}
			bytes += w.nativeMessage(p, pc.Data, native.UDP, came)
		case have && pc.Start == run.Start && pc.Tag == run.Tag && pc.Length == run.Length && pc.Offset == run.Offset+len(run.Data):
			// It lies behind run's bytes in the same buffer: the slice grows over it.
			wire = append(wire, pc.Data...)
			run.Data = wire[native.UDPLen:]
		default:
			if have {
				bytes += w.nativePiece(p, run, native.UDP, wire)
			}
			run, have = pc, true
			run.TOS = d.TOS
			wire = d.Data[len(d.Data)-len(b)-k : len(d.Data)-len(b)]
		}
	}
	if have {
		bytes += w.nativePiece(p, run, native.UDP, wire)
	}
	return bytes
}

// nativeMessage takes a message, that came in wire; it is no frame, and counts as none. It returns the bytes of frames that it lets go.
func (w *worker) nativeMessage(p *peer, b []byte, by native.Carrier, wire []byte) (bytes int) {
	m, ok := native.ParseMessage(b)
	if !ok {
		w.refuseNative(p, DropNativeBad, wire)
		return 0
	}
	switch m.Kind {
	case native.Fence:
		return w.fences(nativeEvent{p, m, by})
	case native.Hello, native.Welcome, native.Passed:
		by = 0 // asked and answered in plain datagrams
	}
	w.f.native.post(nativeEvent{p, m, by})
	return 0
}

// fences notes one that is to be answered when all in front of it has left. No more comes of a burst of its stream that is
// open: what there is of it is handed on now. The streams of the peer's other workers go on as they are.
func (w *worker) fences(e nativeEvent) (bytes int) {
	n := w.native
	if i := e.peer.state.index; i < len(n.ins) && n.ins[i] != nil && n.ins[i].from.first == e.m.FirstTag {
		for _, streams := range n.ins[i].streams {
			if k := fenceWorker(e.m.Nonce); k < len(streams) && streams[k] != nil && streams[k].Incomplete() {
				bytes += w.finishNative(streams[k])
			}
		}
	}
	if len(n.fences) == cap(n.fences) {
		w.flush()
	}
	n.fences = append(n.fences, e)
	return bytes
}

// fenced reports whether what came by the encapsulation is a fence, and notes it; bytes are of frames that it lets go.
func (w *worker) fenced(p *peer, b []byte) (is bool, bytes int) {
	at := p.header.Len()
	if p.kind == encap.KindIPIP {
		at = int(b[0]&15) * 4
	}
	if len(b) < at {
		return false, 0
	}
	m, ok := native.ParseMessage(b[at:])
	if !ok || m.Kind != native.Fence {
		return false, 0
	}
	return true, w.fences(nativeEvent{p, m, 0})
}

// refuseNative drops a piece, that came as wire: captures and the worker's standing take it for the frame in hand otherwise.
func (w *worker) refuseNative(p *peer, r Reason, wire []byte) {
	w.tally.received[Wire]++
	w.frame.judged = false
	if w.taps != nil {
		w.tapped.hand, w.tapped.outer.Data = nil, wire
	}
	p.state.native.counts.refused.Add(1)
	w.drop(r)
}

// nativePiece takes one piece, or several that have become one; wire is how it came.
func (w *worker) nativePiece(p *peer, pc native.Piece, by native.Carrier, wire []byte) int {
	s := w.nativeStreamOf(p, pc.Tag, by)
	if s == nil {
		w.refuseNative(p, DropNativeUnknown, wire)
		return 0
	}
	p.state.native.counts.gotPieces.Add(1)
	verdict, bytes := w.addNative(s, pc)
	if (verdict == native.Duplicate || verdict == native.Late) && w.nanos-s.moved > nativeStands.Nanoseconds() {
		if s.Incomplete() {
			bytes += w.finishNative(s)
		}
		s.Renew()
		var more int
		verdict, more = w.addNative(s, pc)
		bytes += more
	}
	if s.Incomplete() {
		if s.since = w.nanos; !s.noted {
			s.noted = true
			w.native.incomplete = append(w.native.incomplete, s)
		}
	}
	switch verdict {
	case native.Duplicate:
		w.refuseNative(p, DropNativeDuplicate, wire)
	case native.Late:
		w.refuseNative(p, DropNativeLate, wire)
	case native.Stray:
		w.refuseNative(p, DropNativeStray, wire)
	case native.Conflict:
		w.refuseNative(p, DropNativeBad, wire)
	case native.NoBuffer:
		w.refuseNative(p, DropNativeFull, wire)
	}
	return bytes
}

// addNative adds a piece to its stream and hands on what there is then.
func (w *worker) addNative(s *nativeStream, pc native.Piece) (verdict native.Verdict, bytes int) {
	lost, end := s.Lost, s.End()
	for verdict = native.Again; verdict == native.Again; {
		verdict = s.Add(pc, w.native.buffers)
		bytes += w.nativeFrames(s)
	}
	if s.Lost > lost {
		s.peer.state.native.counts.lost.Add(s.Lost - lost)
	}
	if s.End() != end {
		s.moved = w.nanos
	}
	return verdict, bytes
}

// nativeStreamOf is the stream with a tag by a carrier; nil: the peer has not said that it sends it.
func (w *worker) nativeStreamOf(p *peer, tag uint16, by native.Carrier) *nativeStream {
	from := p.state.native.from.Load()
	if from == nil || tag-from.first >= from.streams || from.size[carrierIndex(by)] == 0 {
		return nil
	}
	n := w.native
	for len(n.ins) <= p.state.index {
		n.ins = append(n.ins, nil)
	}
	in := n.ins[p.state.index]
	if in == nil || in.from != from {
		if in != nil {
			in.drop()
		}
		in = &nativeIn{from: from}
		n.ins[p.state.index] = in
	}
	streams := &in.streams[carrierIndex(by)]
	if *streams == nil {
		*streams = make([]*nativeStream, from.streams)
	}
	s := (*streams)[tag-from.first]
	if s == nil {
		s = &nativeStream{peer: p}
		s.Size = from.size[carrierIndex(by)]
		(*streams)[tag-from.first] = s
	}
	s.peer = p
	return s
}

// drop forgets all streams.
func (in *nativeIn) drop() {
	for _, streams := range in.streams {
		for _, s := range streams {
			if s != nil {
				s.Drop()
			}
		}
	}
}

// nativeFrames hands on what a stream has.
func (w *worker) nativeFrames(s *nativeStream) (bytes int) {
	for f := &w.native.frame; s.Next(f); {
		bytes += w.nativeFrame(s, f)
	}
	return bytes
}

// nativeFrame judges one frame as receiveOne does, and its virtio header as one that comes from a pod.
func (w *worker) nativeFrame(s *nativeStream, x *native.Frame) int {
	w.tally.received[Wire]++
	p := s.peer
	c := &p.state.native.counts
	f := &w.frame
	*f = frame{mem: x.IP, by: p, native: true}
	if w.taps != nil {
		w.tapped.hand = f // the datagrams that it came in may be long gone, and outer another peer's
	}
	switch {
	case x.Kind == native.Lost:
		w.drop(DropNativeLost)
		return 0
	case x.Kind == native.Bad:
		w.drop(DropNativeBad)
		return 0
	case x.Network != native.NoNetwork && uint32(x.Network) != w.f.vni:
		w.drop(DropWrongVNI)
		return 0
	case x.Kind == native.Part:
		c.parts.Add(1)
	}
	if fault := encap.Parse(x.IP, &f.p); fault != encap.OK {
		w.drop(faultReason[fault])
		return 0
	}
	v, ok := x.Virtio(&f.p)
	if !ok || f.p.Len != len(x.IP) || v.Check(x.IP, &f.p) != encap.OK {
		w.drop(DropBadVirtio)
		return 0
	}
	f.v = v
	c.gotFrames.Add(1)
	if w.taps != nil {
		w.tapReceived(f, int(v.GSOSize))
	}
	w.accept(f, 0, x.TOS)
	return f.p.Len
}

// expireNative hands on what there is of bursts that were waited for too long, or of all.
func (w *worker) expireNative(all bool) {
	n := w.native
	kept := n.incomplete[:0]
	for _, s := range n.incomplete {
		if s.Incomplete() && !all && w.nanos-s.since < nativeExpire.Nanoseconds() {
			kept = append(kept, s)
			continue
		}
		s.noted = false
		if !s.Incomplete() {
			continue
		}
		before := w.taken()
		w.credit(s.peer, before, w.finishNative(s))
	}
	n.incomplete = kept
}

// finishNative hands on what there is of a stream's open burst.
func (w *worker) finishNative(s *nativeStream) (bytes int) {
	lost := s.Lost
	s.Finish()
	bytes = w.nativeFrames(s)
	s.peer.state.native.counts.lost.Add(s.Lost - lost)
	return bytes
}

// flushedNative is the end of a flush: nothing is lent any more, and what was received has left.
func (w *worker) flushedNative() {
	n := w.native
	n.buffers.Reclaim()
	for _, e := range n.fences {
		w.f.native.post(e)
	}
	n.fences = n.fences[:0]
}
