package native

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/penstock-net/penstock/encap"
)

// sent is a frame and where it stands in its burst.
type sent struct {
	ip       []byte
	v        encap.Virtio
	from, to int // header included
	hlen     int // of the IP packet's headers; TCP superframes only
}

// packet makes an IP packet with n bytes behind its TCP or UDP header. id marks its payload.
func packet(r *rand.Rand, v6, tcp bool, n int) []byte {
	l4 := encap.UDPLen
	if tcp {
		l4 = encap.TCPLen + 4*r.IntN(4)
	}
	ip := encap.IPv4Len
	if v6 {
		ip = encap.IPv6Len
	}
	b := make([]byte, ip+l4+n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	if v6 {
		b[0], b[1], b[6] = 0x60, 0, encap.ProtoUDP
		binary.BigEndian.PutUint16(b[4:], uint16(l4+n))
		if tcp {
			b[6] = encap.ProtoTCP
		}
	} else {
		b[0], b[6], b[7], b[9] = 0x45, 0x40, 0, encap.ProtoUDP
		if tcp {
			b[9] = encap.ProtoTCP
		}
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^encap.Fold(encap.Sum(b[:20], 0)))
	}
	if tcp {
		b[ip+12], b[ip+13] = byte(l4/4)<<4, encap.TCPAck|encap.TCPPsh|encap.TCPCwr
	} else {
		binary.BigEndian.PutUint16(b[ip+4:], uint16(l4+n))
	}
	return b
}

// randomFrame is one of the kinds that pods send, with at most most bytes.
func randomFrame(t testing.TB, r *rand.Rand, most int) sent {
	var s sent
	tcp, v6 := r.IntN(3) > 0, r.IntN(2) == 0
	super := most > 4000 && r.IntN(4) == 0
	n := r.IntN(min(1400, most-140))
	if super {
		n = 1500 + r.IntN(most-2000)
	}
	s.ip = packet(r, v6, tcp, n)
	var p encap.Packet
	if f := encap.Parse(s.ip, &p); f != encap.OK {
		t.Fatalf("the test's own packet: %v", f)
	}
	if super || r.IntN(2) == 0 {
		s.v = encap.Virtio{Flags: encap.NeedsCsum, CsumStart: p.L4, CsumOffset: 6}
		if tcp {
			s.v.CsumOffset = 16
		}
	}
	if super {
		s.v.GSOSize, s.v.GSOType = 1400, encap.GSOUDPL4
		switch {
		case tcp && v6:
			s.v.GSOType = encap.GSOTCPv6 | encap.GSOECN
		case tcp:
			s.v.GSOType = encap.GSOTCPv4 | encap.GSOECN
		}
		if tcp {
			s.hlen = encap.HeaderLen(s.ip, &p)
		}
	}
	return s
}

// build makes a burst of frames.
func build(t testing.TB, frames []sent, size int) []byte {
	var b []byte
	var ends []uint16
	for i := range frames {
		var p encap.Packet
		if f := encap.Parse(frames[i].ip, &p); f != encap.OK {
			t.Fatal(f)
		}
		var room [MaxHeader]byte
		n := PutHeader(room[:], len(frames[i].ip), frames[i].v, &p)
		if n != HeaderLen(frames[i].v, &p) {
			t.Fatalf("a header of %d bytes, HeaderLen says %d", n, HeaderLen(frames[i].v, &p))
		}
		frames[i].from = len(b)
		b = append(append(b, room[MaxHeader-n:]...), frames[i].ip...)
		frames[i].to = len(b)
		ends = append(ends, uint16(len(b)))
	}
	dir := make([]byte, DirectoryLen(Pieces(len(b), size)))
	PutDirectory(dir, size, ends)
	for i := range frames {
		frames[i].from += len(dir)
		frames[i].to += len(dir)
	}
	burst := bytes.Join([][]byte{dir, b, dir}, nil)
	if len(burst) != burstLen(len(b), size) || (len(burst)+size-1)/size != Pieces(len(b), size) {
		t.Fatalf("a burst of %d bytes in %d pieces, said were %d and %d", len(burst), (len(burst)+size-1)/size, burstLen(len(b), size), Pieces(len(b), size))
	}
	return burst
}

func randomBurst(t testing.TB, r *rand.Rand, size int) ([]byte, []sent) {
	left := 100 + r.IntN(63000)
	var frames []sent
	for left > 300 {
		f := randomFrame(t, r, left-140)
		frames = append(frames, f)
		left -= len(f.ip) + MaxHeader
	}
	if len(frames) == 0 {
		frames = append(frames, randomFrame(t, r, 300))
	}
	return build(t, frames, size), frames
}

// cut gives a burst's pieces.
func cut(b []byte, size int, tag uint16, start uint32) (ps []Piece) {
	for at := 0; at < len(b); at += size {
		ps = append(ps, Piece{Tag: tag, Start: start, Length: len(b), Offset: at, Data: bytes.Clone(b[at:min(at+size, len(b))])})
	}
	return ps
}

// got is what the stream handed out.
type got struct {
	ip   []byte
	v    encap.Virtio
	kind FrameKind
}

func drain(t testing.TB, s *Stream, out []got) []got {
	var f Frame
	for n := 0; s.Next(&f); n++ {
		if n > MaxBurst/3 {
			t.Fatal("Next does not end")
		}
		g := got{bytes.Clone(f.IP), encap.Virtio{}, f.Kind}
		if f.Kind == Whole || f.Kind == Part {
			var p encap.Packet
			if fault := encap.Parse(f.IP, &p); fault != encap.OK || p.Len != len(f.IP) {
				t.Fatalf("a frame of kind %d does not parse: %v", f.Kind, fault)
			}
			v, ok := f.Virtio(&p)
			if !ok || v.Check(f.IP, &p) != encap.OK {
				t.Fatalf("virtio %+v of a frame of kind %d", v, f.Kind)
			}
			g.v = v
		}
		out = append(out, g)
	}
	return out
}

func add(t testing.TB, s *Stream, p Piece, pool *Buffers, out []got) ([]got, Verdict) {
	for i := 0; ; i++ {
		v := s.Add(p, pool)
		out = drain(t, s, out)
		pool.Reclaim() // all has been copied
		if v != Again {
			return out, v
		}
		if i > 0 {
			t.Fatal("a second Again")
		}
	}
}

// expect is what a slow decoder, that knows the frames, makes of a burst of which not all has come.
func expect(frames []sent, burst []byte, size int, has []bool) (whole []sent, broken []sent) {
	all := func(from, to int) bool {
		for i := from; i < to; i++ {
			if !has[i] {
				return false
			}
		}
		return true
	}
	n := DirectoryLen((len(burst) + size - 1) / size)
	directory := n > 0 && (all(0, n) || all(len(burst)-n, len(burst)))
	known := true // that a frame begins here
	at := -1      // the last piece whose first border was seen
	for _, f := range frames {
		if piece := f.from / size; directory && piece != at && piece > 0 {
			// The first border in a piece stands in the directory.
			known = true
		}
		at = f.from / size
		h := 3
		if f.v.IsGSO() {
			h = 5
		}
		if !known || !all(f.from, f.from+h) {
			known = false
			continue
		}
		if all(f.from, f.to) {
			whole = append(whole, f)
		} else {
			broken = append(broken, f)
		}
	}
	return whole, broken
}

// check holds what was handed out of one burst against the slow decoder.
func check(t *testing.T, out []got, frames []sent, burst []byte, size int, has []bool) {
	t.Helper()
	whole, broken := expect(frames, burst, size, has)
	for _, g := range out {
		switch g.kind {
		case Whole:
			if len(whole) == 0 || !bytes.Equal(g.ip, whole[0].ip) {
				t.Fatalf("a frame of %d bytes that was not expected here", len(g.ip))
			}
			v := whole[0].v
			v.HdrLen = 0
			if g.v != v {
				t.Fatalf("virtio %+v, want %+v", g.v, v)
			}
			whole = whole[1:]
		case Bad:
			t.Fatal("a frame is called bad")
		}
	}
	if len(whole) > 0 {
		t.Fatalf("%d whole frames are missing", len(whole))
	}
	for _, f := range broken {
		checkParts(t, &out, f, has, size)
	}
}

// checkParts holds the parts of a superframe against its payload.
func checkParts(t *testing.T, out *[]got, f sent, has []bool, size int) {
	t.Helper()
	start := f.from + 5
	headers := f.hlen > 0
	for i := start; headers && i < start+f.hlen; i++ {
		headers = has[i]
	}
	want := map[int]bool{}
	if headers {
		for i := start + f.hlen; i < f.to; i++ {
			want[i-start-f.hlen] = has[i]
		}
	}
	ip := encap.IPv4Len
	if f.ip[0]>>4 == 6 {
		ip = encap.IPv6Len
	}
	var rest []got
	took := false
	for _, g := range *out {
		mine := g.kind == Part && headers && bytes.Equal(g.ip[ip:ip+4], f.ip[ip:ip+4]) && bytes.Equal(g.ip[ip+8:ip+12], f.ip[ip+8:ip+12])
		if !mine {
			rest = append(rest, g)
			continue
		}
		took = true
		seq := int(encap.TCP(g.ip[ip:]).Seq() - encap.TCP(f.ip[ip:]).Seq())
		payload := g.ip[f.hlen:]
		if seq < 0 || f.hlen+seq+len(payload) > len(f.ip) || !bytes.Equal(payload, f.ip[f.hlen+seq:][:len(payload)]) {
			t.Fatalf("a part of %d bytes at %d is not the superframe's", len(payload), seq)
		}
		for i := range payload {
			if !want[seq+i] {
				t.Fatal("a part holds bytes that did not come, or came twice")
			}
			delete(want, seq+i)
		}
		flags := encap.TCP(g.ip[ip:]).Flags()
		if (flags&encap.TCPCwr != 0) != (seq == 0) || (flags&encap.TCPPsh != 0) != (seq+len(payload) == len(f.ip)-f.hlen) {
			t.Fatalf("flags %#x of a part at %d", flags, seq)
		}
		var p encap.Packet
		encap.Parse(g.ip, &p)
		if s := encap.CheckL4(g.ip, &p); s != encap.ChecksumPartial {
			t.Fatalf("the checksum of a part is %v", s)
		}
		if g.v.IsGSO() != (len(payload) > 1400) {
			t.Fatalf("virtio %+v of a part of %d bytes", g.v, len(payload))
		}
	}
	left := 0
	for _, is := range want {
		if is {
			left++
		}
	}
	if left > 0 && size >= 1024 {
		t.Fatalf("%d bytes of a superframe are missing (took %v)", left, took)
	}
	*out = rest
}

// Bursts that lose pieces, whole or in several goes, in order or not.
func TestLoss(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 1))
		size := MinPiece + r.IntN(3000)
		burst, frames := randomBurst(t, r, size)
		pool := NewBuffers(1)
		s := &Stream{Size: size}
		ps := cut(burst, size, 1, r.Uint32())
		has := make([]bool, len(burst))
		var keep []Piece
		loss := []int{0, 5, 30}[r.IntN(3)]
		for _, p := range ps {
			if r.IntN(100) < loss {
				continue
			}
			for i := range p.Data {
				has[p.Offset+i] = true
			}
			// What arrives may have been merged.
			if k := len(keep) - 1; k >= 0 && keep[k].Offset+len(keep[k].Data) == p.Offset && r.IntN(2) == 0 {
				keep[k].Data = append(keep[k].Data, p.Data...)
				continue
			}
			keep = append(keep, p)
		}
		if r.IntN(2) == 0 {
			r.Shuffle(len(keep), func(i, k int) { keep[i], keep[k] = keep[k], keep[i] })
		}
		var out []got
		var v Verdict
		for _, p := range keep {
			if out, v = add(t, s, p, pool, out); v != Added {
				t.Fatalf("seed %d: verdict %d", seed, v)
			}
		}
		s.Finish()
		out = drain(t, s, out)
		t.Run(fmt.Sprint(seed), func(t *testing.T) { check(t, out, frames, burst, size, has) })
		missing := uint64(0)
		for _, h := range has {
			if !h {
				missing++
			}
		}
		if len(keep) > 0 && s.Lost != missing {
			t.Fatalf("seed %d: %d bytes lost, counted %d", seed, missing, s.Lost)
		}
		if s.Incomplete() || len(pool.free)+len(pool.waiting)+pool.left != 1 {
			t.Fatalf("seed %d: the burst is not given back", seed)
		}
	}
}

// What comes twice, late or against what came before is named and not handed out.
func TestVerdicts(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	const size = 1400
	first, _ := randomBurst(t, r, size)
	for len(first) < 3*size {
		first, _ = randomBurst(t, r, size)
	}
	lone := build(t, []sent{randomFrame(t, r, 900)}, size)
	start := uint32(0) - uint32(len(first)) - 5 // offsets wrap under way
	pool := NewBuffers(2)
	s := &Stream{Size: size}
	ps := cut(first, size, 1, start)
	step := func(what string, p Piece, want Verdict, frames bool) {
		t.Helper()
		out, v := add(t, s, p, pool, nil)
		if v != want || (len(out) > 0) != frames {
			t.Errorf("%s: verdict %d and %d frames, want %d", what, v, len(out), want)
		}
	}
	wrong := ps[1]
	wrong.Length++
	step("the first piece but one", ps[2], Added, false)
	step("the same again", ps[2], Duplicate, false)
	step("another length", wrong, Conflict, false)
	end := start + uint32(len(first))
	after := cut(lone, size, 1, end+uint32(len(lone)))[0]
	_, v := add(t, s, after, pool, nil)
	if v != Added {
		t.Fatalf("the burst after the next: %d", v)
	}
	step("a piece behind its turn", ps[0], Late, false)
	step("the same again", ps[0], Duplicate, false)
	step("a whole burst behind its turn", cut(lone, size, 1, end)[0], Added, true)
	step("the same again", cut(lone, size, 1, end)[0], Duplicate, false)
	step("the newest again", after, Duplicate, false)
	many := Piece{Start: 1, Length: MaxBurst, Data: []byte{0}}
	small := &Stream{Size: MinPiece - 1}
	if v := small.Add(many, pool); v != Conflict {
		t.Errorf("pieces too small: %d", v)
	}
	none := &Stream{Size: size}
	if v := none.Add(ps[0], NewBuffers(0)); v != NoBuffer {
		t.Errorf("no memory: %d", v)
	}
	if none.Add(after, NewBuffers(0)) != Added {
		t.Error("a whole burst needs no memory")
	}
}

// Memory of a burst is not used again before it is reclaimed.
func TestBuffers(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	const size = 1100
	pool := NewBuffers(1)
	s := &Stream{Size: size}
	burst, _ := randomBurst(t, r, size)
	for len(burst) < 2*size {
		burst, _ = randomBurst(t, r, size)
	}
	for _, p := range cut(burst, size, 1, 0) {
		s.Add(p, pool)
		drain(t, s, nil)
	}
	if s.Incomplete() {
		t.Fatal("the burst is all there")
	}
	next := cut(burst, size, 1, uint32(len(burst)))[0]
	if v := s.Add(next, pool); v != NoBuffer {
		t.Errorf("memory that is lent was used: %d", v)
	}
	pool.Reclaim()
	if v := s.Add(next, pool); v != Added {
		t.Errorf("memory that was reclaimed is not used: %d", v)
	}
	s.Drop()
	pool.Reclaim()
	if s.Incomplete() || len(pool.free) != 1 {
		t.Error("a dropped stream keeps memory")
	}
}

// Nothing is allocated for what arrives.
func TestAllocations(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	const size = 1400
	burst, _ := randomBurst(t, r, size)
	pool := NewBuffers(4)
	s := &Stream{Size: size}
	var f Frame
	start := uint32(0)
	each := func(ps []Piece) {
		for _, p := range ps {
			p.Start = start
			for s.Add(p, pool) == Again {
				for s.Next(&f) {
				}
			}
			for s.Next(&f) {
			}
			pool.Reclaim()
		}
		start += uint32(len(burst))
	}
	whole, pieces := []Piece{{Length: len(burst), Data: burst}}, cut(burst, size, 0, 0)
	each(pieces)
	if n := testing.AllocsPerRun(100, func() { each(whole); each(pieces); each(pieces[:len(pieces)-1]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
