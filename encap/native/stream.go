package native

// Stream is what a receiver knows of one stream of a peer. Bursts are handed out in the order in which they begin in
// the stream, frames as soon as they are there; what comes of a burst in front of the open one is late. The zero
// Stream with Size set is ready.
//
//	for ; ; {
//		verdict := s.Add(p, buffers)
//		for s.Next(&frame) { … }
//		if verdict != Again { break }
//	}
type Stream struct {
	Size  int    // how the sender cuts
	Lost  uint64 // bytes of the stream that have not come before what follows them was handed out
	begun bool
	next  uint32 // where in the stream the burst behind the newest begins
	stray bool   // a piece came from far away,
	after uint32 // and ended here
	open  burst
	late  burst // a whole one that came behind its turn
	gaps  [maxGaps]gap
	ngaps int
}

// gap is bytes of the stream that were passed over. It tells what is late from what is a duplicate.
type gap struct{ from, to uint32 }

const maxGaps = 16

// maxLate is how far behind a gap is remembered, in bytes: far less than where offsets wrap. What lies farther away, ahead or behind,
// is not of the stream as it is known: lost has more than that only who was cut off from the sender.
const maxLate = 64 << 20

// Verdict says what Add did with a piece.
type Verdict uint8

const (
	Added     Verdict = iota
	Again             // the burst in front of it had to be finished: take what Next gives and add the piece again
	Duplicate         // its bytes have come before
	Late              // the bursts behind it have been handed out
	Stray             // it is far from where the stream is, and no other one shows that the stream is there
	Conflict          // it contradicts what came of the same burst, or how the sender said it cuts
	NoBuffer          // too many bursts are incomplete
)

// Incomplete reports that a burst waits for more of it; Finish gives up the wait.
func (s *Stream) Incomplete() bool { return s.open.is }

// Finish ends the wait for the rest of the open burst: Next returns what is there.
func (s *Stream) Finish() { s.open.ended = true }

// End is where in the stream the newest burst ends. While it stands still, nothing new comes.
func (s *Stream) End() uint32 { return s.next }

// Renew forgets where the stream is: it begins anew with the next piece. Call it while no burst is open.
func (s *Stream) Renew() { s.begun, s.ngaps = false, 0 }

// Add takes a piece. Call Next until it returns false, whatever the verdict is.
func (s *Stream) Add(p Piece, pool *Buffers) Verdict {
	whole := p.Offset == 0 && len(p.Data) == p.Length
	if s.Size < MinPiece || (p.Length+s.Size-1)/s.Size > MaxPieces {
		return Conflict
	}
	o := &s.open
	if s.begun && p.Start-s.next+maxLate > 2*maxLate {
		if !s.follows(p) {
			return Stray
		}
		if o.is {
			o.ended = true
			return Again
		}
		if !ahead(p.Start, s.next) {
			s.Renew()
		}
	}
	if o.is {
		if p.Start == o.start {
			return o.add(p)
		}
		if ahead(p.Start, o.start) {
			o.ended = true
			return Again
		}
	}
	if s.begun && !ahead(p.Start, s.next) && p.Start != s.next {
		return s.behind(p, whole)
	}
	if whole {
		s.begin(p)
		o.openWhole(p, s.Size)
		return Added
	}
	mem := pool.get()
	if mem == nil {
		return NoBuffer
	}
	s.begin(p)
	o.open(p, s.Size, mem[:p.Length], pool)
	return o.add(p)
}

// follows reports that a piece from far away is the second of two that follow each other: the stream is there. One by itself, which
// anyone may have forged who tries one place after the other, moves nothing.
func (s *Stream) follows(p Piece) bool {
	at := p.Start + uint32(p.Offset)
	if s.stray && at == s.after {
		return true
	}
	s.stray, s.after = true, at+uint32(len(p.Data))
	return false
}

// begin opens a burst at or behind next.
func (s *Stream) begin(p Piece) {
	if s.begun && p.Start != s.next {
		s.Lost += uint64(p.Start - s.next)
		s.pass(s.next, p.Start)
	}
	s.begun, s.next, s.stray = true, p.Start+uint32(p.Length), false
	if s.ngaps > 0 && s.next-s.gaps[0].to > maxLate {
		s.ngaps = copy(s.gaps[:], s.gaps[1:s.ngaps])
	}
}

// behind takes a piece of a burst whose turn is over.
func (s *Stream) behind(p Piece, whole bool) Verdict {
	from := p.Start + uint32(p.Offset)
	to := from + uint32(len(p.Data))
	for i := range s.gaps[:s.ngaps] {
		g := s.gaps[i]
		if ahead(g.from, from) || ahead(to, g.to) {
			continue
		}
		// It fills the gap, or some of it.
		s.ngaps--
		copy(s.gaps[i:], s.gaps[i+1:s.ngaps+1])
		if g.from != from {
			s.pass(g.from, from)
		}
		if to != g.to {
			s.pass(to, g.to)
		}
		if !whole {
			return Late
		}
		s.Lost -= min(s.Lost, uint64(p.Length))
		s.late.openWhole(p, s.Size)
		return Added
	}
	return Duplicate
}

// pass notes a gap; the oldest is forgotten.
func (s *Stream) pass(from, to uint32) {
	if s.ngaps == maxGaps {
		s.ngaps = copy(s.gaps[:], s.gaps[1:])
	}
	s.gaps[s.ngaps] = gap{from, to}
	s.ngaps++
}

// ahead reports that a lies ahead of b in the stream, whose offsets wrap.
func ahead(a, b uint32) bool { return int32(a-b) > 0 }

// Next returns the next frame that can be handed out.
func (s *Stream) Next(f *Frame) bool {
	if s.late.is {
		if s.late.next(f) {
			f.TOS = s.late.tos
			return true
		}
		s.late.close()
	}
	o := &s.open
	if !o.is {
		return false
	}
	if o.next(f) {
		f.TOS = o.tos
		return true
	}
	if !o.ended {
		return false
	}
	at := 0
	for _, h := range o.have[:o.nhave] {
		if h.from > at {
			s.miss(at, h.from)
		}
		at = h.to
	}
	if at < o.length {
		s.miss(at, o.length)
	}
	o.close()
	return false
}

func (s *Stream) miss(from, to int) {
	s.Lost += uint64(to - from)
	s.pass(s.open.start+uint32(from), s.open.start+uint32(to))
}

// Drop forgets the open burst, for a stream that ends.
func (s *Stream) Drop() {
	s.open.close()
	s.late.close()
}

// tosCE are the bits by which a router marks congestion (RFC 3168).
const tosCE = 3

// span is bytes of a burst that have come.
type span struct{ from, to int }

// burst is one that is being handed out.
type burst struct {
	is, ended bool // ended: no more of it is waited for
	start     uint32
	length    int
	size      int   // of pieces
	tos       uint8 // outer, of what has come of it
	mem       []byte
	pool      *Buffers // of mem; nil: lent by the caller
	have      [MaxPieces]span
	nhave     int
	walk      walk
}

// open begins a burst in memory of its own. What is not set is as close has left it.
func (o *burst) open(p Piece, size int, mem []byte, pool *Buffers) {
	o.is, o.ended, o.start, o.length, o.size, o.tos, o.mem, o.pool = true, false, p.Start, p.Length, size, p.TOS, mem, pool
}

// openWhole begins a burst that has come in one go: it stays where it is.
func (o *burst) openWhole(p Piece, size int) {
	o.open(p, size, p.Data, nil)
	o.ended, o.nhave, o.have[0] = true, 1, span{0, p.Length}
}

// close ends the burst. Fields of the size of an array are not cleared: nhave and walk.parts say what counts.
func (o *burst) close() {
	if o.pool != nil {
		o.pool.put(o.mem[:MaxBurst])
	}
	o.is, o.mem, o.pool, o.nhave, o.walk.at, o.walk.parts = false, nil, nil, 0, 0, false
}

// add copies a piece into the burst.
func (o *burst) add(p Piece) Verdict {
	if p.Length != o.length || o.pool == nil {
		return Conflict
	}
	from, to := p.Offset, p.Offset+len(p.Data)
	i := 0
	for i < o.nhave && o.have[i].to < from {
		i++
	}
	// have[i] is the first that touches the piece or lies behind it.
	if i < o.nhave && o.have[i].from < to && from < o.have[i].to || i+1 < o.nhave && o.have[i+1].from < to {
		return Duplicate
	}
	joinsLeft := i < o.nhave && o.have[i].to == from
	right := i
	if joinsLeft {
		right++
	}
	joinsRight := right < o.nhave && o.have[right].from == to
	switch {
	case joinsLeft && joinsRight:
		o.have[i].to = o.have[right].to
		o.nhave--
		copy(o.have[right:], o.have[right+1:o.nhave+1])
	case joinsLeft:
		o.have[i].to = to
	case joinsRight:
		o.have[right].from = from
	default:
		if o.nhave == MaxPieces {
			return Conflict // pieces smaller than any sender cuts
		}
		copy(o.have[right+1:o.nhave+1], o.have[right:o.nhave])
		o.have[right] = span{from, to}
		o.nhave++
	}
	if o.tos&tosCE != tosCE { // one piece that was marked marks the burst, and no other one
		o.tos = p.TOS
	}
	copy(o.mem[from:to], p.Data)
	o.ended = o.nhave == 1 && o.have[0] == span{0, o.length}
	return Added
}
