package forwarder

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/penstock-net/penstock/encap"
)

// TestBucket: what a bucket lets pass, step by step, by a clock that we move.
func TestBucket(t *testing.T) {
	const ms = int64(time.Millisecond)
	const much = math.MaxInt >> 22 // as bytes at a bit a second more than an hour, also where int has 32 bits
	type step struct {
		after int64 // ns since the step before
		take  int   // bytes
		open  bool  // after it
		level int64
		wait  int64 // 0: not looked at
	}
	for _, c := range []struct {
		name        string
		rate, burst uint64
		steps       []step
	}{
		{"full at first, never more than full", 8e6, 800_000, []step{
			{0, 0, true, 800_000, 0}, {1000 * ms, 0, true, 800_000, 0}, {0, 99_999, true, 8, 0}, {0, 1, false, 0, 125}, {125, 0, true, 1, 0}}},
		{"a superframe in debt", 8e6, 80_000, []step{
			{0, 65535, false, 80_000 - 65535*8, 55_535_125}, {55_535_000, 0, false, 0, 125}, {125, 0, true, 1, 0}}},
		{"least burst", 1e6, 1, []step{{0, 0, true, 10_000, 0}}},
		{"least burst of next to nothing", 1, 0, []step{{0, 0, true, 1, 0}, {0, 1, false, -7, 8e9}, {8e9 - 1, 0, false, 0, 1}, {1, 0, true, 1, 0}}},
		{"the clock goes back", 8e6, 80_000, []step{{0, 10_000, false, 0, 125}, {-5 * ms, 0, false, 0, 125}, {5 * ms, 0, false, 0, 125}, {1000, 0, true, 8, 0}}},
		{"rests of bits are kept", 3, 0, []step{{0, 1, false, -7, 2666666667}, {333333333, 0, false, -7, 2333333334}, {1, 0, false, -6, 0}}},
		{"years of sleep", 1e11, math.MaxUint64, []step{{0, 0, true, 1 << 60, 0}, {0, much, true, 1<<60 - 8*much, 0}, {math.MaxInt64 / 2, 0, true, 1 << 60, 0}}},
		{"debt of years", 1, 0, []step{{0, much, false, 1 - 8*much, int64(time.Hour)}}},
	} {
		now := int64(1e6)
		b := newBucket(c.rate, c.burst, now)
		for i, s := range c.steps {
			now += s.after
			b.fill(now)
			b.take(s.take)
			if b.open() != s.open || b.level != s.level || s.wait != 0 && b.wait() != s.wait {
				t.Errorf("%s, step %d: open %v, level %d, wait %d; want %+v", c.name, i, b.open(), b.level, b.wait(), s)
			}
		}
	}
}

// TestBucketRate: whatever the rate, the burst, the frames and the moments at
// which it is looked at, a bucket lets pass its rate: over any time no more than
// burst + rate × time + one frame, and, if somebody always waits, no less than
// rate × time less what a late look cost.
func TestBucketRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := uint64(math.Exp(rapid.Float64Range(math.Log(1e3), math.Log(4e11)).Draw(t, "ln rate")))
		burst := rapid.Uint64Range(0, rate).Draw(t, "burst")
		late := rapid.Int64Range(1, int64(leastBurst)/2).Draw(t, "late") // less than the burst covers
		b := newBucket(rate, burst, 0)
		full := float64(b.burst)
		now, sent, largest := int64(0), 0.0, 0.0
		for now < 2e9 && sent < 1e13 {
			b.fill(now)
			for n := 0; b.open() && n < 10_000; n++ {
				bytes := rapid.SampledFrom([]int{40, 92, 570, 1450, 20_000, longestPacket}).Draw(t, "bytes")
				if float64(rate) > 1e8 {
					bytes = longestPacket
				}
				b.take(bytes)
				sent += float64(bytes) * 8
				largest = max(largest, float64(bytes)*8)
				if n%8 == 7 {
					break
				}
			}
			if most := full + float64(rate)*float64(now)/1e9 + largest; sent > most+1 {
				t.Fatalf("%.0f bits after %d ns, at most %.0f", sent, now, most)
			}
			if b.open() {
				continue
			}
			if least := full + float64(rate)*float64(now)/1e9; sent < least-1 {
				t.Fatalf("%.0f bits after %d ns, at least %.0f", sent, now, least)
			}
			wait := b.wait()
			if early := b; wait > 1 && wait < int64(time.Hour) {
				if early.fill(now + wait - 1); early.open() {
					t.Fatalf("open before the wait of %d ns is over", wait)
				}
				if early.fill(now + wait); !early.open() {
					t.Fatalf("shut after the wait of %d ns", wait)
				}
			}
			now += wait + late*min(1, int64(b.burst)/max(1, int64(rate/1000)))
		}
	})
}

// TestShapedLength: a superframe costs what its segments do, and nonsense costs
// something sane.
func TestShapedLength(t *testing.T) {
	tso := func(size, hdr uint16) encap.Virtio {
		return encap.Virtio{Flags: encap.NeedsCsum, GSOType: encap.GSOTCPv4, GSOSize: size, HdrLen: hdr}
	}
	for _, c := range []struct {
		n    int
		v    encap.Virtio
		want int
	}{
		{92, encap.Virtio{}, 92},
		{40 + 1400, tso(1400, 40), 1440},
		{40 + 1401, tso(1400, 40), 1441 + 40},
		{52 + 14000, tso(1400, 52), 10 * 1452},
		{52 + 14000, tso(0, 52), 14052},
		{30, tso(1, 40), 30},
		{65535, tso(1, 0), 65535},
		{65535, tso(1, 65535), 65535 + (65535-128-1)*128},
	} {
		if got := shapedLength(c.n, c.v); got != c.want {
			t.Errorf("%d bytes, %+v: %d, want %d", c.n, c.v, got, c.want)
		}
	}
}

// TestBandwidthCheck: a burst without a rate is a mistake.
func TestBandwidthCheck(t *testing.T) {
	for _, c := range []struct {
		b  Bandwidth
		ok bool
	}{
		{Bandwidth{}, true}, {Bandwidth{IngressRate: 1, EgressRate: 1}, true}, {Bandwidth{IngressRate: 1e9, IngressBurst: 1e9}, true},
		{Bandwidth{IngressBurst: 1}, false}, {Bandwidth{IngressRate: 5, EgressBurst: 1}, false},
	} {
		if err := c.b.check(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.b, err)
		}
	}
	if bounded(0) || !bounded(1) || bounded(unboundedRate) || bounded(math.MaxUint64) {
		t.Error("bounded")
	}
}
