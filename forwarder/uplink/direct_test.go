package uplink

import (
	"net/netip"
	"testing"
)

// TestTellDirect: each change of a way is told once, and a way ends with its peer.
func TestTellDirect(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	told := map[netip.Addr][]*Link{}
	w := New(Config{Direct: func(p netip.Addr, l *Link) { told[p] = append(told[p], l) }})
	l1, l2 := &Link{Device: "eth0", Index: 2, NextHop: [6]byte{2}}, &Link{Device: "eth0", Index: 2, NextHop: [6]byte{3}}
	again := *l1
	for _, next := range []map[netip.Addr]Path{
		{a: {Peer: a}, b: {Peer: b, Link: l1}}, {a: {Peer: a, Link: l1}, b: {Peer: b, Link: &again}}, {a: {Peer: a, Link: l2}}, {a: {Peer: a}},
	} {
		w.tellDirect(next, false)
	}
	for p, want := range map[netip.Addr][]*Link{a: {l1, l2, nil}, b: {l1, nil}} {
		if len(told[p]) != len(want) {
			t.Errorf("%v: told %d times", p, len(told[p]))
			continue
		}
		for i, l := range told[p] {
			if (l == nil) != (want[i] == nil) || l != nil && *l != *want[i] {
				t.Errorf("%v: told %+v, want %+v", p, l, want[i])
			}
		}
	}
	w.tellDirect(map[netip.Addr]Path{a: {Peer: a, Link: l2}}, false)
	w.tellDirect(map[netip.Addr]Path{a: {Peer: a, Link: l2}}, true)
	if n := len(told[a]); n != 5 {
		t.Errorf("peers that are set anew: told %d times", n)
	}
}
