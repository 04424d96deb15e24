package forwarder

import (
	"sync/atomic"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// Direction names where a frame comes from or goes to.
type Direction uint8

const (
	Pod Direction = iota
	Host
	Wire
	directions
)

func (d Direction) String() string { return [...]string{"pod", "host", "wire"}[d] }

// Generated names the kinds of frames that the forwarder itself makes.
type Generated uint8

const (
	GeneratedICMP Generated = iota
	GeneratedARP
	GeneratedND
	generatedKinds
)

func (g Generated) String() string { return [...]string{"icmp", "arp", "nd"}[g] }

// The encap label of forwarded frames: an encapsulation for the wire, none for
// pods and the host. The first three values equal encap.Kind's.
const (
	encapNone   = 3
	encapNative = 4 // the native stream
	encapKinds  = 5
)

// Mechanisms that the kernel may refuse while packets flow.
const (
	switchUDPSegment = iota // for a peer
	switchTunnelGSO         // for a kind of superframe
	switchNativeTCP         // for the uplink
	switchTUNBatch          // for a worker
	switchPriority          // for a worker
	switches
)

var switchNames = [switches]string{switchUDPSegment: ring.CapUDPSegment, switchTunnelGSO: ring.CapTunnelGSO, switchNativeTCP: "nativeTCP",
	switchTUNBatch: ring.CapTUNBatch, switchPriority: ring.CapPriority}

// tally is what a worker has counted since its last publish: plain words that
// only the worker touches, so that counting costs an add. A frame is one
// received packet (a superframe is 1, a run of n is n).
type tally struct {
	received   [directions]uint64
	generated  [generatedKinds]uint64
	forwarded  [directions][encapKinds]struct{ packets, bytes uint64 }
	dropped    [reasons]uint64
	lost       uint64 // the sum of dropped; never published, never reset: who asks takes a difference
	rejected   uint64 // frames that the rules turned away; as lost
	why        Reason // of the last of them
	sends      uint64 // datagrams handed to the kernel; a run is one
	runs       uint64 // of these, with UDP_SEGMENT
	writes     uint64 // writes to ports
	merged     uint64 // frames that travelled in a merged write behind its first
	segmented  uint64 // superframes cut in software
	whole      uint64 // superframes that left encapsulated and uncut
	tunBatches uint64 // system calls that read or wrote many packets of a TUN
	priorities uint64 // changes of the thread's priority
	asking     uint64 // ns that passed in asking for packets in vain
	datagrams  uint64 // of all sends together
	batches    sizes  // frames of what was read at once
	runSizes   sizes  // datagrams of a send
}

// ledger is the published sum of a worker's tallies, read by anyone.
type ledger struct {
	received   [directions]atomic.Uint64
	generated  [generatedKinds]atomic.Uint64
	forwarded  [directions][encapKinds]struct{ packets, bytes atomic.Uint64 }
	dropped    [reasons]atomic.Uint64
	sends      atomic.Uint64
	runs       atomic.Uint64
	writes     atomic.Uint64
	merged     atomic.Uint64
	segmented  atomic.Uint64
	whole      atomic.Uint64
	tunBatches atomic.Uint64
	priorities atomic.Uint64
	asking     atomic.Uint64
	datagrams  atomic.Uint64
	batches    sizeLedger
	runSizes   sizeLedger
}

// publish moves t into l: once per batch, so the atomics cost nothing per packet.
func (l *ledger) publish(t *tally) {
	for i := range t.received {
		move(&l.received[i], &t.received[i])
	}
	for i := range t.generated {
		move(&l.generated[i], &t.generated[i])
	}
	for d := range t.forwarded {
		for e := range t.forwarded[d] {
			move(&l.forwarded[d][e].packets, &t.forwarded[d][e].packets)
			move(&l.forwarded[d][e].bytes, &t.forwarded[d][e].bytes)
		}
	}
	for i := range t.dropped {
		move(&l.dropped[i], &t.dropped[i])
	}
	move(&l.sends, &t.sends)
	move(&l.runs, &t.runs)
	move(&l.writes, &t.writes)
	move(&l.merged, &t.merged)
	move(&l.segmented, &t.segmented)
	move(&l.whole, &t.whole)
	move(&l.tunBatches, &t.tunBatches)
	move(&l.priorities, &t.priorities)
	move(&l.asking, &t.asking)
	move(&l.datagrams, &t.datagrams)
	l.batches.publish(&t.batches)
	l.runSizes.publish(&t.runSizes)
}

func move(to *atomic.Uint64, from *uint64) {
	if *from != 0 {
		to.Add(*from)
		*from = 0
	}
}

// ForwardedKey is the label pair of forwarded packets and bytes.
type ForwardedKey struct{ Direction, Encap string }

// Volume counts packets and the bytes of their inner IP packets.
type Volume struct{ Packets, Bytes uint64 }

// Counters is a sum over all workers at one moment. At rest
// ΣReceived + ΣGenerated = ΣForwarded.Packets + ΣDropped holds exactly.
type Counters struct {
	Received  map[string]uint64 // by direction it came from
	Generated map[string]uint64 // by kind
	Forwarded map[ForwardedKey]Volume
	Dropped   map[string]uint64 // by reason; all reasons are present

	Sends, Runs, Writes, Merged, Segmented, Whole, TUNBatches, Priorities uint64

	Asking time.Duration // in which workers looked for packets in vain

	Widened     uint64            // wide rings opened
	SwitchedOff map[string]uint64 // by mechanism: how often the kernel has refused it while packets flowed, so that it is not tried again

	Batches  Sizes // frames read at once
	RunSizes Sizes // datagrams handed to a tunnel socket at once

	Workers []WorkerCounters
	Peers   []PeerCounters
	Ports   []PortCounters
}

// WorkerCounters is how one worker is doing.
type WorkerCounters struct {
	Turns  uint64        // of its loop
	Asleep bool          // it waits for packets at this moment
	CPU    time.Duration // used, as of when it last slept, or some milliseconds ago
}

// PeerCounters is the traffic with one peer. Moments are in Unix seconds, 0 for never.
type PeerCounters struct {
	Name, Address string
	Sent, Got     Volume
	Dropped       uint64 // on the way out to it, and from it
	MTU           int    // largest inner packet now
	LastSeen      int64  // it sent something that was accepted
	Rejected      uint64 // of Got, what the rules for what comes from the wire turned away
	LastRejected  int64
	RejectedAs    Reason        // the last of them
	NobodyListens int64         // its node said that nobody takes the tunnel's packets there
	Native        *NativeStatus // nil: the native stream is off
}

// PortCounters is the traffic of one pod's port, seen from the pod.
type PortCounters struct {
	Container, Interface, Device string
	Sent, Got                    Volume // sent by the pod, delivered to the pod
	Dropped                      uint64
	RingDrops                    uint64 // frames the kernel could not queue for us: never received, so not in the law
	LastSeen                     int64
}

// Counters sums what the workers have published.
func (f *Forwarder) Counters() Counters {
	c := Counters{Received: map[string]uint64{}, Generated: map[string]uint64{}, Forwarded: map[ForwardedKey]Volume{}, Dropped: map[string]uint64{}}
	encaps := [encapKinds]string{encap.KindUDP.String(), encap.KindVXLAN.String(), encap.KindIPIP.String(), "none", "native"}
	for _, w := range f.workers {
		l := &w.ledger
		for d := range l.received {
			c.Received[Direction(d).String()] += l.received[d].Load()
			for e := range l.forwarded[d] {
				v := Volume{l.forwarded[d][e].packets.Load(), l.forwarded[d][e].bytes.Load()}
				if (Direction(d) == Wire) == (e == encapNone) || e == encapNative && f.native == nil {
					continue // the wire has an encapsulation, pods and the host have none
				}
				k := ForwardedKey{Direction(d).String(), encaps[e]}
				sum := c.Forwarded[k]
				c.Forwarded[k] = Volume{sum.Packets + v.Packets, sum.Bytes + v.Bytes}
			}
		}
		for g := range l.generated {
			c.Generated[Generated(g).String()] += l.generated[g].Load()
		}
		for _, r := range Reasons() {
			c.Dropped[r.String()] += l.dropped[r].Load()
		}
		c.Sends += l.sends.Load()
		c.Runs += l.runs.Load()
		c.Writes += l.writes.Load()
		c.Merged += l.merged.Load()
		c.TUNBatches += l.tunBatches.Load()
		c.Priorities += l.priorities.Load()
		c.Asking += time.Duration(l.asking.Load())
		c.Segmented += l.segmented.Load()
		c.Whole += l.whole.Load()
		l.batches.addTo(&c.Batches)
		l.runSizes.addTo(&c.RunSizes)
		c.RunSizes.Sum += l.datagrams.Load()
		c.Workers = append(c.Workers, WorkerCounters{Turns: w.progress.Load(), Asleep: w.asleep.Load(), CPU: time.Duration(w.stay.cpu.Load())})
	}
	for _, n := range c.Received {
		c.Batches.Sum += n
	}
	c.Widened = f.widened.Load()
	c.SwitchedOff = map[string]uint64{}
	for i, name := range switchNames {
		c.SwitchedOff[name] = f.switchedOff[i].Load()
	}
	now := time.Now().Unix()
	for _, p := range *f.peerList.Load() {
		t := p.state.accounts.total()
		c.Peers = append(c.Peers, PeerCounters{Name: p.spec.Name, Address: p.spec.Address.String(), Sent: t.sent,
			Got: t.got, Dropped: t.dropped, MTU: p.innerMTU(now), LastSeen: t.lastSeen, Rejected: t.rejected, LastRejected: t.rejection >> 8,
			RejectedAs: Reason(t.rejection & 0xff), NobodyListens: p.state.nobodyListens.Load(), Native: f.native.status(p)})
	}
	for _, p := range *f.portList.Load() {
		c.Ports = append(c.Ports, p.counters())
	}
	return c
}
