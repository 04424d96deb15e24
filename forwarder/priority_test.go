package forwarder

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestRank: what a worker has seen decides where it stands, and a load near the
// border does not change it to and fro.
func TestRank(t *testing.T) {
	const span = 10e6 // ns, a hundredth of a second
	even, first := ring.PriorityEven, ring.PriorityFirst
	for _, c := range []struct {
		what                 string
		was                  ring.Priority
		loose, stream, bytes int
		want                 ring.Priority
	}{
		{"nothing", first, 0, 0, 0, first},
		{"requests", first, 100, 100, 100 * 60, first},
		{"a flood", first, 300, 0, 0, even},
		{"fewer, of a flood", even, 151, 0, 0, even},
		{"the same anew", first, 151, 0, 0, first},
		{"a flood's end", even, 149, 0, 0, first},
		{"superframes and their acknowledgements", even, 0, 60, 20 * 65000, first},
		{"segments, cut on their way, and their acknowledgements", even, 0, 3000, 2000 * 1400, first},
		{"a flood of small TCP packets", first, 0, 5000, 5000 * 60, even},
		{"bulk beside a flood", first, 400, 60, 20 * 65000, even},
	} {
		s := standing{now: c.was, loose: c.loose, stream: c.stream, bytes: c.bytes}
		if got := s.rank(span); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// TestRanked: packets of both directions count, what is dropped as well, big datagrams for more than one; the thread's
// priority changes once a span at most, is counted, and a kernel that refuses is not asked again.
func TestRanked(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.attach(AttachTUN, "tun0", podA1)
	w := r.f.workers[0]
	var asked []ring.Priority
	var refusal error
	r.f.env.setPriority = func(_ int, p ring.Priority) error {
		asked = append(asked, p)
		return refusal
	}
	w.standing = standing{used: true, now: ring.PriorityFirst}
	r.f.first.Store(1)
	// seen is what the worker makes of five turns in a span, with so many of both packets in each.
	seen := func(packets int, out, in []byte) []ring.Priority {
		asked = nil
		w.begin()
		w.standing.begun = w.nanos
		for i := range 5 {
			for range packets {
				if out != nil {
					pod.Inject(ring.FakePacket{Data: append([]byte(nil), out...)})
				}
				if in != nil {
					r.udp[0].Inject(ring.FakeDatagram{Data: append([]byte(nil), in...), Addr: netip.AddrPortFrom(nodeB, 5555)})
				}
			}
			r.turn()
			if w.nanos = w.standing.begun + int64(i+1)*rankSpan/5; len(asked) > 0 {
				t.Errorf("%v in turn %d", asked, i)
			}
			w.judgeStanding()
		}
		return asked
	}
	even, first := []ring.Priority{ring.PriorityEven}, []ring.Priority{ring.PriorityFirst}
	for _, c := range []struct {
		what    string
		packets int
		out, in []byte
		want    []ring.Priority
	}{
		{"bulk from a pod", 60, tcpPacket(podA1, podB, 1, 1400), nil, nil},
		{"as many datagrams", 60, udpPacket(podA1, podB, 1, 2, 1400), nil, even},
		{"bulk to a pod", 60, nil, tcpPacket(podB, podA1, 1, 1400), first},
		{"datagrams to a pod", 60, nil, udpPacket(podB, podA1, 1, 2, 64), even},
		{"a request and its answer", 1, udpPacket(podA1, podB, 1, 2, 64), udpPacket(podB, podA1, 2, 1, 64), first},
		{"what is dropped", 60, udpPacket(podB, podB, 1, 2, 64), nil, even},
		{"bulk both ways", 30, tcpPacket(podA1, podB, 1, 1400), tcpPacket(podB, podA1, 1, 1400), first},
		{"a few large datagrams", 8, udpPacket(podA1, podB, 1, 2, 60000), nil, even},
	} {
		if got := seen(c.packets, c.out, c.in); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	w.ledger.publish(&w.tally)
	if n := r.f.Counters().Priorities; n != 7 {
		t.Errorf("%d changes are counted, want 7", n)
	}
	refusal = errors.New("no")
	if got := seen(1, udpPacket(podA1, podB, 1, 2, 64), nil); !slices.Equal(got, []ring.Priority{ring.PriorityFirst, ring.PriorityEven}) {
		t.Errorf("when the kernel refuses: %v", got)
	}
	if got := seen(60, tcpPacket(podA1, podB, 1, 1400), nil); got != nil || r.f.Counters().SwitchedOff["priority"] != 1 || r.f.first.Load() != 0 {
		t.Errorf("asked again: %v; counted %d times, %d workers", got, r.f.Counters().SwitchedOff["priority"], r.f.first.Load())
	}
	w.ledger.publish(&w.tally)
	if n := r.f.Counters().Priorities; n != 7 {
		t.Errorf("a refusal is counted as a change: %d", n)
	}
}

// TestPriorityLive: a worker that runs goes first, is as everyone in a flood, and first again before it sleeps.
func TestPriorityLive(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.attach(AttachTUN, "tun0", podA1)
	var mu sync.Mutex
	var asked []ring.Priority
	r.f.use.priority = true
	r.f.env.setPriority = func(thread int, p ring.Priority) error {
		mu.Lock()
		defer mu.Unlock()
		if n := len(asked); thread == int(r.f.workers[0].stay.thread.Load()) && (n == 0 || asked[n-1] != p) {
			asked = append(asked, p) // the rest is about threads that it comes to or has left (TestMoves)
		}
		return nil
	}
	r.f.Start()
	flooded := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(asked) > 1
	}
	packet := ring.FakePacket{Data: udpPacket(podA1, podB, 1, 2, 64)}
	for end := time.Now().Add(20 * time.Second); !flooded() && time.Now().Before(end); {
		for range 64 {
			pod.Inject(packet)
		}
	}
	r.settleDown()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		mu.Lock()
		last := asked[len(asked)-1]
		mu.Unlock()
		if last == ring.PriorityFirst {
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if n := len(asked); n < 3 || asked[0] != ring.PriorityFirst || asked[1] != ring.PriorityEven || asked[n-1] != ring.PriorityFirst {
		t.Errorf("%v, want first, even …, first", asked)
	}
}
