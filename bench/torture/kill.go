package torture

import (
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"
)

// fuse decides when a process is killed. The zero fuse never burns.
type fuse struct {
	on    bool
	file  string        // burn only when this file has appeared …
	after time.Duration // … and then so long; or so long after the start
}

// pace remembers how long the calls of a kind take when nobody kills them, so that kills are spread over their whole length.
type pace struct {
	mu   sync.Mutex
	took map[string][]time.Duration
}

const paceLength = 15

func (p *pace) note(kind string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := append(p.took[kind], d)
	if len(l) > paceLength {
		l = l[1:]
	}
	p.took[kind] = l
}

// usual is the median, or a guess.
func (p *pace) usual(kind string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := slices.Clone(p.took[kind])
	if len(l) == 0 {
		return 80 * time.Millisecond
	}
	slices.Sort(l)
	return l[len(l)/2]
}

// forAdd spreads kills over an ADD: one in eight while the process comes to life, half over its whole length, and the others
// from the moment its reservation is on the disk, which is where what can leak begins.
func (p *pace) forAdd(r *rand.Rand, kind, file string) fuse {
	usual := p.usual(kind)
	switch x := r.Float64(); {
	case x < 0.125:
		return fuse{on: true, after: logUniform(r, 50*time.Microsecond, 5*time.Millisecond)}
	case x < 0.6:
		return fuse{on: true, after: scale(r, usual*115/100)}
	default:
		return fuse{on: true, file: file, after: scale(r, usual*60/100)}
	}
}

// forOther is for calls without such a moment.
func (p *pace) forOther(r *rand.Rand, kind string) fuse {
	return fuse{on: true, after: scale(r, p.usual(kind)*115/100)}
}

func scale(r *rand.Rand, d time.Duration) time.Duration {
	return time.Duration(r.Float64() * float64(d))
}

func logUniform(r *rand.Rand, from, to time.Duration) time.Duration {
	return time.Duration(float64(from) * math.Pow(float64(to)/float64(from), r.Float64()))
}

// burn kills when the time has come, unless done is closed first.
func (f fuse) burn(kill func(), done <-chan struct{}) {
	if !f.on {
		return
	}
	for f.file != "" {
		if _, err := os.Lstat(f.file); err == nil {
			break
		}
		select {
		case <-done:
			return
		case <-time.After(300 * time.Microsecond):
		}
	}
	select {
	case <-done:
	case <-time.After(f.after):
		kill()
	}
}
