package forwarder

import (
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestAttention: what a worker does behind a turn depends on how long it waited before it, and on who else wants its core.
func TestAttention(t *testing.T) {
	const gap, soon = int64(askFor), int64(askFor) / 2
	type step struct {
		wait int64 // ns until packets come
		hold int64 // ns that others keep the core each time it is handed on
		asks bool  // behind the turn that these packets make
	}
	for _, c := range []struct {
		what  string
		off   bool
		steps []step
	}{
		{"seldom", false, []step{{gap, 0, false}, {100 * gap, 0, false}}},
		{"often", false, []step{{gap, 0, false}, {soon, 0, true}, {soon, 0, true}}},
		{"often, then not", false, []step{{soon, 0, true}, {2 * gap, 0, false}, {soon, 0, true}}},
		{"others take the core for less than a time slice", false, []step{{soon, 0, true}, {soon, contested, false}, {soon, 0, true}}},
		{"others need the core", false, []step{{soon, 0, true}, {soon, contested + 1, false}, {soon, 0, false}, {askRest, 0, false}, {soon, 0, true}}},
		{"switched off", true, []step{{soon, 0, false}, {soon, 0, false}}},
	} {
		s, now := attention{used: !c.off}, int64(1e9)
		s.turned(now)
		for i, st := range c.steps {
			if st.hold > 0 {
				s.vain(now, now+st.hold)
				now += st.hold
			}
			now += st.wait
			s.came(now)
			s.turned(now)
			if s.until != 0 != st.asks || st.asks && s.until != now+askFor {
				t.Errorf("%s, step %d: it asks for %d ns, %v was expected", c.what, i, max(0, s.until-now), st.asks)
			}
		}
	}

	s := attention{used: true, short: true}
	s.turned(0)
	for now := int64(10e3); s.until != 0; now += 10e3 {
		if took := s.vain(now-10e3, now); took != 10e3 || now > askFor {
			t.Fatalf("at %d ns it has asked for %d and goes on", now, took)
		}
	}
	if s.rest != 0 {
		t.Error("it asked to the end, and takes the core for contested")
	}
}

// TestWaiting: a worker that asks does not block, then it dozes, then it sleeps, and not past what is due.
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
	w.attention = attention{used: true, short: true}
	w.attention.turned(w.clock())
	for n := 0; w.attention.until != 0; n++ {
		if w.next(events[:], -1); w.attention.dozed || n > 1e6 {
			t.Fatalf("asked %d times: %+v", n, w.attention)
		}
	}
	if w.tally.asking == 0 {
		t.Error("it has asked, and counts no time")
	}
	if !blocks(-1) || !w.attention.dozed {
		t.Errorf("it does not doze then: %+v", w.attention)
	}
	if !blocks(5) {
		t.Error("it does not sleep after its doze")
	}
	w.attention.used = false
	w.attention.turned(w.clock())
	if blocks(0) {
		t.Error("something is due, and it blocks")
	}
	if w.attention.dozed {
		t.Error("it dozes past what is due")
	}
}

// TestAsking: packets that come at short intervals find a worker that asks, one that comes alone one that sleeps.
func TestAsking(t *testing.T) {
	s := testSettings(encap.KindVXLAN)
	for _, s.Polling = range []bool{true, false} {
		r := newRig(t, s)
		q := r.attach(AttachTUN, "tun0", podA1)
		r.f.Start()
		asked := func() time.Duration { // counters follow with the next packet
			q.Inject(ring.FakePacket{Data: []byte{0x45}})
			r.settleDown()
			return r.f.Counters().Asking
		}
		// A worker that a busy machine has held up finds two of them at once, so that five in a row are looked for.
		before := asked()
		for alone, tries := 0, 0; alone < 5; tries++ {
			time.Sleep(5 * time.Millisecond)
			now := asked()
			if alone++; now != before {
				alone, before = 0, now
			}
			if tries == 500 {
				t.Fatalf("polling %v: lone packets, and it asked for %v", s.Polling, now)
			}
		}
		for end := time.Now().Add(20 * time.Second); s.Polling && asked() == before; {
			for range 200 {
				q.Inject(ring.FakePacket{Data: []byte{0x45}})
			}
			if time.Now().After(end) {
				t.Fatal("200 packets at once, again and again, and it never asks")
			}
		}
		if !s.Polling {
			for range 2000 {
				q.Inject(ring.FakePacket{Data: []byte{0x45}})
			}
			if n := asked(); n != 0 {
				t.Errorf("polling is off, and it asked for %v", n)
			}
		}
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
