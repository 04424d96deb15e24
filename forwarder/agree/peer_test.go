package agree

import (
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap/native"
)

// world is two nodes and a network between them that a test changes.
type world struct {
	t      *testing.T
	now    time.Duration
	node   [2]*Peer // node[0] is what node 0 knows of node 1
	wanted [2]bool
	usable native.Carrier
	unable [2]native.Carrier // by node: what it cannot send by of these
	pass   func(from int, s Send) bool
	wire   []flying
	sent   map[native.Kind]int
	nonce  uint64
}

type flying struct {
	to int
	at time.Duration
	s  Send
}

const delay = 3 * time.Millisecond

func newWorld(t *testing.T) *world {
	w := &world{t: t, usable: native.TCP | native.UDP, pass: func(int, Send) bool { return true }, sent: map[native.Kind]int{}}
	w.node[0], w.node[1] = w.start(100), w.start(200)
	return w
}

func (w *world) start(instance uint64) *Peer {
	return &Peer{Self: native.Message{Carriers: native.TCP | native.UDP, MinVersion: 1, MaxVersion: 1, From: instance, FirstTag: 0x8000,
		Streams: 2, PieceTCP: 1460, PieceUDP: 1460, Network: 1}, Nonce: func() uint64 { w.nonce++; return w.nonce }}
}

func (w *world) send(from int, out []Send) {
	for _, s := range out {
		w.sent[s.Kind]++
		if s.By != 0 && s.Size != s.Piece(s.By) {
			w.t.Fatalf("a %v of %d bytes by %v is not full size", s.Kind, s.Size, s.By)
		}
		if w.pass(from, s) {
			w.wire = append(w.wire, flying{1 - from, w.now + delay, s})
		}
	}
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	for end := w.now + d; w.now < end; w.now += time.Millisecond {
		var later []flying
		wire := w.wire
		w.wire = nil
		for _, f := range wire {
			if f.at > w.now {
				later = append(later, f)
				continue
			}
			w.send(f.to, w.node[f.to].Receive(w.now, f.s.Message, f.s.By, nil))
		}
		w.wire = append(later, w.wire...)
		if w.now%(50*time.Millisecond) == 0 {
			for i := range w.node {
				w.send(i, w.node[i].Tick(w.now, w.wanted[i], w.usable&^w.unable[i], nil))
			}
		}
	}
}

func (w *world) way(i int) native.Carrier { return w.node[i].Way(w.now).Carrier }

func (w *world) want(i int, c native.Carrier) {
	w.t.Helper()
	if got := w.way(i); got != c {
		w.t.Errorf("at %v node %d goes by %v, want %v: %s", w.now, i, got, c, w.node[i].Why(w.now))
	}
}

// Without traffic nothing is sent; with it the best carrier is used within half a second, in the direction that has some.
func TestAgree(t *testing.T) {
	w := newWorld(t)
	w.run(5 * time.Second)
	if len(w.sent) != 0 || !w.node[0].Idle(w.now) {
		t.Errorf("sent without traffic: %v", w.sent)
	}
	w.wanted[0] = true
	w.run(500 * time.Millisecond)
	w.want(0, native.TCP)
	w.want(1, 0)
	if k, _ := w.node[1].Known(); k.From != 100 {
		t.Error("the peer that is sent to does not know the sender: it would drop its streams")
	}
	w.wanted[0] = false
	w.run(5 * time.Second)
	w.want(0, 0)
	before := w.sent[native.Probe] + w.sent[native.Hello]
	w.run(5 * time.Second)
	if got := w.sent[native.Probe] + w.sent[native.Hello]; got != before || !w.node[0].Idle(w.now) {
		t.Errorf("%d messages while there is no traffic", got-before)
	}
	w.wanted[0] = true
	w.run(500 * time.Millisecond)
	w.want(0, native.TCP)
}

// A carrier that dies is left within a second, for the other one or the encapsulation; one that dies often has to hold longer.
func TestFallback(t *testing.T) {
	w := newWorld(t)
	w.wanted = [2]bool{true, true}
	w.run(time.Second)
	w.want(0, native.TCP)
	noTCP := func(_ int, s Send) bool { return s.By != native.TCP }
	w.pass = noTCP
	w.run(950 * time.Millisecond)
	w.want(0, native.UDP)
	w.want(1, native.UDP)
	// One direction is enough to lose a carrier, also of other size.
	w.pass = func(from int, s Send) bool { return from == 1 || s.By != native.UDP }
	w.run(950 * time.Millisecond)
	w.want(1, native.TCP)
	w.pass = func(_ int, s Send) bool { return s.Size <= 1400 }
	w.run(950 * time.Millisecond)
	w.want(0, 0)
	w.want(1, 0)
	w.pass = func(int, Send) bool { return true }
	w.run(500 * time.Millisecond)
	w.want(0, 0) // not again at once
	w.run(3 * time.Second)
	w.want(0, native.TCP)
	w.usable = native.UDP
	w.run(100 * time.Millisecond)
	w.want(0, native.UDP)
}

// A peer that starts anew is another one as soon as it has said so, and within a second in any case.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.wanted[0] = true
	w.run(time.Second)
	_, before := w.node[0].Known()
	w.node[1] = w.start(201)
	w.run(900 * time.Millisecond)
	w.want(0, native.TCP)
	if k, g := w.node[0].Known(); k.From != 201 || g == before {
		t.Errorf("known as %d, generation %d", k.From, g)
	}
	if k, _ := w.node[1].Known(); k.From != 100 {
		t.Error("the new one does not know us")
	}
}

// A peer that does not speak it costs a hello now and then.
func TestSilent(t *testing.T) {
	w := newWorld(t)
	w.wanted[0] = true
	w.run(time.Second)
	w.pass = func(int, Send) bool { return false } // a flannel node took the address
	w.run(time.Second)
	w.want(0, 0)
	w.run(10 * time.Second)
	before := w.sent[native.Hello]
	clear(w.sent)
	w.run(10 * time.Minute)
	if n := w.sent[native.Hello]; n > 25 || w.sent[native.Probe] > 0 {
		t.Errorf("%d hellos and %d probes in ten minutes (%d before)", n, w.sent[native.Probe], before)
	}
	w.pass = func(int, Send) bool { return true }
	w.run(61 * time.Second)
	w.want(0, native.TCP)
}

// A peer that answers no probe of ours, as none is sent or none gets through, is not forgotten while it sends some itself, and where nobody can send any
// it is not taken for silent: to forget it would cost every burst of it that comes meanwhile.
func TestRemembered(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world)
		way    native.Carrier
	}{
		"it can send by no carrier":       {func(w *world) { w.unable[1] = native.TCP | native.UDP }, native.TCP},
		"its probes are lost":             {func(w *world) { w.pass = func(from int, s Send) bool { return from == 0 || s.Kind != native.Probe } }, native.TCP},
		"neither of them can send by one": {func(w *world) { w.usable = 0 }, 0},
		"one is lost, one it has not": {func(w *world) {
			w.unable[1] = native.TCP
			w.pass = func(_ int, s Send) bool { return s.By != native.UDP }
		}, native.TCP},
	} {
		w := newWorld(t)
		w.wanted = [2]bool{true, true}
		w.run(time.Second)
		c.change(w)
		w.run(time.Second)
		_, before := w.node[1].Known()
		hellos := w.sent[native.Hello]
		for range 20 {
			w.run(time.Second)
			if k, g := w.node[1].Known(); k.From != 100 || g != before || w.way(0) != c.way {
				t.Fatalf("%s: at %v known as %d, generation %d, was %d; the other goes by %v", name, w.now, k.From, g, before, w.way(0))
			}
		}
		if n := w.sent[native.Hello] - hellos; n > 0 {
			t.Errorf("%s: %d hellos", name, n)
		}
	}
}

// What a stranger at the peer's address says without having seen our nonces changes nothing, and answers are bounded.
func TestForged(t *testing.T) {
	w := newWorld(t)
	w.wanted = [2]bool{true, true}
	w.run(time.Second)
	forged := w.start(666).Self
	answers := 0
	for range 1000 {
		for _, k := range []native.Kind{native.Hello, native.Welcome, native.Probe, native.Echo, native.Passed} {
			forged.Kind, forged.Nonce, forged.To = k, 12345, 100
			answers += len(w.node[0].Receive(w.now, forged, native.UDP, nil))
		}
	}
	if k, _ := w.node[0].Known(); k.From != 200 || answers > 1 {
		t.Errorf("known as %d after forged messages, %d answers", k.From, answers)
	}
	w.run(time.Second)
	w.want(0, native.TCP)
	old := w.start(200).Self
	old.Kind, old.To, old.Nonce = native.Echo, 100, 0
	w.node[0].Receive(w.now, old, native.TCP, nil)
	w.pass = func(int, Send) bool { return false }
	for range 20 {
		w.run(50 * time.Millisecond)
		w.node[0].Receive(w.now, old, native.TCP, nil)
	}
	w.want(0, 0)
}

// Nodes of different networks, or without a common carrier, stay with the encapsulation and say why.
func TestUnlike(t *testing.T) {
	for name, change := range map[string]func(*world){
		"network":  func(w *world) { w.node[1].Self.Network = 2 },
		"carriers": func(w *world) { w.node[1].Self.Carriers, w.node[0].Self.Carriers = native.UDP, native.TCP },
		"unusable": func(w *world) { w.usable = 0 },
	} {
		w := newWorld(t)
		change(w)
		w.wanted = [2]bool{true, true}
		w.run(2 * time.Second)
		if w.way(0) != 0 || w.node[0].Why(w.now) == "" {
			t.Errorf("%s: by %v, why %q", name, w.way(0), w.node[0].Why(w.now))
		}
	}
}

// Of two proven carriers the preferred one is used, also when the preference changes, and the other one when it fails.
func TestPrefer(t *testing.T) {
	w := newWorld(t)
	w.wanted = [2]bool{true, true}
	w.node[0].Prefer, w.node[1].Prefer = native.UDP, native.TCP
	w.run(time.Second)
	w.want(0, native.UDP)
	w.want(1, native.TCP)
	w.node[1].Prefer = native.UDP
	w.want(1, native.UDP)
	w.pass = func(_ int, s Send) bool { return s.By != native.UDP }
	w.run(950 * time.Millisecond)
	w.want(0, native.TCP)
	if w.node[0].Alive(native.UDP, w.now) || !w.node[0].Alive(native.TCP, w.now) {
		t.Error("the dead one is taken for alive")
	}
}
