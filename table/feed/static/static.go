// Package static is the feed of peers that somebody has written down: those of
// the configuration file.
package static

import (
	"context"
	"errors"
	"sync"

	"github.com/penstock-net/penstock/table/feed"
)

// A Feed holds a list of peers that is replaced as a whole. It is safe for use
// by several goroutines.
type Feed struct {
	mu    sync.Mutex // held while the sink works, so that calls do not overlap
	peers []feed.Peer
	sink  func([]feed.Peer) error // nil unless Run is running
}

var _ feed.Feed = (*Feed)(nil)

// New returns a feed of these peers, which it copies.
func New(peers []feed.Peer) *Feed { return &Feed{peers: clone(peers)} }

// Run hands over the list and stays until ctx ends; lists given to Set in the
// meantime are handed over by Set. It returns sink's error for the first list.
func (f *Feed) Run(ctx context.Context, sink func([]feed.Peer) error) error {
	if err := f.start(sink); err != nil {
		return err
	}
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sink = nil
	return nil
}

func (f *Feed) start(sink func([]feed.Peer) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sink != nil {
		return errors.New("penstock: the static feed runs already: run one feed once")
	}
	if err := sink(clone(f.peers)); err != nil {
		return err
	}
	f.sink = sink
	return nil
}

// Set replaces the list by a copy of peers. While Run is running the sink gets
// it before Set returns; if the sink refuses it, Set returns the sink's error and
// the list before stays. The sink must not call Set.
func (f *Feed) Set(peers []feed.Peer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sink != nil {
		if err := f.sink(clone(peers)); err != nil {
			return err
		}
	}
	f.peers = clone(peers)
	return nil
}

// Peers returns a copy of the list that holds.
func (f *Feed) Peers() []feed.Peer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return clone(f.peers)
}

func clone(peers []feed.Peer) []feed.Peer {
	all := make([]feed.Peer, len(peers))
	for i, p := range peers {
		all[i] = p.Clone()
	}
	return all
}
