package probe

import (
	"net/netip"
	"sync"
	"time"
)

// answerRate bounds the answers of a node, in datagrams a second: more than any doctor or bench needs, and little work.
const answerRate = 50_000

// answerer decides what a datagram is answered with. It is shared by the sockets of all our first addresses.
type answerer struct {
	mu      sync.Mutex
	sources map[netip.Addr]*record // the peers' first addresses
	budget  float64
	filled  time.Time
}

// record is what one source has sent to be counted: of one token, the latest.
type record struct {
	token       uint64
	seen        uint64 // datagrams
	bytes       uint64
	first, last time.Time
}

// allow sets whom to answer. Records of those that stay are kept.
func (r *answerer) allow(sources []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := make(map[netip.Addr]*record, len(sources))
	for _, a := range sources {
		next[a] = r.sources[a]
		if next[a] == nil {
			next[a] = &record{}
		}
	}
	r.sources = next
}

// answer takes one datagram and returns how many bytes of out are to be sent back: 0 for nothing, and never more than the
// datagram has. out is as long as the datagram at least.
func (r *answerer) answer(from netip.Addr, datagram, out []byte, now time.Time) int {
	m, ok := parse(datagram)
	if !ok {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.sources[from]
	if rec == nil {
		return 0
	}
	switch m.kind {
	case echo:
		if !r.spend(now) {
			return 0
		}
		n := min(max(int(m.want), headerLen), len(datagram))
		clear(out[headerLen:n])
		message{kind: echoAnswer, token: m.token, seq: m.seq, a: uint64(now.UnixNano())}.put(out)
		return n
	case data:
		if rec.token != m.token {
			*rec = record{token: m.token, first: now}
		}
		rec.seen++
		rec.bytes += uint64(len(datagram))
		rec.last = now
	case count:
		if !r.spend(now) {
			return 0
		}
		c := message{kind: counted, token: m.token, seq: m.seq}
		if rec.token == m.token {
			c.a, c.b, c.c = rec.seen, rec.bytes, uint64(rec.last.Sub(rec.first))
		}
		c.put(out)
		return headerLen
	}
	return 0
}

// spend takes one answer from the budget, a tenth of a second's at most.
func (r *answerer) spend(now time.Time) bool {
	r.budget = min(r.budget+now.Sub(r.filled).Seconds()*answerRate, answerRate/10)
	r.filled = now
	if r.budget < 1 {
		return false
	}
	r.budget--
	return true
}
