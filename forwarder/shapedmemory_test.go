package forwarder

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// TestShapedSpec: a bandwidth belongs to the spec, and a burst without a rate is refused.
func TestShapedSpec(t *testing.T) {
	r := newRig(t, testSettings(encap.KindUDP))
	spec := PortSpec{Container: "a1", Interface: "eth0", Attach: AttachTUN, Device: "a1", Addresses: addrs(podA1), Bandwidth: Bandwidth{IngressBurst: 1}}
	if _, err := r.f.Attach(spec); err == nil {
		t.Error("a burst without a rate")
	}
	spec.Bandwidth.IngressRate = 1e6
	for range 2 {
		if i, err := r.f.Attach(spec); err != nil || i.Bandwidth != spec.Bandwidth {
			t.Fatalf("%+v %v", i, err)
		}
	}
	spec.Bandwidth.IngressRate++
	if _, err := r.f.Attach(spec); err == nil {
		t.Error("another rate")
	}
	for name, b := range map[string]Bandwidth{"as good as none": {IngressRate: 1e15, EgressRate: 1e15}, "none": {}} {
		p := &port{spec: PortSpec{Bandwidth: b}}
		if r.f.shapePort(p); p.throttle != nil || p.queue != nil {
			t.Error(name)
		}
	}
}

// TestShapedMemory: queues count against limits.totalBuffer, small sockets for
// what they are.
func TestShapedMemory(t *testing.T) {
	s := testSettings(encap.KindUDP)
	s.TotalBuffer = 8 << 20
	r := newRig(t, s)
	attach := func(i int, kind string, b Bandwidth) error {
		name := fmt.Sprint(kind, i)
		_, err := r.f.Attach(PortSpec{Container: name, Interface: "eth0", Attach: kind, Device: name,
			Addresses: addrs(netip.AddrFrom4([4]byte{10, 244, 1, byte(10 + i)})), Bandwidth: b})
		return err
	}
	for i := range 20 {
		if err := attach(i, AttachVeth, Bandwidth{EgressRate: 10e6}); err != nil {
			t.Fatal(err)
		}
	}
	if err := attach(20, AttachTUN, Bandwidth{IngressRate: 10e9}); err == nil {
		t.Error("a queue that there is no memory for")
	}
	if err := attach(20, AttachTUN, Bandwidth{IngressRate: 1e8}); err != nil {
		t.Error(err)
	}
}

// TestTUNQueue: how many packets wait in a TUN, and when it may hand over superframes.
func TestTUNQueue(t *testing.T) {
	for _, c := range []struct {
		rate    uint64
		want    int
		offload ring.Offload // that it is told; 0: nothing
	}{{1e6, 47, ring.OffloadCSUM}, {10e6, 66, ring.OffloadCSUM}, {1e9, 2200, ring.OffloadCSUM}, {4e9, 500, 0}, {100e9, 4768, 0}} {
		th := &throttle{bucket: newBucket(c.rate, 0, 0)}
		q := &offloadQueue{FakeQueue: ring.NewFakeQueue()}
		if err := th.refuseSuperframes(q, ring.OffloadCSUM|ring.OffloadTSO4); err != nil || q.told != c.offload || th.tunQueue(1450) != c.want {
			t.Errorf("%d bit/s: %d packets, %v", c.rate, th.tunQueue(1450), q.told)
		}
	}
}

type offloadQueue struct {
	*ring.FakeQueue
	told ring.Offload
}

func (q *offloadQueue) SetOffload(o ring.Offload) error { q.told = o; return nil }

// TestQueueMemory: frames in a queue keep their bytes until they are released,
// whatever their sizes, and the limit alone says how many fit.
func TestQueueMemory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(rapid.Uint64Range(1, 200e6).Draw(t, "rate"), 0, 1, 0)
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		var want [][]byte
		number := uint64(0)
		for range 300 {
			if rnd.IntN(3) > 0 {
				size := []int{54, 200, 1464, 20_000, longestPacket + 14}[rnd.IntN(5)]
				if q.waits >= q.limit && q.n > 0 || q.n == len(q.slots) {
					continue
				}
				if !q.room(size) {
					t.Fatalf("no room for %d although %d of %d bytes wait", size, q.waits, q.limit)
				}
				b := bytes.Repeat(binary.BigEndian.AppendUint64(nil, number), size/8)
				number++
				*q.slot(q.n) = waiting{at: q.tail, size: len(b), cost: size - 14}
				copy(q.mem[q.tail:q.tail+len(b)], b)
				q.tail += size
				q.waits += size - 14
				q.n++
				want = append(want, b)
			} else if n := min(rnd.IntN(4), q.n); n > 0 {
				for i := range n {
					if e := q.slot(i); !bytes.Equal(q.mem[e.at:e.at+e.size], want[i]) {
						t.Fatal("bytes were overwritten")
					}
				}
				q.release(n)
				want = want[n:]
			}
		}
		for q.n > 0 {
			q.release(1)
		}
		if q.waits != 0 {
			t.Fatalf("an empty queue holds %d bytes", q.waits)
		}
	})
}
