package forwarder

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestRank: what a worker has seen decides where it stands, and a load near a
// border does not change it to and fro.
func TestRank(t *testing.T) {
	const span = 10e6 // ns, a hundredth of a second
	for _, c := range []struct {
		what           string
		was            ring.Priority
		frames, stream int
		want           ring.Priority
	}{
		{"nothing", ring.PriorityPrompt, 0, 0, ring.PriorityPrompt},
		{"requests", ring.PriorityPrompt, 200, 200 * 60, ring.PriorityPrompt},
		{"a flood", ring.PriorityPrompt, 300, 0, ring.PriorityEven},
		{"fewer, of a flood", ring.PriorityEven, 151, 0, ring.PriorityEven},
		{"the same anew", ring.PriorityPrompt, 151, 0, ring.PriorityPrompt},
		{"a flood's end", ring.PriorityEven, 149, 0, ring.PriorityPrompt},
		{"superframes", ring.PriorityPrompt, 20, 500_000, ring.PrioritySteady},
		{"few superframes", ring.PriorityPrompt, 20, 499_000, ring.PriorityPrompt},
		{"few, of many", ring.PrioritySteady, 20, 250_000, ring.PrioritySteady},
		{"the end of bulk", ring.PrioritySteady, 20, 249_000, ring.PriorityPrompt},
		{"whole segments, cut on their way", ring.PriorityEven, 1000, 1_448_000, ring.PrioritySteady},
		{"bulk beside a flood", ring.PriorityPrompt, 1000, 900_000, ring.PriorityEven},
		{"a flood beside bulk that was first", ring.PrioritySteady, 1000, 900_000, ring.PrioritySteady},
		{"more of it", ring.PrioritySteady, 2000, 900_000, ring.PriorityEven},
		{"small TCP packets", ring.PrioritySteady, 5000, 5000 * 60, ring.PriorityEven},
	} {
		s := standing{now: c.was, frames: c.frames, stream: c.stream}
		if got := s.rank(span); got != c.want {
			t.Errorf("%s: %d frames, %d bytes of TCP while %v: %v, want %v", c.what, c.frames, c.stream, c.was, got, c.want)
		}
	}
}

// TestRanked: TCP packets of both directions are bulk, others frames alone; the thread's priority changes once a span
// at most, is counted, and a kernel that refuses is not asked again.
func TestRanked(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	pod := r.attach(AttachTUN, "tun0", podA1)
	w := r.f.workers[0]
	var asked []ring.Priority
	var refusal error
	r.f.env.setPriority = func(p ring.Priority) error {
		asked = append(asked, p)
		return refusal
	}
	w.standing = standing{used: true, now: ring.PriorityPrompt}
	// seen is what the worker makes of n turns in a span, with so many of both packets in each.
	seen := func(n, packets int, out, in []byte) []ring.Priority {
		asked = nil
		w.begin()
		w.standing.begun = w.nanos
		for i := range n {
			for range packets {
				if out != nil {
					pod.Inject(ring.FakePacket{Data: append([]byte(nil), out...)})
				}
				if in != nil {
					r.udp[0].Inject(ring.FakeDatagram{Data: append([]byte(nil), in...), Addr: netip.AddrPortFrom(nodeB, 5555)})
				}
			}
			before := w.attention.frames
			r.turn()
			if w.nanos = w.standing.begun + int64(i+1)*rankSpan/int64(n); len(asked) > 0 {
				t.Errorf("%v in turn %d of %d", asked, i, n)
			}
			w.ranked(w.attention.frames - before)
		}
		return asked
	}
	for _, c := range []struct {
		what    string
		packets int
		out, in []byte
		want    []ring.Priority
	}{
		{"bulk from a pod", 60, tcpPacket(podA1, podB, 1, 1400), nil, []ring.Priority{ring.PrioritySteady}},
		{"the same", 60, tcpPacket(podA1, podB, 1, 1400), nil, nil},
		{"as much of UDP", 60, udpPacket(podA1, podB, 1, 2, 1400), nil, []ring.Priority{ring.PriorityEven}},
		{"bulk to a pod", 60, nil, tcpPacket(podB, podA1, 1, 1400), []ring.Priority{ring.PrioritySteady}},
		{"a request and its answer", 1, udpPacket(podA1, podB, 1, 2, 64), udpPacket(podB, podA1, 2, 1, 64), []ring.Priority{ring.PriorityPrompt}},
	} {
		if got := seen(5, c.packets, c.out, c.in); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	w.ledger.publish(&w.tally)
	if n := r.f.Counters().Priorities; n != 4 {
		t.Errorf("%d changes are counted, want 4", n)
	}
	refusal = errors.New("no")
	if got := seen(5, 60, udpPacket(podA1, podB, 1, 2, 64), nil); len(got) != 2 || got[1] != ring.PriorityEven {
		t.Errorf("when the kernel refuses: %v", got)
	}
	if got := seen(5, 60, tcpPacket(podA1, podB, 1, 1400), nil); got != nil || r.f.Counters().SwitchedOff["priority"] != 1 {
		t.Errorf("asked again: %v, counted %d times", got, r.f.Counters().SwitchedOff["priority"])
	}
}
