package forwarder

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestShapedLive: real workers, several of which write to one bounded pod, while
// it comes and goes. Each sender's datagrams arrive in order, at about the rate,
// and at rest the law holds. Run it with -race.
func TestShapedLive(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.Workers = 3
	r := newRig(t, s)
	const rate = 40e6
	band := Bandwidth{IngressRate: rate, EgressRate: rate}
	var senders []*ring.FakeQueue
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 1, byte(20 + i)}) }
	for i := range 4 {
		senders = append(senders, r.attach(AttachTUN, fmt.Sprint("s", i), addr(i)))
	}
	r.f.Start()
	var stop atomic.Bool
	var running sync.WaitGroup
	for i, q := range senders {
		running.Go(func() {
			for n := 0; !stop.Load(); n++ {
				q.Inject(ring.FakePacket{Data: udpPacket(addr(i), podA1, uint16(i), uint16(n), 972)})
				time.Sleep(50 * time.Microsecond)
			}
		})
	}
	for range 3 {
		r.sends() // of the round before
		begin := time.Now()
		pod := r.bounded(AttachTUN, "a1", band, podA1)
		for i := range 2000 {
			pod.Inject(ring.FakePacket{Data: counted(podA1, podB, i, 1000)})
		}
		var got []ring.FakePacket
		var sent [][]byte
		time.Sleep(200 * time.Millisecond)
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && (len(got) == 0 || len(sent) == 0); time.Sleep(time.Millisecond) {
			got, sent = append(got, pod.Sent()...), append(sent, datagrams(t, r.sends())...)
		}
		took := time.Since(begin)
		last, bits := map[uint16]uint16{}, 0
		for _, p := range got {
			h := parse(t, p.Data)
			if before, ok := last[h.SrcPort]; ok && int16(h.DstPort-before) <= 0 {
				t.Errorf("sender %d: %d behind %d", h.SrcPort, h.DstPort, before)
			}
			last[h.SrcPort] = h.DstPort
			bits += len(p.Data) * 8
		}
		most := rate*(took.Seconds()+leastBurst.Seconds()) + 1000*8
		if float64(bits) > most || len(got) == 0 {
			t.Errorf("%d bits in %v, at most %.0f", bits, took, most)
		}
		bits = 0
		for _, d := range sent {
			bits += len(d) * 8
		}
		if float64(bits) > rate*(time.Since(begin).Seconds()+leastBurst.Seconds())+1000*8 || bits == 0 {
			t.Errorf("from the pod: %d bits", bits)
		}
		if err := r.f.Detach("a1", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	running.Wait()
	r.settleDown()
	c := r.f.Counters()
	if c.Dropped[DropShaped.String()] == 0 {
		t.Error("nothing was too much")
	}
	r.check2(0, nil)
}

// TestShapedAllocs: a bounded port allocates nothing either.
func TestShapedAllocs(t *testing.T) {
	r := newShapedRig(t, testSettings(encap.KindUDP))
	pod := r.bounded(AttachTUN, "a1", Bandwidth{IngressRate: 8e6}, podA1)
	w := r.f.workers[0]
	ip := counted(podB, podA1, 1, 1000)
	mem := append(make([]byte, ring.Headroom), ip...)
	sink := &nullPort{FakeQueue: pod}
	w.outboxes[0].port.io = sink
	n := testing.AllocsPerRun(1000, func() {
		r.now = r.now.Add(time.Millisecond)
		w.begin()
		for range 2 {
			f := &w.frame
			*f = frame{mem: mem, at: ring.Headroom}
			encap.Parse(f.ip(), &f.p)
			w.tally.received[Wire]++
			w.deliver(f, w.outboxes[0], Pod)
		}
		w.flush()
		w.serveAlarms(0)
	})
	if n != 0 || r.f.Counters().Dropped["shaped"] == 0 {
		t.Errorf("%v allocations, %d dropped", n, r.f.Counters().Dropped["shaped"])
	}
	if bits := sink.bytes * 8 / (int(r.now.Sub(r.f.started).Milliseconds())); bits < 7900 || bits > 8200 {
		t.Errorf("%d bits a ms", bits)
	}
}

// nullPort counts what is written.
type nullPort struct {
	*ring.FakeQueue
	bytes int
}

func (p *nullPort) Write(m *ring.Packets, from int) (int, error) {
	for i := from; i < m.Len(); i++ {
		p.bytes += m.Bytes(i)
	}
	return m.Len() - from, nil
}
