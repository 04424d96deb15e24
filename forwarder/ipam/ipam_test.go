package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func prefixes(list ...string) (ps []netip.Prefix) {
	for _, s := range list {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func addrs(list ...string) (as []netip.Addr) {
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

// clock is a time that moves when it is told to.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newClock() *clock { return &clock{time.Unix(1_000_000, 0)} }

func TestWholeCIDRs(t *testing.T) {
	for _, test := range []struct {
		cidr        string
		n           int
		first, last string
	}{
		{"10.244.1.0/24", 254, "10.244.1.1", "10.244.1.254"},
		{"10.244.1.64/30", 2, "10.244.1.65", "10.244.1.66"},
		{"10.244.1.0/31", 1, "10.244.1.1", "10.244.1.1"},
		{"10.244.1.7/32", 0, "", ""},
		{"255.255.255.0/24", 254, "255.255.255.1", "255.255.255.254"},
		{"10.240.0.0/16", 65534, "10.240.0.1", "10.240.255.254"},
		{"fd00::/120", 255, "fd00::1", "fd00::ff"},
		{"fd00::7/128", 0, "", ""},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:f000/116", 4095, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:f001", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
	} {
		al := New(newClock().now)
		cidr := prefixes(test.cidr)
		family := 4
		if cidr[0].Addr().Is6() {
			family = 6
		}
		seen := map[netip.Addr]bool{}
		var all []netip.Addr
		for i := 0; ; i++ {
			got, err := al.Allocate(Request{Owner: fmt.Sprint(i), CIDRs: cidr, Families: []int{family}})
			if err != nil {
				if !errors.Is(err, ErrFull) {
					t.Errorf("%s: %v", test.cidr, err)
				}
				break
			}
			if seen[got[0]] || !Usable(cidr[0], got[0]) {
				t.Fatalf("%s: %s twice or not usable", test.cidr, got[0])
			}
			seen[got[0]] = true
			all = append(all, got[0])
		}
		if len(all) != test.n || uint64(test.n) != al.Usage(cidr[0]).Size {
			t.Errorf("%s: %d addresses, size %d, want %d", test.cidr, len(all), al.Usage(cidr[0]).Size, test.n)
		} else if test.n > 0 && (all[0].String() != test.first || all[test.n-1].String() != test.last) {
			t.Errorf("%s: from %s to %s", test.cidr, all[0], all[test.n-1])
		}
	}
}

func TestBigPrefixes(t *testing.T) {
	for _, s := range []string{"fd00:1:2:3::/64", "fd00:1:2::/48", "10.0.0.0/8"} {
		al := New(newClock().now)
		cidr := prefixes(s)
		for i := range 10_000 {
			if _, err := al.Allocate(Request{Owner: fmt.Sprint(i), CIDRs: cidr, Families: []int{4 + 2*(1-cidr[0].Addr().BitLen()%128/32)}}); err != nil {
				t.Fatal(s, err)
			}
		}
		if u := al.Usage(cidr[0]); u.Owned != 10_000 || u.Free != u.Size-10_000 {
			t.Errorf("%s: %+v", s, u)
		}
	}
	// The very end of the numbers, and an address beyond what is counted.
	al := New(newClock().now)
	cidr := prefixes("fd00:1:2::/48")
	al.Prepare(cidr)
	if _, err := al.Allocate(Request{Owner: "end", CIDRs: cidr, Requested: addrs("fd00:1:2:0:ffff:ffff:ffff:ffff")}); err != nil {
		t.Error(err)
	}
	al.pools[cidr[0]].cursor = ^uint64(0)
	if got, err := al.Allocate(Request{Owner: "round", CIDRs: cidr, Families: []int{6}}); err != nil || got[0] != addrs("fd00:1:2::1")[0] {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := al.Allocate(Request{Owner: "beyond", CIDRs: cidr, Requested: addrs("fd00:1:2:9::9")}); err != nil {
		t.Error(err)
	}
	if _, err := al.Allocate(Request{Owner: "again", CIDRs: cidr, Requested: addrs("fd00:1:2:9::9")}); err == nil {
		t.Error("an address beyond the pool was given twice")
	}
}

func TestRequests(t *testing.T) {
	al := New(newClock().now)
	cidrs := prefixes("10.244.1.0/24", "fd00::/64")
	if err := al.Take("foreign", addrs("10.244.1.9")); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		r    Request
		want string // addresses, or the error's words
	}{
		"both":           {Request{Families: []int{4, 6}}, "[10.244.1.1 fd00::1]"},
		"v6 first":       {Request{Families: []int{6, 4}}, "[10.244.1.1 fd00::1]"},
		"one requested":  {Request{Families: []int{4, 6}, Requested: addrs("fd00::77")}, "[10.244.1.1 fd00::77]"},
		"two of one":     {Request{Families: []int{4}, Requested: addrs("10.244.1.5", "10.244.1.6")}, "[10.244.1.5 10.244.1.6]"},
		"twice":          {Request{Requested: addrs("10.244.1.5", "10.244.1.5")}, "twice"},
		"taken":          {Request{Families: []int{4, 6}, Requested: addrs("10.244.1.9")}, "in use by foreign"},
		"host's":         {Request{Requested: addrs("10.244.1.0")}, "not one that a pod"},
		"broadcast":      {Request{Requested: addrs("10.244.1.255")}, "not one that a pod"},
		"stranger":       {Request{Requested: addrs("10.9.9.9")}, "not one that a pod"},
		"anycast":        {Request{Requested: addrs("fd00::")}, "not one that a pod"},
		"missing family": {Request{CIDRs: prefixes("10.244.1.0/24"), Families: []int{4, 6}}, "no IPv6 pod CIDR"},
	} {
		if test.r.CIDRs == nil {
			test.r.CIDRs = cidrs
		}
		test.r.Owner = "me"
		fresh := New(newClock().now)
		fresh.Take("foreign", addrs("10.244.1.9"))
		got, err := fresh.Allocate(test.r)
		if said := fmt.Sprint(got, err); err == nil && fmt.Sprint(got) != test.want || err != nil && !contains(said, test.want) {
			t.Errorf("%s: %s, want %s", name, said, test.want)
		}
		if owned, _ := fresh.Snapshot(); err != nil && len(owned) != 1 {
			t.Errorf("%s: refused, and yet %v", name, owned)
		}
	}
}

func contains(s, part string) bool {
	for i := range len(s) - len(part) + 1 {
		if s[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

func TestWaiting(t *testing.T) {
	c := newClock()
	al := New(c.now)
	cidr := prefixes("10.0.0.0/29") // six addresses
	give := func(owner string) string {
		got, err := al.Allocate(Request{Owner: owner, CIDRs: cidr, Families: []int{4}})
		if err != nil {
			return err.Error()
		}
		return got[0].String()
	}
	for i := range 4 {
		give(fmt.Sprint(i))
	}
	al.Release("1") // 10.0.0.2
	c.t = c.t.Add(time.Second)
	al.Release("0") // 10.0.0.1
	if a, b := give("a"), give("b"); a != "10.0.0.5" || b != "10.0.0.6" {
		t.Errorf("%s, %s: waiting addresses were given while others were free", a, b)
	}
	if a := give("c"); a != "10.0.0.2" {
		t.Errorf("%s: not the one that has waited longest", a)
	}
	al.Cancel("c") // never used: free at once
	if a := give("d"); a != "10.0.0.2" {
		t.Errorf("%s: a cancelled one is free", a)
	}
	c.t = c.t.Add(Wait)
	if u := al.Usage(cidr[0]); u != (Usage{6, 5, 0, 1}) {
		t.Errorf("%+v", u)
	}
	if a, b := give("e"), give("f"); a != "10.0.0.1" || !contains(b, "no address is free") {
		t.Errorf("%s, %s", a, b)
	}
	al.Release("nobody")

	// A successor goes on where its predecessor was.
	next := New(c.now)
	next.Prepare(cidr)
	next.Take("x", addrs("10.0.0.1"))
	next.Resume([]Waiting{{addrs("10.0.0.1")[0], c.t}, {addrs("10.0.0.3")[0], c.t.Add(-2 * Wait)}, {addrs("10.0.0.2")[0], c.t.Add(time.Hour)}})
	if _, waiting := next.Snapshot(); len(waiting) != 1 || waiting[0].Address != addrs("10.0.0.2")[0] || waiting[0].Since.After(c.t) {
		t.Errorf("%v", waiting)
	}
	al = next
	if a, b := give("a"), give("b"); a != "10.0.0.3" || b != "10.0.0.4" {
		t.Errorf("%s, %s", a, b)
	}
}

// An address that waited, was given by request and comes back within the same tick of the clock waits at the end, and once.
func TestWaitsOnce(t *testing.T) {
	c := newClock()
	al := New(c.now)
	cidr := prefixes("10.0.0.0/30")
	for _, step := range []struct{ owner, address string }{{"a", "10.0.0.1"}, {"b", "10.0.0.2"}, {"c", "10.0.0.1"}} {
		if _, err := al.Allocate(Request{Owner: step.owner, CIDRs: cidr, Requested: addrs(step.address)}); err != nil {
			t.Fatal(err)
		}
		al.Release(step.owner)
	}
	if _, waiting := al.Snapshot(); len(waiting) != 2 || al.Usage(cidr[0]).Waiting != 2 {
		t.Errorf("%v waits, want each address once", waiting)
	}
	if got, err := al.Allocate(Request{Owner: "d", CIDRs: cidr, Families: []int{4}}); err != nil || got[0] != addrs("10.0.0.2")[0] {
		t.Errorf("%v, %v: want 10.0.0.2, released before 10.0.0.1 came back", got, err)
	}
}

// The oracle is a map and a list; whatever the order of events, both agree on who has what, nothing is given twice, and a
// waiting address is given only when nothing else was free, the oldest first.
func TestOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		al := New(c.now)
		cidr := prefixes(rapid.SampledFrom([]string{"10.0.0.0/28", "10.0.0.0/30", "fd00::/124", "10.0.0.0/31"}).Draw(t, "cidr"))
		family := 4
		if cidr[0].Addr().Is6() {
			family = 6
		}
		var usable []netip.Addr
		for a := cidr[0].Addr(); cidr[0].Contains(a); a = a.Next() {
			if Usable(cidr[0], a) {
				usable = append(usable, a)
			}
		}
		owner := map[netip.Addr]string{}
		since := map[netip.Addr]time.Time{}
		var queue []netip.Addr
		unwait := func(a netip.Addr) {
			delete(since, a)
			queue = slices.DeleteFunc(queue, func(x netip.Addr) bool { return x == a })
		}
		names := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"})
		has := func(n string) bool {
			for _, o := range owner {
				if o == n {
					return true
				}
			}
			return false
		}
		release := func(n string, wait bool) {
			for _, a := range usable {
				if owner[a] == n {
					delete(owner, a)
					if wait {
						since[a] = c.t
						queue = append(queue, a)
					}
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				n := names.Draw(t, "owner")
				got, err := al.Allocate(Request{Owner: n, CIDRs: cidr, Families: []int{family}})
				free := 0
				for _, a := range usable {
					if w, waits := since[a]; owner[a] == "" && (!waits || c.t.Sub(w) >= Wait) {
						free++
					}
				}
				switch {
				case has(n):
					if err == nil {
						t.Fatal("gave to one who has")
					}
				case free == 0 && len(queue) == 0:
					if !errors.Is(err, ErrFull) {
						t.Fatalf("full: %v, %v", got, err)
					}
				default:
					if err != nil {
						t.Fatal(err)
					}
					a := got[0]
					w, waits := since[a]
					if owner[a] != "" || !slices.Contains(usable, a) || free > 0 && waits && c.t.Sub(w) < Wait || free == 0 && a != queue[0] {
						t.Fatalf("gave %s: owner %q, waits %v, free %d, queue %v", a, owner[a], waits, free, queue)
					}
					unwait(a)
					owner[a] = n
				}
			},
			"request": func(t *rapid.T) {
				n, a := names.Draw(t, "owner"), rapid.SampledFrom(usable).Draw(t, "address")
				_, err := al.Allocate(Request{Owner: n, CIDRs: cidr, Requested: []netip.Addr{a}})
				if (err == nil) != (owner[a] == "" && !has(n)) {
					t.Fatalf("%s for %s: %v", a, n, err)
				}
				if err == nil {
					unwait(a)
					owner[a] = n
				}
			},
			"release": func(t *rapid.T) { n := names.Draw(t, "owner"); al.Release(n); release(n, true) },
			"cancel":  func(t *rapid.T) { n := names.Draw(t, "owner"); al.Cancel(n); release(n, false) },
			"later":   func(t *rapid.T) { c.t = c.t.Add(time.Duration(rapid.IntRange(0, 70).Draw(t, "seconds")) * time.Second) },
			"": func(t *rapid.T) {
				owned, waiting := al.Snapshot()
				var left []netip.Addr
				for _, a := range queue {
					if c.t.Sub(since[a]) < Wait {
						left = append(left, a)
					}
				}
				if !slices.EqualFunc(waiting, left, func(w Waiting, a netip.Addr) bool { return w.Address == a }) {
					t.Fatalf("%v waits, want %v", waiting, left)
				}
				if len(owned) != len(owner) {
					t.Fatalf("%v, want %v", owned, owner)
				}
				for a, o := range owner {
					if owned[a] != o {
						t.Fatalf("%s: %q, want %q", a, owned[a], o)
					}
				}
			},
		})
	})
}

func TestConcurrently(t *testing.T) {
	al := New(time.Now)
	cidrs := prefixes("10.0.0.0/26", "fd00::/64")
	var mu sync.Mutex
	held := map[netip.Addr]bool{}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				owner := fmt.Sprint(g, "/", i)
				got, err := al.Allocate(Request{Owner: owner, CIDRs: cidrs, Families: []int{4, 6}})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for _, a := range got {
					if held[a] {
						t.Errorf("%s twice", a)
					}
					held[a] = true
				}
				mu.Unlock()
				runtime.Gosched()
				mu.Lock()
				for _, a := range got {
					delete(held, a)
				}
				mu.Unlock()
				al.Release(owner)
			}
		})
	}
	wg.Wait()
}

func BenchmarkFullSlash16(b *testing.B) {
	al := New(time.Now)
	cidr := prefixes("10.240.0.0/16")
	for i := range 65533 {
		al.Allocate(Request{Owner: fmt.Sprint(i), CIDRs: cidr, Families: []int{4}})
	}
	for b.Loop() {
		if _, err := al.Allocate(Request{Owner: "x", CIDRs: cidr, Families: []int{4}}); err != nil {
			b.Fatal(err)
		}
		al.Cancel("x")
	}
}
