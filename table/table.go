package table

import (
	"sync"
	"sync/atomic"
)

// MAC is a station's address. It is an alias so that other packages' own MAC
// types convert without a copy being written out.
type MAC = [6]byte

// A Table holds the present View and lets writers replace it. The zero Table
// is empty and ready. A Table must not be copied.
type Table[H any] struct {
	view  atomic.Pointer[View[H]] // nil until the first Update
	empty View[H]                 // what there is until then; never written

	mu sync.Mutex // held by the one writer; readers never take it
}

// Load returns the present View, never nil. It is one atomic load: take it once
// per batch, so that the whole batch is decided by one state.
func (t *Table[H]) Load() *View[H] {
	if v := t.view.Load(); v != nil {
		return v
	}
	return &t.empty
}

// Update runs fn on a transaction that begins with the present state, and
// publishes what fn has made of it. Nothing at all is published if fn returns
// an error, which Update passes on, if fn panics, or if fn gave the transaction
// something it cannot hold, which Update reports.
//
// Writers are served one after the other. The transaction and everything taken
// from it, but for the next hops, ends with fn; fn must not call Update.
func (t *Table[H]) Update(fn func(*Txn[H]) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := begin(t.Load())
	defer x.end()
	if err := fn(x); err != nil {
		return err
	}
	if x.err != nil {
		return x.err
	}
	if v := x.commit(); v != nil {
		t.view.Store(v)
	}
	return nil
}
