package native

import (
	"math/rand/v2"
	"testing"
)

// far are places that lie farther from a stream than it believes a single piece.
var far = []uint32{maxLate + MaxBurst, 1 << 30, 1<<31 - 1, 1 << 31, 3 << 30, 1<<32 - maxLate - 2*MaxBurst}

// shot is a piece that is a whole burst of one byte, as a forger makes them who knows nothing of the stream.
func shot(at uint32) Piece { return Piece{Start: at, Length: 1, Data: []byte{0}} }

// TestStray: single pieces from far away, at every place and between the pieces of a burst, change nothing of what an honest sender's
// stream gives. Two that follow each other move it; two of the sender bring it back.
func TestStray(t *testing.T) {
	const size = 1400
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		s, pool := &Stream{Size: size}, NewBuffers(2)
		at := r.Uint32()
		var out []got
		// deliver sends a burst; before its pieces each time what forge gives. It returns how many pieces the stream did not take for strays.
		deliver := func(forge func() []Piece) (taken, frames int) {
			burst, want := randomBurst(t, r, size)
			for _, p := range cut(burst, size, 1, at) {
				for _, f := range forge() {
					var v Verdict
					if out, v = add(t, s, f, pool, out); v != Stray {
						t.Fatalf("seed %d: a forged piece at %+d of the stream: verdict %d", seed, int32(f.Start-at), v)
					}
				}
				var v Verdict
				if out, v = add(t, s, p, pool, out); v != Stray {
					taken++
				}
			}
			at += uint32(len(burst))
			return taken, len(want)
		}
		quiet := func() []Piece { return nil }
		deliver(quiet)
		lost := s.Lost
		out = nil
		frames := 0
		for _, d := range far {
			_, n := deliver(func() []Piece { return []Piece{shot(at + d)} })
			frames += n
		}
		if len(out) != frames || s.Lost != lost {
			t.Fatalf("seed %d: %d of %d frames, %d bytes lost", seed, len(out), frames, s.Lost-lost)
		}
		for _, d := range far {
			was := at + d
			if v := s.Add(shot(was), pool); v != Stray {
				t.Fatalf("seed %d: the first of two at %+d: verdict %d", seed, int32(d), v)
			}
			if _, v := add(t, s, shot(was+1), pool, nil); v != Added || s.End() != was+2 {
				t.Fatalf("seed %d: the second of two at %+d: verdict %d", seed, int32(d), v)
			}
			if deliver(quiet); s.End() != at {
				deliver(quiet)
			}
			s.Finish()
			drain(t, s, nil)
			pool.Reclaim()
			if out = nil; s.End() != at {
				t.Fatalf("seed %d: two of the sender's bursts behind %+d are not followed", seed, int32(d))
			}
			if _, n := deliver(quiet); len(out) != n {
				t.Fatalf("seed %d: %d of %d frames of the third", seed, len(out), n)
			}
		}
		if s.Finish(); len(drain(t, s, nil)) > 0 || len(pool.free)+len(pool.waiting)+pool.left != 2 {
			t.Fatalf("seed %d: memory is not given back", seed)
		}
	}
}

// TestStrayZero: no place is believed at once, also not where a stream of zero values would have the second of two.
func TestStrayZero(t *testing.T) {
	s, pool := &Stream{Size: MinPiece}, NewBuffers(1)
	add(t, s, shot(1<<30), pool, nil)
	if v := s.Add(shot(0), pool); v != Stray {
		t.Errorf("verdict %d", v)
	}
}

// TestOutage: who lost more than what a stream remembers goes on with the second piece; less is followed at once. What was open is
// handed on, and what did not come counts.
func TestOutage(t *testing.T) {
	const size = 1400
	r := rand.New(rand.NewPCG(4, 4))
	long := func() (b []byte, frames []sent) {
		for len(b) < 3*size {
			b, frames = randomBurst(t, r, size)
		}
		return b, frames
	}
	for _, gone := range []uint32{maxLate, maxLate + 1, 1 << 30} {
		s, pool := &Stream{Size: size}, NewBuffers(2)
		at := uint32(1<<32 - 3*MaxBurst) // offsets wrap under way
		first, _ := long()
		if add(t, s, cut(first, size, 1, at)[0], pool, nil); !s.Incomplete() {
			t.Fatal("nothing is open")
		}
		second, frames := long()
		has := make([]bool, len(second))
		missing := uint64(len(first)-size) + uint64(gone)
		var out []got
		for i, p := range cut(second, size, 1, at+uint32(len(first))+gone) {
			want := Added
			if i == 0 && gone > maxLate {
				want, missing = Stray, missing+size
			}
			before := s.End()
			more, v := add(t, s, p, pool, nil)
			if v != want {
				t.Fatalf("piece %d behind %d lost bytes: verdict %d", i, gone, v)
			}
			if s.End() == before { // else it is what was open, with the new burst's first frames
				out = append(out, more...)
			}
			for k := range p.Data {
				has[p.Offset+k] = v == Added
			}
		}
		s.Finish()
		if out = drain(t, s, out); s.Lost != missing {
			t.Errorf("%d bytes lost, want %d", s.Lost, missing)
		}
		whole, _ := expect(frames, second, size, has)
		if len(out) == 0 || len(whole) == 0 || string(out[len(out)-1].ip) != string(whole[len(whole)-1].ip) {
			t.Errorf("behind %d lost bytes the burst's last frame is not handed on", gone)
		}
	}
}

// TestRenew: a stream that begins anew takes any place for its own, and nothing of before for a gap.
func TestRenew(t *testing.T) {
	s, pool := &Stream{Size: MinPiece}, NewBuffers(1)
	for _, at := range []uint32{1000, 2000} {
		add(t, s, shot(at), pool, nil)
	}
	for _, want := range []Verdict{Duplicate, Added} {
		if _, v := add(t, s, shot(5), pool, nil); v != want {
			t.Errorf("verdict %d, want %d", v, want)
		}
		s.Renew()
	}
	if _, v := add(t, s, shot(1500), pool, nil); v != Added || s.Lost != 999 {
		t.Errorf("verdict %d, %d bytes lost", v, s.Lost)
	}
}
