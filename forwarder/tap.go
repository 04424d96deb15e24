package forwarder

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/penstock-net/penstock/encap"
)

// A tap shows frames where they come in, where they leave and where they are
// dropped. The workers copy what matches into memory that the tap brings, one
// queue a worker, and never wait: what finds the queue full is counted as lost.
// While there is no tap, a batch loads one nil pointer and a frame looks at it.
//
//	worker 0 ─▶ tapQueue ─┐
//	worker 1 ─▶ tapQueue ─┴─▶ Tap.Read (one goroutine)
//
// Frames show as they are in hand: a superframe is one, in front of what cuts it,
// and its checksum may still be left to the device.

// Stage is where on its way a frame was seen.
type Stage uint8

const (
	FromPod  Stage = iota
	FromHost       // through the node's TUN
	FromPeer       // without its encapsulation
	ToPod
	ToHost
	ToPeer  // before its encapsulation
	Dropped // see Reason
	stages
)

func (s Stage) String() string {
	return [stages]string{"from-pod", "from-host", "from-peer", "to-pod", "to-host", "to-peer", "dropped"}[s]
}

// TapFilter says which frames a tap copies; the zero value: all. What is set must
// all hold.
type TapFilter struct {
	Container, Interface string       // a pod: by its port
	Addresses            []netip.Addr // and by its addresses, which also find it in what comes from or goes to peers
	Peer                 netip.Addr   // the underlay address of a peer: by its part in the frame's way, and by its prefixes
	Reason               string       // only drops with this reason; empty: every stage
	Protocol             uint8        // of the inner packet, behind IPv6 extension headers; 0: all
	Port                 uint16       // source or destination of TCP, UDP or SCTP in whole packets and first fragments; 0: all
	Snap                 int          // bytes of a frame that are copied; 0: all
}

// TapRecord is a frame that was seen. Data is lent until the callback returns.
type TapRecord struct {
	Nanos    int64 // Unix
	Worker   int
	Stage    Stage
	Reason   Reason // of Dropped
	Ethernet bool   // Data begins with an Ethernet header; else with an IP header
	Outer    bool   // Data is the datagram as it came over the wire, with an outer header that was put in front again
	Length   int    // of the whole frame
	Segment  int    // of a superframe: the payload of the packets that it stands for; else 0
	Pod      string // "container/interface" of the port that it came from or goes to
	Peer     string // name of the peer that it came from or goes to
	Data     []byte
}

// taps is what workers see of all taps; replaced as a whole, nil if there are none.
type taps []*Tap

type atomicTaps = atomic.Pointer[taps]

// Tap is a running observation.
type Tap struct {
	f      *Forwarder
	filter TapFilter
	reason Reason
	queues []*tapQueue // by worker
	buffer []byte      // the reader's
}

// maxTaps is how many may run at a time: each costs the workers copies.
const maxTaps = 4

// Tap begins to show frames. Close it.
func (f *Forwarder) Tap(filter TapFilter) (*Tap, error) {
	t, err := newTap(f, filter, len(f.workers))
	if err != nil {
		return nil, err
	}
	f.control.Lock()
	defer f.control.Unlock()
	var list taps
	if old := f.taps.Load(); old != nil {
		list = slices.Clone(*old)
	}
	if len(list) >= maxTaps {
		return nil, fmt.Errorf("%d captures run already: end one of them first", len(list))
	}
	list = append(list, t)
	f.taps.Store(&list)
	return t, nil
}

func newTap(f *Forwarder, filter TapFilter, workers int) (*Tap, error) {
	t := &Tap{f: f, filter: filter, buffer: make([]byte, tapBuffer)}
	if filter.Reason != "" {
		i := slices.IndexFunc(Reasons(), func(r Reason) bool { return r.String() == filter.Reason })
		if i < 0 {
			return nil, fmt.Errorf("there is no drop reason %q: penstockctl drops --all lists them", filter.Reason)
		}
		t.reason = Reasons()[i]
	}
	if filter.Snap <= 0 || filter.Snap > len(t.buffer) {
		t.filter.Snap = len(t.buffer)
	}
	for range workers {
		t.queues = append(t.queues, newTapQueue())
	}
	return t, nil
}

// Close ends it: afterwards no worker writes to it. What is still queued can be read.
func (t *Tap) Close() {
	f := t.f
	f.control.Lock()
	defer f.control.Unlock()
	old := f.taps.Load()
	if old == nil {
		return
	}
	list := slices.DeleteFunc(slices.Clone(*old), func(o *Tap) bool { return o == t })
	if len(list) == 0 {
		f.taps.Store(nil)
	} else {
		f.taps.Store(&list)
	}
	if !f.stopped {
		f.onAll(func(w *worker) { w.taps = w.tapsAt.Load() }) // what runs outside a batch looks there too
	}
}

// Lost is how many frames that matched found no room.
func (t *Tap) Lost() (n uint64) {
	for _, q := range t.queues {
		n += q.lost.Load()
	}
	return n
}

// Read calls fn for what is queued and returns how many that were. One goroutine reads.
func (t *Tap) Read(fn func(*TapRecord)) (n int) {
	var r TapRecord
	for worker, q := range t.queues {
		if q == nil { // a tracer has one worker
			continue
		}
		for end := q.written.Load(); q.read.Load() < end; n++ {
			s := q.slots[q.read.Load()%tapSlots]
			r = TapRecord{Nanos: s.nanos, Worker: worker, Stage: s.stage, Reason: s.reason, Ethernet: s.ethernet, Outer: s.outer,
				Length: int(s.length), Segment: int(s.segment), Data: q.copyOut(t.buffer[:0], s.at, int(s.size))}
			if s.port != nil && s.port.direction == Pod {
				r.Pod = s.port.spec.Container + "/" + s.port.spec.Interface
			}
			if s.peer != nil {
				r.Peer = s.peer.spec.Name
			}
			q.freed.Store(s.at + uint64(s.size))
			q.read.Add(1)
			fn(&r)
		}
	}
	return n
}

// match decides whether a frame is shown.
func (t *Tap) match(w *worker, s *tapSlot, in *encap.Packet) bool {
	o := &t.filter
	if t.reason != dropNone && s.reason != t.reason {
		return false
	}
	if (o.Protocol != 0 || o.Port != 0) && s.outer { // what it carries is not known
		return false
	}
	if o.Protocol != 0 && in.Proto != o.Protocol || o.Port != 0 && in.SrcPort != o.Port && in.DstPort != o.Port {
		return false
	}
	if o.Container != "" || len(o.Addresses) > 0 {
		own := s.port != nil && o.Container != "" && s.port.spec.Container == o.Container && s.port.spec.Interface == o.Interface
		if !own && !slices.Contains(o.Addresses, in.Src) && !slices.Contains(o.Addresses, in.Dst) {
			return false
		}
	}
	if !o.Peer.IsValid() || s.peer != nil && s.peer.spec.Address == o.Peer {
		return true
	}
	for _, a := range [2]netip.Addr{in.Src, in.Dst} {
		if h := w.network.Route(a); h != nil && h.kind == hopPeer && h.peer.spec.Address == o.Peer {
			return true
		}
	}
	return false
}

// Sizes of a worker's queue: what a millisecond of superframes or ten of small packets fill, so that a
// reader that is scheduled late loses little.
const (
	tapBytes = 4 << 20
	tapSlots = 8192

	// tapBuffer holds any frame.
	tapBuffer = longestPacket + encap.EthernetLen + outerRoom
)

// tapQueue goes from one worker to one reader without a lock. Positions count up for ever.
type tapQueue struct {
	mem   []byte // circular
	slots []tapSlot
	head  uint64 // the worker's: where in mem it writes next

	written atomic.Uint64 // slots; the worker raises it
	read    atomic.Uint64 // slots; the reader raises it
	freed   atomic.Uint64 // bytes; the reader raises it
	lost    atomic.Uint64
}

type tapSlot struct {
	nanos        int64
	at           uint64 // in mem, before it wraps
	length, size int32
	segment      uint16
	stage        Stage
	reason       Reason
	ethernet     bool
	outer        bool
	port         *port
	peer         *peer
}

func newTapQueue() *tapQueue {
	return &tapQueue{mem: make([]byte, tapBytes), slots: make([]tapSlot, tapSlots)}
}

// begin tells whether size bytes have room.
func (q *tapQueue) begin(size int) bool {
	if q.written.Load()-q.read.Load() == tapSlots || q.head+uint64(size)-q.freed.Load() > tapBytes {
		q.lost.Add(1)
		return false
	}
	return true
}

func (q *tapQueue) copyIn(b []byte) {
	at := q.head % tapBytes
	n := copy(q.mem[at:], b)
	copy(q.mem, b[n:])
	q.head += uint64(len(b))
}

func (q *tapQueue) copyOut(b []byte, from uint64, size int) []byte {
	at := int(from % tapBytes)
	b = append(b, q.mem[at:min(at+size, tapBytes)]...)
	return append(b, q.mem[:size-len(b)]...)
}
