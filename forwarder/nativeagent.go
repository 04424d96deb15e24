package forwarder

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/forwarder/agree"
	"github.com/penstock-net/penstock/ring"
)

// nativeAgreement is one peer in the plane's eyes.
type nativeAgreement struct {
	agree.Peer
	peer       *peer
	to         ring.Sockaddr
	path       *UplinkPath  // of outer
	outer      native.Outer // of messages by the tcp carrier
	generation uint32       // of what is published
}

// nativeTick is how often peers with traffic are looked at.
const nativeTick = 50 * time.Millisecond

// now is the agreement's clock.
func (n *nativePlane) now() time.Duration { return n.f.env.now().Sub(n.f.started) }

// run decides until stop is closed. It wakes only while there is traffic to a peer, or a message.
func (n *nativePlane) run() {
	tick := time.NewTicker(nativeTick)
	defer tick.Stop()
	active := true
	for {
		// Who looks at every tick need not be poked: each look lets the next frame poke again, and waking costs more than a burst.
		ticks, poked := tick.C, n.poked
		if active {
			poked = nil
		} else {
			ticks = nil
		}
		select {
		case <-n.stop:
			return
		case e := <-n.inbox:
			n.handle(e)
			active = true
		case <-poked:
			active = n.look()
		case <-ticks:
			active = n.look()
		}
	}
}

// look has every peer's agreement do what is due; false: there is nothing until something happens.
func (n *nativePlane) look() (active bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	gone := maps.Clone(n.peers)
	for _, p := range *n.f.peerList.Load() {
		delete(gone, p.state)
		wanted := p.state.native.wanted.Swap(false)
		a := n.peers[p.state]
		if a == nil && !wanted {
			continue
		}
		a = n.agreement(p)
		usable := n.self.Carriers
		if p.state.native.broken.Load() {
			usable &^= native.UDP
		}
		if path := p.state.direct.Load(); path == nil || path.Index != n.index || n.refused.Load() {
			usable &^= native.TCP
		}
		a.Prefer = n.prefer
		n.send(a, a.Tick(now, wanted, usable, nil))
		n.publish(a, now)
		if a.Idle(now) {
			continue
		}
		active = true
	}
	for s := range gone {
		n.forget(s)
	}
	return active
}

// agreement is that of a peer, made when it is first needed.
func (n *nativePlane) agreement(p *peer) *nativeAgreement {
	a := n.peers[p.state]
	if a == nil {
		// Each agreement is an instance of its own, so that a peer that is taken out and put in again starts new streams.
		self := n.self
		self.From, self.FirstTag = rand.Uint64()|1, firstTag()
		a = &nativeAgreement{Peer: agree.Peer{Self: self, Nonce: rand.Uint64}, to: ring.NewSockaddr(netip.AddrPortFrom(p.spec.Address, n.f.tunnelPorts.native))}
		n.peers[p.state] = a
	}
	a.peer = p
	return a
}

// nativeMinTag is the least tag: tags are source ports of the tcp carrier, and what comes from a lower port is none of it.
const nativeMinTag = 1 << 15

// firstTag is such that this one and those of all workers are no less.
func firstTag() uint16 { return nativeMinTag + uint16(rand.Uint32N(1<<15-1<<8)) }

// forget ends an agreement: frames go by the encapsulation from now on.
func (n *nativePlane) forget(s *peerState) {
	s.native.way.Store(nil)
	s.native.from.Store(nil)
	delete(n.peers, s)
}

// handle takes a message.
func (n *nativePlane) handle(e nativeEvent) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.agreement(e.peer)
	switch e.m.Kind {
	case native.Fence:
		if a.names(e.m) {
			n.answerFence(e)
		}
		return
	case native.Passed:
		if a.names(e.m) {
			if i := fenceWorker(e.m.Nonce); i < len(n.f.workers) {
				n.f.workers[i].ask(func(w *worker) error { w.fencePassed(e.m.Nonce); return nil })
			}
		}
		return
	}
	now := n.now()
	n.send(a, a.Receive(now, e.m, e.by, nil))
	n.publish(a, now)
}

// names reports whether a message is of this agreement, and not of one before a restart of either side.
func (a *nativeAgreement) names(m native.Message) bool {
	known, _ := a.Known()
	return m.From == known.From && m.To == a.Self.From
}

// answerFence says when all has left that came before a fence. n.mu is held, but not over the wait for the workers: metrics and reloads
// need it, and may change the agreement meanwhile.
func (n *nativePlane) answerFence(e nativeEvent) {
	n.mu.Unlock()
	passed := n.passed(e)
	n.mu.Lock()
	if a := n.peers[e.peer.state]; passed && a != nil && a.names(e.m) {
		s := agree.Send{Message: a.Self, Size: native.MessageLen}
		s.Kind, s.To, s.Nonce = native.Passed, e.m.From, e.m.Nonce
		n.send(a, []agree.Send{s})
	}
}

// passed waits until all has left this node that came before a fence. Behind a UDP socket a flow's frames and the fence have one
// worker, who says so behind its batch; ipip has no ports, so a fence lies in one worker's socket and what it was sent behind in all of them.
// False: a worker does not come to it in the time that the peer waits.
func (n *nativePlane) passed(e nativeEvent) bool {
	if e.by != 0 || e.peer.kind != encap.KindIPIP || len(n.f.workers) == 1 {
		return true
	}
	late := time.After(nativeFenceWait)
	var waits []<-chan error
	for _, w := range n.f.workers {
		waits = append(waits, w.ask(func(w *worker) error { w.drainLane(e.peer.endpoint); return nil }))
	}
	for _, wait := range waits {
		select {
		case <-wait:
		case <-late:
			return false
		}
	}
	return true
}

// publish tells the workers what has changed.
func (n *nativePlane) publish(a *nativeAgreement, now time.Duration) {
	s := &a.peer.state.native
	known, generation := a.Known()
	if from := s.from.Load(); from == nil || generation != a.generation {
		a.generation = generation
		switch {
		case known.From == 0:
			s.from.Store(nil)
		default:
			s.from.Store(newNativePeer(known))
		}
	}
	way, old := a.Way(now), s.way.Load()
	switch {
	case way.Carrier == 0 && old != nil:
		s.way.Store(nil)
		n.f.log.Info("the native stream to a peer has ended; frames go by the encapsulation", "peer", a.peer.spec.Name, "why", a.Why(now))
	case way.Carrier != 0:
		me := a.Self
		me.To = known.From
		next := newNativeWay(way.Carrier, a.to, me)
		for _, c := range [...]native.Carrier{native.TCP, native.UDP} {
			if !a.Alive(c, now) {
				next.dead |= c
			}
		}
		if next.same(old) && next.dead == old.dead {
			return
		}
		s.way.Store(next)
		if !next.same(old) {
			n.f.log.Info("frames go to a peer as the native stream", "peer", a.peer.spec.Name, "carrier", way.Carrier.String())
		}
	}
}

// send sends messages; what the kernel does not take is lost, as on any wire.
func (n *nativePlane) send(a *nativeAgreement, out []agree.Send) {
	for i := range out {
		size := out[i].Size
		switch out[i].By {
		case native.TCP:
			n.sendTCP(a, &out[i])
			continue
		case native.UDP:
			size += native.UDPLen
		}
		out[i].Put(n.full)
		n.out.Reset()
		if n.out.Begin(&a.to, 0, 0) && n.out.Append(n.full[:size]) {
			_, _ = n.sock.Send(n.out, 0)
		}
		clear(n.full[:native.MessageLen])
	}
	if len(out) > 0 {
		n.sock.Errors(func(*ring.SocketError) {}) // a node without the stream answers so
	}
}
