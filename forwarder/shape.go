package forwarder

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/penstock-net/penstock/encap"
)

const (
	// shapeDelay is how much of its rate may wait at a port, each way. It is the
	// latency that the reference plugin gives its token bucket filter.
	shapeDelay = 25 * time.Millisecond

	// leastBurst is how much of its rate a bucket holds at least, whatever was
	// asked for: a worker sleeps whole milliseconds and may be kept waiting for a
	// core; what a bucket cannot hold meanwhile would be lost to the pod.
	leastBurst = 10 * time.Millisecond

	// unboundedRate is a rate that no port reaches: as good as none.
	unboundedRate = 1e12

	maxBurst = 1 << 60 // bits; keeps the arithmetic within 64 bits

	// longestPacket is the longest IP packet, which a bucket lets pass in one piece.
	longestPacket = 65535
)

// What bounds a port counts the IP packet; a superframe counts as what it will be
// cut into, so that the pod's share does not depend on who cuts.

func (b Bandwidth) check() error {
	for _, d := range []struct {
		name        string
		rate, burst uint64
	}{{"ingress", b.IngressRate, b.IngressBurst}, {"egress", b.EgressRate, b.EgressBurst}} {
		if d.rate == 0 && d.burst != 0 {
			return fmt.Errorf("bandwidth has an %sBurst of %d bits without an %sRate: give both", d.name, d.burst, d.name)
		}
	}
	return nil
}

// bounded tells whether a rate bounds anything.
func bounded(rate uint64) bool { return rate > 0 && rate < unboundedRate }

// during is how many bytes a rate makes in d.
func during(rate uint64, d time.Duration) int {
	hi, lo := bits.Mul64(rate, uint64(d))
	bytes, _ := bits.Div64(hi, lo, uint64(8*time.Second))
	return int(bytes)
}

// bucket is a token bucket that lets one frame of any length pass whenever it
// holds a bit: what that was too much is a debt, which it pays before the next.
// So a superframe passes whole, however small the burst, and over time exactly
// the rate does. It knows no clock: its owner says what time it is.
type bucket struct {
	rate  uint64 // bits a second
	burst int64  // bits that it holds when it is full
	level int64  // bits; 0 or less: shut
	rest  uint64 // billionths of a bit, to be exact at any rate
	at    int64  // nanoseconds, when it was last filled
}

// newBucket is a full bucket.
func newBucket(rate, burst uint64, now int64) bucket {
	least := uint64(during(rate, leastBurst)) * 8
	b := bucket{rate: rate, burst: int64(min(max(burst, least, 1), maxBurst)), at: now}
	b.level = b.burst
	return b
}

// fill adds what the time since the last fill is worth. A clock that stands
// still or goes back, as between two workers, adds nothing.
func (b *bucket) fill(now int64) {
	if now <= b.at {
		return
	}
	hi, lo := bits.Mul64(uint64(now-b.at), b.rate)
	lo, carry := bits.Add64(lo, b.rest, 0)
	hi += carry
	b.at = now
	if hi < 1e9 { // or the quotient exceeds 64 bits, and any burst
		if gain, rest := bits.Div64(hi, lo, 1e9); gain < uint64(b.burst-b.level) {
			b.level += int64(gain)
			b.rest = rest
			return
		}
	}
	b.level, b.rest = b.burst, 0
}

// open tells whether one more frame may pass.
func (b *bucket) open() bool { return b.level > 0 }

// take charges a frame that has passed.
func (b *bucket) take(bytes int) { b.level -= int64(bytes) * 8 }

// wait is how many nanoseconds after the last fill the bucket opens, at least 1.
func (b *bucket) wait() int64 {
	if b.level > 0 {
		return 1
	}
	hi, lo := bits.Mul64(uint64(1-b.level), 1e9)
	lo, borrow := bits.Sub64(lo, b.rest, 0)
	hi -= borrow
	lo, carry := bits.Add64(lo, b.rate-1, 0)
	hi += carry
	if hi >= b.rate {
		return int64(time.Hour) // over 500 years: look again some time
	}
	nanos, _ := bits.Div64(hi, lo, b.rate)
	return int64(min(max(nanos, 1), uint64(time.Hour)))
}

// shapedLength is how many bytes an IP packet of n bytes costs: a superframe
// costs the headers of all its segments. Offsets in v are from the IP header;
// they may come from a pod and are not trusted to be sane.
func shapedLength(n int, v encap.Virtio) int {
	if !v.IsGSO() || v.GSOSize == 0 {
		return n
	}
	header := min(int(v.HdrLen), 128) // IPv6 with an extension and TCP with all options
	payload := n - header
	if payload <= int(v.GSOSize) {
		return n
	}
	segments := (payload + int(v.GSOSize) - 1) / int(v.GSOSize)
	return n + (segments-1)*header
}
