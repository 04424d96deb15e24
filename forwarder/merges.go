package forwarder

import "github.com/penstock-net/penstock/encap"

// Neighbouring segments of a flow that came over the wire become one write, a
// superframe, so that the pod's stack and socket wake once. Neighbours are what
// follows in the flow, not in the batch: flows that take turns grow side by side.
//
//	in:  a1 b1 c1 a2 b2 c2 a3 …      out: a1+a2+a3 b1+b2 c1+c2
//
// Order: a flow has one open merge at most; whatever of the flow does not fit
// it closes it first, and writes leave in the order in which they were begun.
// A fragment, which has no ports to compare, closes all of its outbox.

// A flow's merge stands in one of the mergeWays slots that its hash leads to. A
// receiver that has fallen behind finds thousands of datagrams of dozens of
// flows in one batch: too few slots, and flows in turn close each other's merges
// before a second segment comes (with 8 slots 16 flows did not merge at all).
const (
	mergeSets = 64
	mergeWays = 4
	noMerge   = -1
)

// merge is a delivery that may still grow.
type merge struct {
	encap.Merge
	box      *outbox // that the delivery is in; nil: the slot is free
	delivery int32
	hash     uint32
}

// merges are a worker's, of all its outboxes. Between batches none is open.
type merges struct {
	slots []merge
	turn  [mergeSets]uint8 // which slot of a full set is given up next
}

func newMerges() merges { return merges{slots: make([]merge, mergeSets*mergeWays)} }

// find tells where the flow's open merge stands, or else a slot for one, for
// which another may have been closed.
func (ms *merges) find(a *arena, b *outbox, f *frame) int {
	set := int(f.p.Hash % mergeSets)
	free := -1
	for i := set * mergeWays; i < (set+1)*mergeWays; i++ {
		m := &ms.slots[i]
		if m.box == nil {
			free = i
		} else if m.box == b && m.hash == f.p.Hash && m.SameFlow(f.ip(), &f.p) {
			return i
		}
	}
	if free < 0 {
		free = set*mergeWays + int(ms.turn[set]%mergeWays)
		ms.turn[set]++
		ms.slots[free].close(a)
	}
	return free
}

// deliverMerged is deliver for what came over the wire: it joins the open
// merge of its flow if it can. Its checksum has been verified. What a pod's own
// tunnel leaves partial is inside the payload, where a merge, which has its one
// partial checksum at its own L4, cannot say so: it goes by itself.
func (w *worker) deliverMerged(f *frame, b *outbox) {
	if b.port == nil || !b.port.gso || f.v.IsGSO() || !w.f.use.mergeWrites ||
		f.p.Proto != encap.ProtoTCP && (f.p.Proto != encap.ProtoUDP || !b.port.uso) || f.p.Frag != encap.NotFrag ||
		f.v.Flags&encap.NeedsCsum != 0 && f.v.CsumStart != f.p.L4 {
		w.deliver(f, b, Pod)
		return
	}
	w.makeRoom()
	a := &w.arena
	at := w.merges.find(a, b, f)
	m := &w.merges.slots[at]
	if m.box != nil {
		if payload, ok := m.Add(f.ip(), &f.p); ok {
			d := &a.deliveries[m.delivery]
			d.last = a.chain(d.last, payload)
			d.frames++
			d.bytes += int32(f.p.Len)
			w.tally.merged++
			return
		}
		m.close(a)
	}
	v := f.v
	v.HdrLen = uint16(encap.HeaderLen(f.ip(), &f.p))
	d := w.enqueue(b, Pod, f, f.ip(), nil, v, true)
	if m.Start(f.ip(), &f.p) {
		m.box, m.delivery, m.hash = b, b.last, f.p.Hash
		d.merge = int16(at)
		b.open++
	}
}

// close ends a merge: the headers of its delivery now tell of the whole.
func (m *merge) close(a *arena) {
	d := &a.deliveries[m.delivery]
	if m.Segments() > 1 {
		d.v = m.Finish()
	}
	d.merge = noMerge
	m.box.open--
	m.box = nil
}

// closeFlow closes the merges of b that f must not overtake, nor be overtaken by.
func (ms *merges) closeFlow(a *arena, b *outbox, f *frame) {
	if b.open == 0 {
		return
	}
	slots := ms.slots
	if f.p.Frag == encap.NotFrag {
		slots = slots[int(f.p.Hash%mergeSets)*mergeWays:][:mergeWays]
	}
	for i := range slots {
		if m := &slots[i]; m.box == b && (f.p.Frag != encap.NotFrag || m.hash == f.p.Hash) {
			m.close(a)
		}
	}
}

// closeAll closes all merges of b, which is about to be written.
func (ms *merges) closeAll(a *arena, b *outbox) {
	for i := b.first; b.open > 0; i = a.deliveries[i].next {
		if at := a.deliveries[i].merge; at != noMerge {
			ms.slots[at].close(a)
		}
	}
}
