package forwarder

import (
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestWaiting: after a batch a worker asks again before it blocks, after a frame
// on its own it does not, and with nothing to do it does not turn at all.
func TestWaiting(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	w := r.f.workers[0]
	var events [4]ring.Event
	blocks := func(limit int) bool {
		was := w.attention
		for range 10 { // a signal of Go's runtime may end a wait
			w.attention = was
			begin := time.Now()
			if n, err := w.next(events[:], limit); n != 0 || err != nil {
				t.Fatalf("%d events, %v", n, err)
			}
			if time.Since(begin) >= time.Millisecond {
				return true
			}
		}
		return false
	}
	for _, c := range []struct {
		what            string
		frames, sources int
		polls           int
	}{
		{"a batch", 64, 1, maxPatience},
		{"a frame", 1, 1, 0},
		{"few frames of many pods", 2 * batchOf, 3, 0},
		{"batches of many pods", 3 * batchOf, 3, maxPatience},
	} {
		w.attention.frames = c.frames
		w.attention.turned(c.sources)
		for i := range c.polls {
			if before := w.attention.patience; before != c.polls-i {
				t.Errorf("%s: patience %d after %d polls", c.what, before, i)
			}
			w.next(events[:], -1)
			w.attention.turned(0)
		}
		if w.attention.patience != 0 || !blocks(-1) || !w.attention.dozed {
			t.Errorf("%s: it does not doze then: %+v", c.what, w.attention)
		}
		w.attention.turned(0)
		if !blocks(5) {
			t.Errorf("%s: it does not sleep after its doze", c.what)
		}
	}
	w.attention.frames = 1
	w.attention.turned(1)
	if blocks(0) {
		t.Error("something is due, and it blocks")
	}
	if w.attention.dozed {
		t.Error("it dozes past what is due")
	}
}

// TestIdleWorker: a worker that dozed once has no timer any more, and a frame or a command finds it at once.
func TestIdleWorker(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	q := r.attach(AttachTUN, "tun0", podA1)
	r.f.Start()
	for range 3 {
		r.settleDown()
		before, _ := r.f.Progress()
		time.Sleep(50 * time.Millisecond)
		if after, asleep := r.f.Progress(); after[0] != before[0] || !asleep[0] {
			t.Errorf("idle for 50 ms, it turned %d times; asleep: %v", after[0]-before[0], asleep[0])
		}
		q.Inject(ring.FakePacket{Data: []byte{0x45}})
		begin := time.Now()
		if err := r.f.onWorker(0, func(*worker) error { return nil }); err != nil || time.Since(begin) > 5*time.Second {
			t.Errorf("a command took %v: %v", time.Since(begin), err)
		}
		r.settleDown()
		if after, _ := r.f.Progress(); after[0] == before[0] {
			t.Error("a frame did not wake it")
		}
	}
}
