package static

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/penstock-net/penstock/table/feed"
)

func peer(name, address, cidr string) feed.Peer {
	return feed.Peer{Name: name, Address: netip.MustParseAddr(address), PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}
}

func same(a, b []feed.Peer) bool { return slices.EqualFunc(a, b, feed.Peer.Equal) }

var (
	b = peer("b", "192.0.2.2", "10.244.2.0/24")
	c = peer("c", "192.0.2.3", "10.244.3.0/24")
)

func TestRunHandsOverEveryList(t *testing.T) {
	f := New([]feed.Peer{b})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan []feed.Peer, 1)
	refuse := errors.New("refused")
	ended := make(chan error)
	go func() {
		ended <- f.Run(ctx, func(all []feed.Peer) error {
			if len(all) == 0 {
				return refuse
			}
			got <- clone(all)
			all[0].PodCIDRs[0] = netip.Prefix{} // the list is the sink's own
			return nil
		})
	}()
	if first := <-got; !same(first, []feed.Peer{b}) {
		t.Fatalf("the first list is %v", first)
	}
	if err := f.Set([]feed.Peer{b, c}); err != nil {
		t.Fatal(err)
	}
	if second := <-got; !same(second, []feed.Peer{b, c}) {
		t.Fatalf("the second list is %v", second)
	}
	if err := f.Set(nil); !errors.Is(err, refuse) {
		t.Fatalf("Set returned %v for a list that was refused", err)
	}
	if now := f.Peers(); !same(now, []feed.Peer{b, c}) {
		t.Fatalf("after a refused list the feed holds %v", now)
	}
	if err := f.Run(ctx, func([]feed.Peer) error { return nil }); err == nil {
		t.Fatal("a feed ran twice at once")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatalf("Run ended with %v", err)
	}
	if err := f.Set(nil); err != nil || len(f.Peers()) != 0 {
		t.Fatalf("Set after Run: %v, %v", err, f.Peers())
	}
}

func TestRunReturnsRefusalOfFirstList(t *testing.T) {
	refuse := errors.New("refused")
	f := New(nil)
	if err := f.Run(t.Context(), func([]feed.Peer) error { return refuse }); !errors.Is(err, refuse) {
		t.Fatalf("Run returned %v", err)
	}
	// It is not running now, so Set only stores.
	if err := f.Set([]feed.Peer{b}); err != nil {
		t.Fatal(err)
	}
}
