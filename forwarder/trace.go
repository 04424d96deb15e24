package forwarder

import (
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// A trace is a packet that a worker of its own forwards: the code, the table, the
// peers and the settings are those of all packets, but its ports and sockets are
// ring's fakes, so that nothing leaves, and its counters are nobody's. A tap on
// that worker tells what happened; traceexplain.go puts it into sentences.
//
// What it does not pass: buckets and queues of pods with a bound, and the native
// stream, so that it tells how a packet would go to a peer without it. The memory of
// flows that the host has translated is read but not written.

// TraceSpec is a packet and where it comes from. At most one of Container and Peer is set; with neither it comes from the host.
type TraceSpec struct {
	TracePacket
	Container, Interface string     // the pod that sends it
	Peer                 netip.Addr // underlay address of the peer that sends it
	Unroutable           bool       // the host has no route to the underlay address of the peer that it would leave for
}

// TraceStep is one thing that happened.
type TraceStep struct {
	Name string // source, route, ttl, mtu, encap, sent, …
	Text string // a clause
}

// Trace is what would happen to a packet.
type Trace struct {
	Origin  string // "pod c1/eth0", "peer node-b" or "host"
	Steps   []TraceStep
	Outcome string // a Stage: to-peer, to-pod, to-host or dropped
	Reason  Reason // of dropped
}

// Trace forwards a packet that nobody sees.
func (f *Forwarder) Trace(s TraceSpec) (*Trace, error) {
	s.Src, s.Dst = s.Src.Unmap(), s.Dst.Unmap()
	ip, err := s.build()
	if err != nil {
		return nil, err
	}
	f.control.Lock()
	defer f.control.Unlock()
	if f.stopped {
		return nil, fmt.Errorf("the forwarder has stopped")
	}
	in, from, err := f.traceOrigin(s)
	if err != nil {
		return nil, err
	}
	t, err := f.newTracer(in, s.Unroutable)
	if err != nil {
		return nil, err
	}
	defer t.close()
	t.before = ip
	switch {
	case from != nil:
		err = t.receive(from, ip)
	case in != nil:
		t.read(t.w.outboxes[in.index].port, ip)
	default:
		t.w.flows = newFlowMemory(t.w.index + 1) // from the host a packet is remembered: here, for this once
		t.read(t.w.host, ip)
	}
	if err != nil {
		return nil, err
	}
	return t.explain(in, from), nil
}

// traceOrigin finds the port or the peer that the packet comes from; neither: the host.
func (f *Forwarder) traceOrigin(s TraceSpec) (*port, *peer, error) {
	switch {
	case s.Container != "":
		p := f.findPort(s.Container, s.Interface)
		if p == nil {
			return nil, nil, fmt.Errorf("%s/%s is not attached", s.Container, s.Interface)
		}
		if p.hop.kind == hopRouted {
			return nil, nil, nil // its packets come out of the host's routing
		}
		return p, nil, nil
	case s.Peer.IsValid():
		p := f.peers[s.Peer.Unmap()]
		if p == nil {
			return nil, nil, fmt.Errorf("%s is no peer", s.Peer)
		}
		return nil, p, nil
	}
	return nil, nil, nil
}

// tracer is a worker off the loop.
type tracer struct {
	w       *worker
	tap     *Tap
	taps    taps
	sink    *ring.FakeQueue // of all ports
	sockets []*ring.FakeSocket
	lanes   map[int][]*ring.FakeSocket // by endpoint
	before  []byte                     // the packet as it came
	records []TapRecord
	left    []ring.FakeDatagram
	by      netip.AddrPort // what the first of left was sent by
}

// unroutable refuses what is sent as the kernel does that has no route.
type unroutable struct{ *ring.FakeSocket }

func (unroutable) Send(*ring.Datagrams, int) (int, error) { return 0, syscall.ENETUNREACH }

// newTracer makes it. What it sends by are the addresses of the worker that reads the port; nowhere: and these sockets have no route.
// f.control is held: nothing changes meanwhile.
func (f *Forwarder) newTracer(in *port, nowhere bool) (*tracer, error) {
	index := len(f.workers)
	w, err := newWorker(f, index)
	if err != nil {
		return nil, err
	}
	t := &tracer{w: w, sink: ring.NewFakeQueue(), lanes: map[int][]*ring.FakeSocket{}}
	t.tap = &Tap{f: f, buffer: make([]byte, tapBuffer), queues: make([]*tapQueue, index+1)}
	t.tap.filter.Snap = tapBuffer
	t.tap.queues[index] = newTapQueue()
	t.taps = taps{t.tap}
	w.tapsAt = &atomicTaps{}
	w.tapsAt.Store(&t.taps)

	w.growTransmits(f.peerSlots.size())
	w.growOutboxes(f.portSlots.size())
	for _, p := range f.ports {
		if p.hop.kind != hopRouted {
			w.outboxes[p.index].port = t.shadow(p)
		}
	}
	for _, p := range f.hosts {
		w.hostboxes = append(w.hostboxes, &outbox{port: t.shadow(p)})
	}
	w.host = w.hostboxes[0].port
	like := f.workers[0]
	if in != nil {
		like = f.workers[in.worker]
	}
	for i, l := range like.lanes {
		w.lanes = append(w.lanes, nil)
		if l == nil {
			continue
		}
		fake := &lane{key: l.key, receiving: l.receiving}
		for _, s := range l.sockets {
			o := ring.NewFakeSocket(s.Local())
			t.sockets = append(t.sockets, o)
			t.lanes[i] = append(t.lanes[i], o)
			if nowhere {
				fake.sockets = append(fake.sockets, unroutable{o})
			} else {
				fake.sockets = append(fake.sockets, o)
			}
		}
		for _, e := range l.egress {
			at := slices.IndexFunc(l.sockets, func(s ring.Socket) bool { return s == e.sock })
			fake.egress = append(fake.egress, newEgress(fake.sockets[at], e.index))
		}
		w.lanes[i] = fake
	}
	return t, nil
}

// shadow is a port like p whose frames go nowhere.
func (t *tracer) shadow(p *port) *port {
	s := &port{index: p.index, spec: p.spec, addresses: p.addresses, direction: p.direction, io: t.sink, link: p.link,
		mtu: p.mtu, gso: p.gso, uso: p.uso, hop: p.hop, accounts: p.accounts}
	s.mac.Store(p.mac.Load())
	return s
}

func (t *tracer) close() {
	t.sink.Close()
	for _, s := range t.sockets {
		s.Close()
	}
	t.w.poller.Close()
}

// read lets the worker read ip from a port.
func (t *tracer) read(p *port, ip []byte) {
	b := ip
	if p.link != 0 {
		b = append(make([]byte, 0, encap.EthernetLen+len(ip)), GatewayMAC[:]...)
		mac := unpackMAC(p.mac.Load())
		kind := uint16(encap.EtherTypeIPv4)
		if ip[0]>>4 == 6 {
			kind = encap.EtherTypeIPv6
		}
		b = append(append(b, mac[:]...), byte(kind>>8), byte(kind))
		b = append(b, ip...)
	}
	t.sink.Inject(ring.FakePacket{Data: b})
	t.w.begin()
	t.w.servePort(p, false)
	t.end()
}

// receive lets the worker receive ip from a peer.
func (t *tracer) receive(p *peer, ip []byte) error {
	l, i := t.w.lanes[p.endpoint], 0
	if p.kind == encap.KindIPIP && ip[0]>>4 == 6 {
		i = laneInner6
	}
	b := t.w.f.encapsulate(p, ip)
	if len(b) > 65507 {
		return fmt.Errorf("no datagram holds a packet of %d bytes and its encapsulation", len(ip))
	}
	t.lanes[p.endpoint][i].Inject(ring.FakeDatagram{Data: b, Addr: netip.AddrPortFrom(p.spec.Address, p.spec.Port)})
	t.w.begin()
	t.w.serveLane(l, i, true, false)
	t.end()
	return nil
}

// end collects what happened.
func (t *tracer) end() {
	t.tap.Read(func(r *TapRecord) {
		o := *r
		o.Data = slices.Clone(r.Data)
		t.records = append(t.records, o)
	})
	for _, s := range t.sockets {
		sent := s.Sent()
		if len(t.left) == 0 && len(sent) > 0 {
			t.by = s.Local()
		}
		t.left = append(t.left, sent...)
	}
}
