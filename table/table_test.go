package table

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestWholeUpdates has writers that each move all routes, stations and peers of
// two networks to next hops of one generation. A reader must never see two
// generations in one View. With -race it also shows that nothing published is
// written to.
func TestWholeUpdates(t *testing.T) {
	const writers, updates, readers = 3, 60, 2
	routes := append(makeRoutes(0, 300), makeRoutes(1, 300)...)
	macs := []MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}, {2, 1, 0, 0, 0, 1}}
	peers := []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}

	table := new(Table[next])
	var counter atomic.Int64
	update := func() error {
		return table.Update(func(x *Txn[next]) error {
			h := &next{int(counter.Add(1))}
			for _, vni := range []uint32{1, 2} {
				n := x.Network(vni)
				for i, p := range routes {
					if h.id%7 == 0 && i%3 == 0 {
						n.DeleteRoute(p) // and comes back with another path to it
					}
					n.SetRoute(p, h)
				}
				for _, m := range macs {
					n.SetStation(m, h)
				}
			}
			for _, a := range peers {
				x.SetPeer(a, h)
			}
			if h.id%5 == 0 {
				return errors.New("never to be seen")
			}
			return nil
		})
	}
	if err := update(); err != nil {
		t.Fatal(err)
	}

	done := make(chan struct{})
	var reading, writing sync.WaitGroup
	for range readers {
		reading.Go(func() {
			for last := uint64(0); ; {
				select {
				case <-done:
					return
				default:
				}
				v := table.Load()
				if v.Generation() < last {
					t.Errorf("generation %d after %d", v.Generation(), last)
					return
				}
				last = v.Generation()
				h := v.Peer(peers[0])
				if h.id%5 == 0 || v.Peer(peers[1]) != h {
					t.Errorf("peers of generation %d are mixed or failed", h.id)
					return
				}
				for _, vni := range []uint32{1, 2} {
					n := v.Network(vni)
					for _, p := range routes {
						if r := n.Route(p.Addr()); r != h {
							t.Errorf("route %v is %v in a View of %v", p, r, h)
							return
						}
					}
					for _, m := range macs {
						if s := n.Station(m); s != h {
							t.Errorf("station %x is %v in a View of %v", m, s, h)
							return
						}
					}
				}
			}
		})
	}
	for range writers {
		writing.Go(func() {
			for range updates {
				_ = update()
			}
		})
	}
	writing.Wait()
	close(done)
	reading.Wait()
	if want := uint64(1 + writers*updates - (1+writers*updates)/5); table.Load().Generation() != want {
		t.Errorf("generation %d after all updates, want %d", table.Load().Generation(), want)
	}
}

var million = 1_000_000

func TestMillionRoutes(t *testing.T) {
	if testing.Short() {
		t.Skip("a million routes take seconds")
	}
	for s, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			routes := makeRoutes(s, million)
			table := new(Table[next])
			hops := fill(t, table, routes)
			n := table.Load().Network(1)
			if n.RouteCount() != len(routes) {
				t.Fatalf("%d routes, want %d", n.RouteCount(), len(routes))
			}
			for i, p := range routes {
				if exactly(n, p) != hops[i%len(hops)] {
					t.Fatalf("route %v is %v", p, exactly(n, p))
				}
			}
			// The RIB's own longest match is the oracle: another structure by
			// another author.
			for _, a := range addrsIn(routes, million/5) {
				if want, _ := n.routes.rib.match(a); n.Route(a) != want.h {
					t.Fatalf("route for %v: %v, want %v", a, n.Route(a), want.h)
				}
			}
		})
	}
}

// TestSwap moves ten thousand routes at once and looks at them meanwhile.
func TestSwap(t *testing.T) {
	routes := makeRoutes(0, 10_000)
	table := new(Table[next])
	a, b := &next{1}, &next{2}
	swap := func(h *next) {
		if err := table.Update(func(x *Txn[next]) error {
			for _, p := range routes {
				x.Network(1).SetRoute(p, h)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	swap(a)
	var writing sync.WaitGroup
	var done atomic.Bool
	writing.Go(func() {
		for range 10 {
			swap(b)
			swap(a)
		}
		done.Store(true)
	})
	for !done.Load() {
		n := table.Load().Network(1)
		h := n.Route(routes[0].Addr())
		for _, p := range routes {
			if n.Route(p.Addr()) != h {
				t.Fatalf("route %v is not of the same swap as the first", p)
			}
		}
	}
	writing.Wait()
}

func TestRefusals(t *testing.T) {
	h := &next{}
	p, a := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		want string
		do   func(x *Txn[next])
	}{
		{"route 10.0.0.0/8: it has no next hop", func(x *Txn[next]) { x.Network(1).SetRoute(p, nil) }},
		{"the prefix is missing", func(x *Txn[next]) { x.Network(1).SetRoute(netip.Prefix{}, h) }},
		{"IPv4-mapped", func(x *Txn[next]) { x.Network(1).SetRoute(netip.MustParsePrefix("::ffff:10.0.0.0/104"), h) }},
		{"VNI 16777216 does not exist", func(x *Txn[next]) { x.Network(1<<24).SetRoute(p, h) }},
		{"VNI 16777216 does not exist", func(x *Txn[next]) { x.Network(1<<24).SetStation(MAC{2}, h) }},
		{"station 020000000000: it has no next hop", func(x *Txn[next]) { x.Network(1).SetStation(MAC{2}, nil) }},
		{"peer 192.0.2.1: it has no next hop", func(x *Txn[next]) { x.SetPeer(a, nil) }},
		{"its address is missing", func(x *Txn[next]) { x.SetPeer(netip.Addr{}, h) }},
	} {
		table := new(Table[next])
		err := table.Update(func(x *Txn[next]) error {
			x.SetPeer(a, h)
			c.do(x)
			x.Network(1).SetRoute(p, h)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want one that says %q", err, c.want)
		}
		if v := table.Load(); v.Generation() != 0 || v.Peer(a) != nil || v.Network(1) != nil {
			t.Errorf("%s: something was published", c.want)
		}
	}
}

// TestDeleteNothing: taking away what is not or cannot be there is no error.
func TestDeleteNothing(t *testing.T) {
	table := new(Table[next])
	if err := table.Update(func(x *Txn[next]) error {
		x.DeletePeer(netip.Addr{})
		x.DeletePeer(netip.MustParseAddr("192.0.2.1"))
		x.Network(1).DeleteRoute(netip.Prefix{})
		x.Network(1).DeleteRoute(netip.MustParsePrefix("::ffff:10.0.0.0/104"))
		x.Network(1).DeleteStation(MAC{2})
		x.Network(MaxVNI + 1).DeleteRoute(netip.MustParsePrefix("10.0.0.0/8"))
		return nil
	}); err != nil || table.Load().Network(1) != nil || table.Load().Network(MaxVNI+1) != nil {
		t.Fatalf("error %v, networks %v and %v", err, table.Load().Network(1), table.Load().Network(MaxVNI+1))
	}
}

func TestPanicPublishesNothing(t *testing.T) {
	table := new(Table[next])
	func() {
		defer func() { _ = recover() }()
		_ = table.Update(func(x *Txn[next]) error {
			x.SetPeer(netip.MustParseAddr("192.0.2.1"), &next{})
			panic("no")
		})
	}()
	if table.Load().PeerCount() != 0 {
		t.Fatal("a panicking update was published")
	}
	if err := table.Update(func(*Txn[next]) error { return nil }); err != nil || table.Load().Generation() != 0 {
		t.Fatalf("an update that changes nothing: %v, generation %d", err, table.Load().Generation())
	}
}

func TestKeptTransactionPanics(t *testing.T) {
	var kept *NetworkTxn[next]
	_ = new(Table[next]).Update(func(x *Txn[next]) error { kept = x.Network(1); return nil })
	defer func() {
		if recover() == nil {
			t.Fatal("a transaction could be used after its Update")
		}
	}()
	kept.SetRoute(netip.MustParsePrefix("10.0.0.0/8"), &next{})
}

// TestGrowAndShrink leads the FIB through every change of shape, one route an
// Update, and looks at all of it each time.
func TestGrowAndShrink(t *testing.T) {
	for _, family := range []struct {
		name string
		host int // bits of a whole address
		net  int // bits up to the first byte that at is given
		at   func(b ...byte) netip.Addr
	}{
		{"IPv4", 32, 16, func(b ...byte) netip.Addr { return netip.AddrFrom4([4]byte{10, b[0], b[1], b[2]}) }},
		{"IPv6", 128, 40, func(b ...byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 4: b[0], 9: b[1], 15: b[2]}) }},
	} {
		t.Run(family.name, func(t *testing.T) {
			var steps []netip.Prefix
			for i := range 40 { // a list, then a node that skips bytes
				steps = append(steps, netip.PrefixFrom(family.at(1, 2, byte(7*i)), family.host))
			}
			steps = append(steps,
				netip.PrefixFrom(family.at(200, 0, 0), family.net), // forks above that node
				netip.PrefixFrom(family.at(1, 0, 0), family.net-1), // covers it from there
				netip.PrefixFrom(family.at(0, 0, 0), 0),
			)
			for i := range 40 { // a second node, next to the first
				steps = append(steps, netip.PrefixFrom(family.at(1, 3, byte(i)), family.host))
			}
			for i := range 5 { // and a few beside
				steps = append(steps, netip.PrefixFrom(family.at(9, byte(i), 1), family.host-i))
			}

			var table Table[next]
			o := newOracle()
			do := func(p netip.Prefix, h *next) {
				if err := table.Update(func(x *Txn[next]) error {
					if h == nil {
						x.Network(1).DeleteRoute(p)
						delete(o.routes[1], p.Masked())
					} else {
						x.Network(1).SetRoute(p, h)
						o.setRoute(1, p, h)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				compareView(t, table.Load(), o)
			}
			for i, p := range steps {
				do(p, &next{i})
			}
			for i, p := range steps {
				do(p, &next{-i}) // replaced: no change of shape
			}
			for _, p := range steps {
				do(p, nil)
			}
			if n := table.Load().Network(1); n != nil {
				t.Errorf("a network without routes is left: %v", n)
			}
		})
	}
}

// TestChangeWhileRanging deletes and adds what is being ranged over.
func TestChangeWhileRanging(t *testing.T) {
	table := new(Table[next])
	routes := makeRoutes(0, 500)
	fill(t, table, routes)
	h := &next{-1}
	err := table.Update(func(x *Txn[next]) error {
		n := x.Network(1)
		for _, p := range routes {
			n.SetRoute(p, h) // until changes are made in place
		}
		seen := 0
		last := netip.PrefixFrom(routes[len(routes)-1].Addr(), 30)
		for p := range n.Routes() {
			if p == last {
				t.Errorf("%v was added while ranging and is seen", p)
			}
			n.SetRoute(last, h)
			n.DeleteRoute(p)
			n.SetRoute(netip.PrefixFrom(p.Addr(), 28), h)
			seen++
		}
		if seen != len(routes) {
			t.Errorf("%d routes seen while they were changed, want %d", seen, len(routes))
		}
		n.DeleteRoute(last)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for p, r := range table.Load().Network(1).Routes() {
		if p.Bits() != 28 || r != h {
			t.Fatalf("route %v is %v", p, r)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	table := new(Table[next])
	routes := append(makeRoutes(0, 1000), makeRoutes(1, 1000)...)
	fill(t, table, routes)
	a4, a6, mac := routes[5].Addr(), routes[1500].Addr(), MAC{2}
	if n := testing.AllocsPerRun(100, func() {
		v := table.Load()
		found = v.Network(1).Route(a4)
		found = v.Network(1).Route(a6)
		found = v.Network(1).Station(mac)
		found = v.Network(2).Route(a4)
		found = v.Peer(a4)
	}); n != 0 {
		t.Errorf("%v allocations a packet, want none", n)
	}
}
