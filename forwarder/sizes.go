package forwarder

import (
	"math/bits"
	"sync/atomic"
)

// sizeBuckets are powers of two from 1, and one bucket for all that is larger.
const sizeBuckets = 12

// sizes counts how large batches or runs were: an add for each, none a packet.
type sizes [sizeBuckets]uint64

func (s *sizes) note(n uint64) {
	if n > 0 {
		s[min(bits.Len64(n-1), sizeBuckets-1)]++
	}
}

// sizeLedger is what has been published of sizes.
type sizeLedger [sizeBuckets]atomic.Uint64

func (l *sizeLedger) publish(s *sizes) {
	for i := range s {
		move(&l[i], &s[i])
	}
}

// addTo adds the worker's share.
func (l *sizeLedger) addTo(s *Sizes) {
	for i := range l {
		n := l[i].Load()
		s.Count += n
		if i < sizeBuckets-1 {
			s.UpTo[i] += n
		}
	}
}

// Sizes is a distribution of sizes. UpTo[i] are those of at most 2^i and more than 2^(i-1); what Count has beyond their sum was larger.
type Sizes struct {
	UpTo  [sizeBuckets - 1]uint64
	Count uint64
	Sum   uint64 // of all sizes
}
