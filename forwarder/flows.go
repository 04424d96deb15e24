package forwarder

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync/atomic"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/hostflow"
)

// When the host translates a pod's packet (a Service) and sends it out through
// penstock0 again, the answer must pass the host's conntrack, or the pod sees
// a stranger's address:
//
//	pod ─▶ service ─▶ host: DNAT ─▶ penstock0 ─▶ backend      (source: the pod)
//	pod ◀─ service ◀─ host: un-DNAT ◀─ penstock0 ◀─ answer    (caught here)
//
// So a worker that reads from the host a frame whose source is a local pod
// remembers its answer, and every worker that has a frame for such a pod looks
// whether it is one. An answer usually reaches another worker than its
// question: each worker writes its own table, all workers read all tables.
// Entries leave when conntrack says that the flow is gone, never by a timer.
//
// A key is a 48 or 64-bit keyed hash of the answer's tuple. A collision sends
// a frame through the host that need not have gone there; it still arrives.
//
// Later fragments carry no ports, so fragments of answers match by addresses and
// protocol alone (the first one too, or the host could not put the packet
// together again). Of a fragmented question the first fragment is remembered.

const (
	flowWays = 8       // words of one set: one cache line
	flowSets = 1 << 13 // 65,536 flows a table
	pairSets = 1 << 10 // 8,192 address pairs a table
)

// flowKey is the tuple of an answer: Src is who answers, Dst the pod.
type flowKey = hostflow.Tuple

// flowHashes gives the words of a flow and of its address pair; neither is
// zero. The low 16 bits of pair are free for a count.
func flowHashes(seed maphash.Seed, k *flowKey) (flow, pair uint64) {
	var b [37]byte
	s, d := k.Src.As16(), k.Dst.As16()
	copy(b[0:], s[:])
	copy(b[16:], d[:])
	b[32] = k.Proto
	pair = maphash.Bytes(seed, b[:33])&^0xffff | 1<<63
	binary.LittleEndian.PutUint16(b[33:], k.SrcPort)
	binary.LittleEndian.PutUint16(b[35:], k.DstPort)
	flow = maphash.Bytes(seed, b[:]) | 1
	return flow, pair
}

// flowTable is what one writer remembers: a worker, or the conntrack tracker.
// Only its writer adds; anyone reads; any goroutine removes.
type flowTable struct {
	flows  []atomic.Uint64    // flow hash, 0 empty
	tuples [][5]atomic.Uint64 // the flow's tuple: written before its hash, valid while the hash stands
	pairs  []atomic.Uint64    // pair hash | number of its flows
}

// flowMemory is all tables under one seed: one a writer, which is a worker or,
// the last, the tracker.
type flowMemory struct {
	seed    maphash.Seed
	tables  []atomic.Pointer[flowTable] // nil until its writer has something to remember
	enabled atomic.Bool                 // conntrack is there and its events are heard
	full    atomic.Uint64
	used    share // of all pods
	shares  [podShares]share
}

func newFlowMemory(workers int) *flowMemory {
	return &flowMemory{seed: maphash.MakeSeed(), tables: make([]atomic.Pointer[flowTable], workers+1)}
}

// table is a writer's own table, made when it is first needed: 3 MiB that most
// nodes never use. Only the writer calls it.
func (m *flowMemory) table(writer int) *flowTable {
	if t := m.tables[writer].Load(); t != nil {
		return t
	}
	t := &flowTable{
		flows:  make([]atomic.Uint64, flowSets*flowWays),
		tuples: make([][5]atomic.Uint64, flowSets*flowWays),
		pairs:  make([]atomic.Uint64, pairSets*flowWays),
	}
	m.tables[writer].Store(t)
	return t
}

// setOf is the first index of the set in which h may stand.
func setOf(words []atomic.Uint64, h uint64) int {
	return int(h>>20%uint64(len(words)/flowWays)) * flowWays
}

func set(words []atomic.Uint64, h uint64) []atomic.Uint64 {
	at := setOf(words, h)
	return words[at : at+flowWays : at+flowWays]
}

// remember notes that answers to the packet p (its bytes b), read from the
// host, belong to the host. It is false when there is no room. Only worker calls it.
func (m *flowMemory) remember(worker int, b []byte, p *encap.Packet) bool {
	k := answerTo(p)
	switch {
	case p.Frag == encap.LaterFrag:
		return true // its first fragment came by the same queue, before it
	case p.Frag == encap.FirstFrag && (p.Proto == encap.ProtoTCP || p.Proto == encap.ProtoUDP) && len(b) >= int(p.L4)+4:
		k.DstPort = binary.BigEndian.Uint16(b[p.L4:])
		k.SrcPort = binary.BigEndian.Uint16(b[p.L4+2:])
	}
	return m.add(worker, &k)
}

// answerTo is the tuple of the answers to p.
func answerTo(p *encap.Packet) flowKey {
	return flowKey{Proto: p.Proto, Src: p.Dst, Dst: p.Src, SrcPort: p.DstPort, DstPort: p.SrcPort}
}

func (m *flowMemory) add(writer int, k *flowKey) bool {
	flow, pair := flowHashes(m.seed, k)
	if m.hasFlow(flow) {
		return true
	}
	if !m.insert(writer, flow, pair, k) {
		m.full.Add(1)
		return false
	}
	return true
}

func (m *flowMemory) insert(writer int, flow, pair uint64, k *flowKey) bool {
	t, own := m.table(writer), m.shareOf(k)
	if !grow(&own.flows, &m.used.flows, flowsATable*(len(m.tables)-1)) {
		return false
	}
	// The pair first: who forgets the flow as soon as it stands also uncounts its pair.
	if !t.count(pair, m, own) {
		shrink(&own.flows, &m.used.flows)
		return false
	}
	if !t.put(flow, k) {
		if t.uncount(pair) {
			shrink(&own.pairs, &m.used.pairs)
		}
		shrink(&own.flows, &m.used.flows)
		return false
	}
	return true
}

func (m *flowMemory) hasFlow(flow uint64) bool {
	for i := range m.tables {
		t := m.tables[i].Load()
		if t == nil {
			continue
		}
		s := set(t.flows, flow)
		for i := range s {
			if s[i].Load() == flow {
				return true
			}
		}
	}
	return false
}

func (m *flowMemory) hasPair(pair uint64) bool {
	for i := range m.tables {
		t := m.tables[i].Load()
		if t == nil {
			continue
		}
		s := set(t.pairs, pair)
		for i := range s {
			if s[i].Load()&^0xffff == pair {
				return true
			}
		}
	}
	return false
}

// isAnswer reports whether p (its bytes b) belongs to the host: an answer to a
// flow that the host has translated, or an ICMP error about such a flow.
func (m *flowMemory) isAnswer(b []byte, p *encap.Packet) bool {
	k := flowKey{Proto: p.Proto, Src: p.Src, Dst: p.Dst, SrcPort: p.SrcPort, DstPort: p.DstPort}
	flow, pair := flowHashes(m.seed, &k)
	if p.Frag != encap.NotFrag {
		return m.hasPair(pair)
	}
	if m.hasFlow(flow) {
		return true
	}
	if p.Proto != encap.ProtoICMP && p.Proto != encap.ProtoICMPv6 {
		return false
	}
	var q encap.Packet
	if !encap.QuotedFlow(b, p, &q) {
		return false
	}
	k = answerTo(&q)
	flow, _ = flowHashes(m.seed, &k)
	return m.hasFlow(flow)
}

// forget removes the flow with this answer, whichever table has it.
func (m *flowMemory) forget(k *flowKey) {
	flow, pair := flowHashes(m.seed, k)
	for i := range m.tables {
		t := m.tables[i].Load()
		if t == nil {
			continue
		}
		if t.take(flow) {
			own := m.shareOf(k)
			if t.uncount(pair) {
				shrink(&own.pairs, &m.used.pairs)
			}
			shrink(&own.flows, &m.used.flows)
		}
	}
}

// put has one caller at a time, the table's writer: a slot that it found empty
// stays empty until it writes the hash.
func (t *flowTable) put(flow uint64, k *flowKey) bool {
	at := setOf(t.flows, flow)
	for i := at; i < at+flowWays; i++ {
		if t.flows[i].Load() == 0 {
			for j, w := range packTuple(k) {
				t.tuples[i][j].Store(w)
			}
			t.flows[i].Store(flow)
			return true
		}
	}
	return false
}

func (t *flowTable) take(flow uint64) bool {
	s := set(t.flows, flow)
	for i := range s {
		if s[i].CompareAndSwap(flow, 0) {
			return true
		}
	}
	return false
}

// count adds one flow to its pair, which takes a word of the pod's share if it is
// the pair's first.
func (t *flowTable) count(pair uint64, m *flowMemory, own *share) bool {
	s := set(t.pairs, pair)
	for i := range s {
		for {
			w := s[i].Load()
			if w&^0xffff != pair {
				break
			}
			if w&0xffff == 0xffff || s[i].CompareAndSwap(w, w+1) {
				return true // a saturated count is never lowered again
			}
		}
	}
	if !grow(&own.pairs, &m.used.pairs, pairsATable*(len(m.tables)-1)) {
		return false
	}
	for i := range s {
		if s[i].CompareAndSwap(0, pair|1) {
			return true
		}
	}
	shrink(&own.pairs, &m.used.pairs)
	return false
}

// uncount takes one flow from its pair; true: it was the last.
func (t *flowTable) uncount(pair uint64) (last bool) {
	s := set(t.pairs, pair)
	for i := range s {
		for {
			w := s[i].Load()
			if w&^0xffff != pair || w&0xffff == 0xffff {
				break
			}
			next := w - 1
			if next&0xffff == 0 {
				next = 0
			}
			if s[i].CompareAndSwap(w, next) {
				return next == 0
			}
		}
	}
	return false
}

// known yields the tuples that are remembered now. A flow that comes or goes
// meanwhile may be missing or present; no tuple is ever torn.
func (m *flowMemory) known(yield func(flowKey) bool) {
	for i := range m.tables {
		t := m.tables[i].Load()
		if t == nil {
			continue
		}
		for i := range t.flows {
			h := t.flows[i].Load()
			if h == 0 {
				continue
			}
			var w [5]uint64
			for j := range w {
				w[j] = t.tuples[i][j].Load()
			}
			if t.flows[i].Load() == h && !yield(unpackTuple(w)) {
				return
			}
		}
	}
}

// size counts the remembered flows: for status and attach, not for packets.
func (m *flowMemory) size() (n int) {
	for i := range m.tables {
		t := m.tables[i].Load()
		if t == nil {
			continue
		}
		for i := range t.flows {
			if t.flows[i].Load() != 0 {
				n++
			}
		}
	}
	return n
}

// packTuple: 16 + 16 bytes of address, then ports, protocol and the version.
func packTuple(k *flowKey) (w [5]uint64) {
	s, d := k.Src.As16(), k.Dst.As16()
	w[0], w[1] = binary.BigEndian.Uint64(s[:8]), binary.BigEndian.Uint64(s[8:])
	w[2], w[3] = binary.BigEndian.Uint64(d[:8]), binary.BigEndian.Uint64(d[8:])
	w[4] = uint64(k.SrcPort)<<32 | uint64(k.DstPort)<<16 | uint64(k.Proto)<<8
	if k.Src.Is4() {
		w[4] |= 4
	}
	return w
}

func unpackTuple(w [5]uint64) flowKey {
	var s, d [16]byte
	binary.BigEndian.PutUint64(s[:8], w[0])
	binary.BigEndian.PutUint64(s[8:], w[1])
	binary.BigEndian.PutUint64(d[:8], w[2])
	binary.BigEndian.PutUint64(d[8:], w[3])
	k := flowKey{Proto: uint8(w[4] >> 8), Src: netip.AddrFrom16(s), Dst: netip.AddrFrom16(d), SrcPort: uint16(w[4] >> 32), DstPort: uint16(w[4] >> 16)}
	if w[4]&0xff == 4 {
		k.Src, k.Dst = k.Src.Unmap(), k.Dst.Unmap()
	}
	return k
}

// flowSink is the forwarder's memory of flows as hostflow sees it.
type flowSink struct{ f *Forwarder }

// HostFlows is where a conntrack tracker reports to.
func (f *Forwarder) HostFlows() hostflow.Sink { return flowSink{f} }

// TrackFlows switches the memory on: a tracker is at work. Without one nothing
// is remembered, as nothing would be forgotten.
func (f *Forwarder) TrackFlows() { f.flows.enabled.Store(true) }

// Preload remembers a flow from conntrack whose answers go to one of our pods.
func (s flowSink) Preload(k hostflow.Tuple) {
	if s.f.ownPodAddress(k.Dst) && s.f.flows.add(len(s.f.flows.tables)-1, &k) {
		s.f.flagTranslated(k.Dst)
	}
}

// Has reports whether any worker remembers the flow.
func (s flowSink) Has(k hostflow.Tuple) bool {
	flow, _ := flowHashes(s.f.flows.seed, &k)
	return s.f.flows.hasFlow(flow)
}

// Forget removes the flow from every table.
func (s flowSink) Forget(k hostflow.Tuple) { s.f.flows.forget(&k) }

// Known iterates over what is remembered.
func (s flowSink) Known(yield func(hostflow.Tuple) bool) { s.f.flows.known(yield) }
