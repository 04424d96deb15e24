package table

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// next is the tests' next hop. Its Clone would show if the tree ever copied
// what the caller gave it.
type next struct{ id int }

func (*next) Clone() *next { panic("a next hop was cloned") }

// oracle is the specification: maps, and a search through all of it.
type oracle struct {
	routes   map[uint32]map[netip.Prefix]*next
	stations map[uint32]map[MAC]*next
	peers    map[netip.Addr]*next
}

func newOracle() *oracle {
	return &oracle{map[uint32]map[netip.Prefix]*next{}, map[uint32]map[MAC]*next{}, map[netip.Addr]*next{}}
}

func (o *oracle) clone() *oracle {
	c := newOracle()
	for vni, m := range o.routes {
		c.routes[vni] = maps.Clone(m)
	}
	for vni, m := range o.stations {
		c.stations[vni] = maps.Clone(m)
	}
	c.peers = maps.Clone(o.peers)
	return c
}

func (o *oracle) setRoute(vni uint32, p netip.Prefix, h *next) {
	if o.routes[vni] == nil {
		o.routes[vni] = map[netip.Prefix]*next{}
	}
	o.routes[vni][p.Masked()] = h
}

func (o *oracle) setStation(vni uint32, m MAC, h *next) {
	if o.stations[vni] == nil {
		o.stations[vni] = map[MAC]*next{}
	}
	o.stations[vni][m] = h
}

func (o *oracle) route(vni uint32, a netip.Addr) (h *next) {
	bits := -1
	for p, r := range o.routes[vni] {
		if p.Bits() > bits && p.Contains(a) {
			bits, h = p.Bits(), r
		}
	}
	return h
}

func (o *oracle) vnis() []uint32 {
	all := map[uint32]bool{}
	for vni, m := range o.routes {
		if len(m) > 0 {
			all[vni] = true
		}
	}
	for vni, m := range o.stations {
		if len(m) > 0 {
			all[vni] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// bytes that make prefixes and addresses crowd together, so that nodes fork,
// lists overflow and everything covers everything.
var crowded = rapid.SampledFrom([]byte{0, 0, 0, 0, 1, 1, 2, 3, 127, 128, 254, 255})

func drawAddr(t *rapid.T) netip.Addr {
	tail := rapid.Byte()
	if rapid.Bool().Draw(t, "IPv4") {
		b := [4]byte{10, crowded.Draw(t, "b1"), crowded.Draw(t, "b2"), tail.Draw(t, "b3")}
		if rapid.IntRange(0, 9).Draw(t, "elsewhere") == 0 {
			b[0] = crowded.Draw(t, "b0")
		}
		return netip.AddrFrom4(b)
	}
	b := [16]byte{0: 0xfd, 15: tail.Draw(t, "b15")}
	for _, i := range []int{1, 5, 7, 8, 14} {
		b[i] = crowded.Draw(t, "b")
	}
	return netip.AddrFrom16(b)
}

func drawPrefix(t *rapid.T) netip.Prefix {
	a := drawAddr(t)
	bits := a.BitLen()
	switch rapid.IntRange(0, 3).Draw(t, "length") {
	case 0:
		bits = rapid.IntRange(0, bits).Draw(t, "bits")
	case 1:
		bits -= rapid.IntRange(0, 9).Draw(t, "bits")
	case 2:
		bits -= 8 * rapid.IntRange(0, 2).Draw(t, "bytes")
	}
	return netip.PrefixFrom(a, bits)
}

func drawMAC(t *rapid.T) MAC {
	return MAC{2, 0, crowded.Draw(t, "m2"), 0, 0, rapid.Byte().Draw(t, "m5")}
}

// change does the same random thing to both.
func changeBoth(t *rapid.T, x *Txn[next], o *oracle, id *int) {
	vni := rapid.SampledFrom([]uint32{0, 1, 7, MaxVNI}).Draw(t, "VNI")
	*id++
	h := &next{*id}
	n := x.Network(vni)
	switch rapid.IntRange(0, 19).Draw(t, "change") {
	default:
		p := drawPrefix(t)
		n.SetRoute(p, h)
		o.setRoute(vni, p, h)
	case 8, 9, 10, 11:
		// One that is there, if there is one: chance alone rarely hits.
		p := drawPrefix(t)
		if all := slices.SortedFunc(maps.Keys(o.routes[vni]), netip.Prefix.Compare); len(all) > 0 {
			p = rapid.SampledFrom(all).Draw(t, "route")
		}
		n.DeleteRoute(p)
		delete(o.routes[vni], p.Masked())
	case 12:
		// Many at once, so that nodes turn into lists again.
		p := drawPrefix(t).Masked()
		keep := rapid.IntRange(0, 12).Draw(t, "keep")
		for q := range n.Routes() {
			if p.Contains(q.Addr()) && p.Bits() <= q.Bits() {
				if keep--; keep >= 0 {
					continue
				}
				n.DeleteRoute(q)
				delete(o.routes[vni], q)
			}
		}
	case 13, 14:
		for range rapid.IntRange(1, 9).Draw(t, "stations") {
			m := drawMAC(t)
			n.SetStation(m, h)
			o.setStation(vni, m, h)
		}
	case 15:
		m := drawMAC(t)
		n.DeleteStation(m)
		delete(o.stations[vni], m)
	case 16, 17:
		a := drawAddr(t)
		x.SetPeer(a, h)
		o.peers[a] = h
	case 18:
		a := drawAddr(t)
		x.DeletePeer(a)
		delete(o.peers, a)
	case 19:
		if rapid.IntRange(0, 9).Draw(t, "network") == 0 {
			for p := range n.Routes() {
				n.DeleteRoute(p)
			}
			for m := range n.Stations() {
				n.DeleteStation(m)
			}
			delete(o.routes, vni)
			delete(o.stations, vni)
		}
	}
}

// TestOracle does random transactions, some of which fail, and compares all
// that a View and a Txn say with the oracle; a View taken earlier must still say
// what was true then.
func TestOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var table Table[next]
		o := newOracle()
		id := 0
		old, was := table.Load(), o.clone()
		for range rapid.IntRange(1, 8).Draw(t, "updates") {
			before, pending := table.Load(), o.clone()
			fail := rapid.IntRange(0, 4).Draw(t, "fail") == 0
			failed := errors.New("changed my mind")
			err := table.Update(func(x *Txn[next]) error {
				for range rapid.IntRange(0, 60).Draw(t, "changes") {
					changeBoth(t, x, pending, &id)
				}
				comparePending(t, x, pending)
				if fail {
					return failed
				}
				return nil
			})
			if fail {
				if !errors.Is(err, failed) || table.Load() != before {
					t.Fatalf("a failed update: error %v, view replaced: %v", err, table.Load() != before)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				o = pending
			}
			compareView(t, table.Load(), o)
			if rapid.Bool().Draw(t, "keep") {
				old, was = table.Load(), o.clone()
			}
		}
		compareView(t, old, was)
	})
}

// fataler is a *testing.T or a *rapid.T.
type fataler interface{ Fatalf(string, ...any) }

// probes are addresses at and next to the borders of every route.
func probes(t fataler, routes map[netip.Prefix]*next) (all []netip.Addr) {
	for p := range routes {
		first, last := p.Addr(), lastOf(p)
		all = append(all, first, last, first.Prev(), last.Next())
	}
	if t, ok := t.(*rapid.T); ok {
		for range 10 {
			all = append(all, drawAddr(t))
		}
	}
	return append(all, netip.Addr{}, netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fd00::1%eth0"))
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func compareView(t fataler, v *View[next], o *oracle) {
	var vnis []uint32
	for n := range v.Networks() {
		vnis = append(vnis, n.VNI())
	}
	if !slices.Equal(vnis, o.vnis()) {
		t.Fatalf("networks %v, want %v", vnis, o.vnis())
	}
	for _, vni := range []uint32{0, 1, 2, 7, MaxVNI, MaxVNI + 1} {
		n := v.Network(vni)
		if (n != nil) != slices.Contains(vnis, vni) {
			t.Fatalf("network %d: %v", vni, n)
		}
		compareNetwork(t, n, o, vni)
		if n != nil {
			checkFIB(t, &n.routes)
			checkFIB(t, &n.stations)
		}
	}
	comparePeers(t, maps.Collect(v.Peers()), v.Peer, o)
	checkFIB(t, &v.peers)
	if v.PeerCount() != len(o.peers) {
		t.Fatalf("%d peers, want %d", v.PeerCount(), len(o.peers))
	}
}

func comparePending(t fataler, x *Txn[next], o *oracle) {
	var vnis []uint32
	for n := range x.Networks() {
		vnis = append(vnis, n.VNI())
		compareNetwork(t, n, o, n.VNI())
	}
	if !slices.Equal(vnis, o.vnis()) {
		t.Fatalf("pending networks %v, want %v", vnis, o.vnis())
	}
	comparePeers(t, maps.Collect(x.Peers()), x.Peer, o)
}

func comparePeers(t fataler, all map[netip.Addr]*next, peer func(netip.Addr) *next, o *oracle) {
	if !maps.Equal(all, o.peers) {
		t.Fatalf("peers %v, want %v", all, o.peers)
	}
	for a, h := range o.peers {
		if peer(a) != h || peer(a.Next()) != o.peers[a.Next()] {
			t.Fatalf("peer %v or the next: not what was set", a)
		}
		if a.Is4() && peer(netip.AddrFrom16(a.As16())) != h {
			t.Fatalf("peer %v is not found as IPv4-mapped", a)
		}
	}
	if peer(netip.Addr{}) != nil {
		t.Fatalf("there is a peer without address")
	}
}

// network is what Network and NetworkTxn have in common.
type network interface {
	Route(netip.Addr) *next
	Station(MAC) *next
	RouteCount() int
	StationCount() int
}

// exactly is the next hop that the RIB has for exactly this prefix, or nil.
func exactly(n network, p netip.Prefix) *next {
	var routes *index[next]
	switch n := n.(type) {
	case *Network[next]:
		routes = &n.routes
	case *NetworkTxn[next]:
		routes = &n.routes
	}
	r, _ := routes.rib.exact(p)
	return r.h
}

func compareNetwork(t fataler, n network, o *oracle, vni uint32) {
	routes, stations := o.routes[vni], o.stations[vni]
	if n.RouteCount() != len(routes) || n.StationCount() != len(stations) {
		t.Fatalf("VNI %d: %d routes and %d stations, want %d and %d", vni, n.RouteCount(), n.StationCount(), len(routes), len(stations))
	}
	for _, a := range probes(t, routes) {
		if got, want := n.Route(a), o.route(vni, a.WithZone("")); got != want {
			t.Fatalf("VNI %d: route for %v: %v, want %v", vni, a, got, want)
		}
	}
	for p, h := range routes {
		if exactly(n, p) != h {
			t.Fatalf("VNI %d: route %v is not what was set", vni, p)
		}
	}
	for m, h := range stations {
		m2 := m
		m2[5] ^= 1
		if n.Station(m) != h || n.Station(m2) != stations[m2] {
			t.Fatalf("VNI %d: station %x or %x is not what was set", vni, m, m2)
		}
	}
	var ps []netip.Prefix
	var ms []MAC
	switch n := n.(type) {
	case *Network[next]:
		ps, ms = keys(t, n.Routes(), routes), keys(t, n.Stations(), stations)
	case *NetworkTxn[next]:
		ps, ms = keys(t, n.Routes(), routes), keys(t, n.Stations(), stations)
	}
	if len(ps) != len(routes) || !slices.IsSortedFunc(ps, netip.Prefix.Compare) {
		t.Fatalf("VNI %d: routes are not all there or not sorted: %v", vni, ps)
	}
	if len(ms) != len(stations) || !slices.IsSortedFunc(ms, func(a, b MAC) int { return cmp.Compare(string(a[:]), string(b[:])) }) {
		t.Fatalf("VNI %d: stations are not all there or not sorted: %x", vni, ms)
	}
}

func keys[K comparable](t fataler, all func(func(K, *next) bool), want map[K]*next) (ks []K) {
	for k, h := range all {
		if want[k] != h {
			t.Fatalf("%v is %v in the iteration, want %v", k, h, want[k])
		}
		ks = append(ks, k)
	}
	return ks
}

// checkFIB checks what holds inside: counts, masks, and that lists and nodes have
// the sizes that their memory is reckoned with.
func checkFIB[H any](t fataler, x *index[H]) {
	total := 0
	for p := range x.rib.sorted() {
		if p.Bits() > 0 {
			total++
		}
	}
	if got := checkNode(t, x.fib.v4, 0) + checkNode(t, x.fib.v6, 0); got != total {
		t.Fatalf("the FIB counts %d routes, the RIB %d", got, total)
	}
}

// checkNode returns how many routes n says it has.
func checkNode[H any](t fataler, n *node[H], seen int) int {
	if n == nil {
		return 0
	}
	for i := range 16 {
		want := byte(0)
		if seen <= i && i < int(n.depth) {
			want = 0xff
		}
		if n.mask.at(i) != want || i >= int(n.depth) && n.key.at(i) != 0 {
			t.Fatalf("a node at byte %d below %d has key %x and mask %x", n.depth, seen, n.key, n.mask)
		}
	}
	used := 0
	if n.kids != nil {
		for _, k := range n.kids {
			length := k.few.length()
			if k.node != nil && (k.few != nil || k.node.count <= fewLeast || k.node.depth <= n.depth) || length > fewMost {
				t.Fatalf("a kid with %d listed routes and a node of %d", length, k.node.count)
			}
			checkNode(t, k.node, int(n.depth)+1)
			if k != (kid[H]{}) {
				used++
			}
		}
		if used == 0 || used != int(n.used) {
			t.Fatalf("%d kids in use, %d counted", used, n.used)
		}
	}
	return int(n.count)
}
