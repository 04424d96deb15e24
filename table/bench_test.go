package table

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/gaissmai/bart"
)

// The shapes that routes of a pod network have.
var shapes = []struct {
	name  string
	bits  int
	route func(i int, r *rand.Rand) netip.Prefix
}{
	// A /24 for each node, one after the other: what IPAM hands out.
	{"nodes4", 24, func(i int, _ *rand.Rand) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10 + byte(i>>16), byte(i >> 8), byte(i)}), 24)
	}},
	// The same for IPv6, a /64 each.
	{"nodes6", 64, func(i int, _ *rand.Rand) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 2, byte(i >> 16), byte(i >> 8), byte(i)}), 64)
	}},
	// Single pods, spread over 10.0.0.0/12.
	{"pods4", 32, func(_ int, r *rand.Rand) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.UintN(16)), byte(r.Uint32()), byte(r.Uint32())}), 32)
	}},
	// Lengths from 12 to 32 anywhere: no pod network, but the worst for a trie.
	{"anywhere4", 0, func(_ int, r *rand.Rand) netip.Prefix {
		u := r.Uint32()
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(u >> 24), byte(u >> 16), byte(u >> 8), byte(u)}), 12+r.IntN(21)).Masked()
	}},
}

// makeRoutes returns n different routes of a shape.
func makeRoutes(shape, n int) []netip.Prefix {
	r := rand.New(rand.NewPCG(1, 2))
	seen := make(map[netip.Prefix]bool, n)
	all := make([]netip.Prefix, 0, n)
	for i := 0; len(all) < n; i++ {
		if p := shapes[shape].route(i, r); !seen[p] {
			seen[p] = true
			all = append(all, p)
		}
	}
	return all
}

// addrsIn returns n addresses within random ones of the routes.
func addrsIn(routes []netip.Prefix, n int) []netip.Addr {
	r := rand.New(rand.NewPCG(3, 4))
	all := make([]netip.Addr, n)
	for i := range all {
		p := routes[r.IntN(len(routes))]
		k := keyOf(p.Addr())
		m := maskOf(p.Bits())
		k.hi |= r.Uint64() &^ m.hi
		k.lo |= r.Uint64() &^ m.lo
		all[i] = k.addr(p.Addr().Is4())
	}
	return all
}

// fill loads routes into VNI 1, spread over a thousand next hops.
func fill(tb testing.TB, t *Table[next], routes []netip.Prefix) []*next {
	hops := make([]*next, 1000)
	for i := range hops {
		hops[i] = &next{i}
	}
	err := t.Update(func(x *Txn[next]) error {
		n := x.Network(1)
		for i, p := range routes {
			n.SetRoute(p, hops[i%len(hops)])
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return hops
}

// write replaces routes, one an Update, a thousand times a second, until stop.
func write(t *Table[next], routes []netip.Prefix, hops []*next) (stop func() (updates int)) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	updates := 0
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			_ = t.Update(func(x *Txn[next]) error {
				x.Network(1).SetRoute(routes[updates%len(routes)], hops[(updates*7)%len(hops)])
				return nil
			})
			updates++
		}
	})
	return func() int { close(done); wg.Wait(); return updates }
}

var found *next

// ways are how many different addresses are asked for, in turn.
var ways = []struct {
	name string
	n    int
}{{"random", 1 << 16}, {"flows", 256}, {"one", 1}}

// BenchmarkRoute is the bar of the design: 100,000 routes while a writer makes
// 1,000 updates a second; the View is loaded once per 64 questions, as a worker
// does.
func BenchmarkRoute(b *testing.B) {
	for s := range shapes {
		routes := makeRoutes(s, 100_000)
		t := new(Table[next])
		hops := fill(b, t, routes)
		addrs := addrsIn(routes, 1<<16)
		for _, w := range ways {
			b.Run(fmt.Sprintf("%s/%s", shapes[s].name, w.name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					lookups(t, addrs[:w.n], 1<<16)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(1<<16), "ns/route")
			})
			b.Run(fmt.Sprintf("%s/%s+writer", shapes[s].name, w.name), func(b *testing.B) {
				stop := write(t, routes, hops)
				for b.Loop() {
					lookups(t, addrs[:w.n], 1<<16)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(1<<16), "ns/route")
				b.ReportMetric(float64(stop())/b.Elapsed().Seconds(), "updates/s")
			})
		}
	}
}

// BenchmarkBart asks bart's tables the same, so that one sees whether the FIB is
// still worth its lines.
func BenchmarkBart(b *testing.B) {
	for s := range shapes {
		routes := makeRoutes(s, 100_000)
		addrs := addrsIn(routes, 1<<16)
		h := &next{}
		var table bart.Table[hop[next]]
		var fast bart.Fast[hop[next]]
		for _, p := range routes {
			table.Insert(p, hop[next]{h})
			fast.Insert(p, hop[next]{h})
		}
		for _, w := range ways {
			for name, lookup := range map[string]func(netip.Addr) (hop[next], bool){"Table": table.Lookup, "Fast": fast.Lookup} {
				b.Run(fmt.Sprintf("%s/%s/%s", name, shapes[s].name, w.name), func(b *testing.B) {
					for b.Loop() {
						for j := range 1 << 16 {
							r, _ := lookup(addrs[j&(w.n-1)])
							found = r.h
						}
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(1<<16), "ns/route")
				})
			}
		}
	}
}

func lookups(t *Table[next], addrs []netip.Addr, n int) {
	for i := 0; i < n; i += 64 {
		net := t.Load().Network(1)
		for j := i; j < i+64; j++ {
			found = net.Route(addrs[j&(len(addrs)-1)])
		}
	}
}

// BenchmarkLoad loads routes into an empty table, and says what they weigh.
func BenchmarkLoad(b *testing.B) {
	for s := range shapes {
		for _, n := range []int{1_000, 100_000, 1_000_000} {
			if shapes[s].name == "nodes4" && n > 1<<20 {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d", shapes[s].name, n), func(b *testing.B) {
				routes := makeRoutes(s, n)
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				var t *Table[next]
				for b.Loop() {
					t = new(Table[next])
					fill(b, t, routes)
				}
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/route")
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/route")
				runtime.KeepAlive(t)
				runtime.KeepAlive(routes)
			})
		}
	}
}

// BenchmarkUpdate replaces some of 100,000 routes in one Update: what a writer
// costs, and where copying the tree as a whole begins to pay (cloneAfter).
func BenchmarkUpdate(b *testing.B) {
	for s := range shapes {
		routes := makeRoutes(s, 100_000)
		for _, n := range []int{1, 100, 500, 1_000, 2_000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", shapes[s].name, n), func(b *testing.B) {
				b.ReportAllocs()
				t := new(Table[next])
				hops := fill(b, t, routes)
				i := 0
				for b.Loop() {
					_ = t.Update(func(x *Txn[next]) error {
						net := x.Network(1)
						for range n {
							net.SetRoute(routes[i*7919%len(routes)], hops[i%len(hops)])
							i++
						}
						return nil
					})
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/route")
			})
		}
	}
}
