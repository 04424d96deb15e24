package agree

import (
	"time"

	"github.com/penstock-net/penstock/encap/native"
)

// The times of the agreement.
const (
	ProbeEvery = 200 * time.Millisecond // while there is traffic
	ProofLife  = 700 * time.Millisecond // without an echo a carrier is dead
	Linger     = 2 * time.Second        // traffic that has stopped counts so long
	Forget     = 5 * time.Second        // a peer that answers no probe, nor sends one, is asked anew who it is

	firstHello = 200 * time.Millisecond
	lastHello  = 60 * time.Second
	leastGap   = 50 * time.Millisecond // between two hellos, or two welcomes, whatever is asked

	streak    = 2 // echoes in a row that make a carrier proven
	maxStreak = 64
	settled   = time.Minute // a carrier that has held so long is forgiven its deaths
)

// Send is a message that is to leave.
type Send struct {
	native.Message
	By   native.Carrier // 0: a plain datagram
	Size int            // pad to so many bytes
}

// Way is how frames may go to the peer.
type Way struct {
	Carrier    native.Carrier // 0: by the standard encapsulation
	Generation uint32         // another one when the peer, or how it takes pieces, has changed
}

// Peer is what is known of one peer. The zero Peer with Self and Nonce set is ready.
type Peer struct {
	Self   native.Message // what we say of ourselves; Kind, To and Nonce are filled in
	Nonce  func() uint64
	Prefer native.Carrier // of several that are proven; 0: tcp. It may change at any time

	known      native.Message // From 0: not
	generation uint32

	helloNonce  uint64 // outstanding; 0: none
	helloWait   time.Duration
	helloNext   time.Duration
	helloLast   time.Duration
	helloSent   bool
	asked       bool // the peer has shown that it does not know us, or has changed
	welcomeLast time.Duration
	welcomed    bool

	wantedUntil time.Duration
	carriers    [2]carrier
	heard       time.Duration // of an echo or a probe, or when the peer became known or was not asked
}

// carrier is what is known of one.
type carrier struct {
	is     native.Carrier
	probes [8]probe // the latest
	next   int
	last   time.Duration // when the latest left
	probed bool
	proof  time.Duration // when the latest probe that was echoed had left
	row    int           // echoes in a row
	need   int           // how many make it proven
	since  time.Duration // proven
	alive  bool
	usable bool
}

type probe struct {
	nonce uint64
	at    time.Duration
}

// order is that in which carriers are preferred, if Peer.Prefer says nothing.
var order = [2]native.Carrier{native.TCP, native.UDP}

// Known is what the peer has said of itself, and a number that changes with it; From is 0 while it is not known.
func (p *Peer) Known() (native.Message, uint32) { return p.known, p.generation }

// Idle reports that Tick has nothing to do until there is traffic or a message.
func (p *Peer) Idle(now time.Duration) bool {
	return !p.asked && now >= p.wantedUntil && p.Way(now).Carrier == 0
}

// Way is how frames may go to the peer now.
func (p *Peer) Way(now time.Duration) Way {
	best := native.Carrier(0)
	for i := range p.carriers {
		if c := &p.carriers[i]; c.proven(now) && (best == 0 || c.is == p.Prefer) {
			best = c.is
		}
	}
	return Way{best, p.generation}
}

func (c *carrier) proven(now time.Duration) bool {
	return c.alive && c.usable && now-c.proof <= ProofLife
}

// Alive reports whether a carrier is proven now.
func (p *Peer) Alive(by native.Carrier, now time.Duration) bool {
	for i := range p.carriers {
		if c := &p.carriers[i]; c.is == by {
			return c.proven(now)
		}
	}
	return false
}

// Why says why the peer is not native, for people; empty if it is.
func (p *Peer) Why(now time.Duration) string {
	switch {
	case p.Way(now).Carrier != 0:
		return ""
	case p.known.From == 0 && now >= p.wantedUntil:
		return "no traffic to it yet"
	case p.known.From == 0:
		return "it does not answer hellos on the native port: not a Penstock node with native on, or a firewall is between"
	case now >= p.wantedUntil:
		return "no traffic to it now"
	case p.Self.Carriers == 0:
		return "this node has no carrier: its underlay is not Ethernet, its MTU is too small, or the kernel lacks what a carrier needs"
	case p.Self.Carriers&p.known.Carriers == 0:
		return "it takes none of our carriers"
	case p.Self.Network != p.known.Network:
		return "its VNI is another"
	}
	for i := range p.carriers {
		if p.carriers[i].usable {
			return "no echo comes back by a carrier: a firewall or a small MTU is between"
		}
	}
	return "no carrier can be used now: the next hop is not known, the way to it is protected by xfrm or not on the underlay's device, or the kernel has refused"
}

// Tick is called often (ten times a second and more) while the peer is not Idle. wanted: there was traffic to it since
// the last Tick. usable: carriers that we can send by to it now.
func (p *Peer) Tick(now time.Duration, wanted bool, usable native.Carrier, out []Send) []Send {
	if wanted {
		p.wantedUntil = now + Linger
	}
	active := now < p.wantedUntil
	if p.known.From != 0 && active && now-p.heard > Forget {
		p.known, p.helloNonce, p.helloNext, p.helloWait = native.Message{}, 0, now, 0
		p.generation++
	}
	if p.known.From == 0 && active || p.asked {
		out = p.hello(now, out)
	}
	asked := false
	for i := range p.carriers {
		c := &p.carriers[i]
		c.is = order[i]
		c.usable = p.known.From != 0 && c.is&p.Self.Carriers&p.known.Carriers&usable != 0 && p.Self.Network == p.known.Network
		if c.row > 0 && now-c.proof > ProofLife || !c.usable {
			c.die(active && c.usable)
		}
		if c.usable && active && (!c.probed || now-c.last >= ProbeEvery) {
			c.probed, c.last = true, now
			n := p.Nonce()
			c.probes[c.next%len(c.probes)] = probe{n, now}
			c.next++
			out = append(out, p.message(native.Probe, n, c.is))
		}
		asked = asked || active && c.usable
	}
	if !asked {
		p.heard = now // silence says nothing of one to whom no probe goes
	}
	return out
}

// die ends what was proven; blame: there was traffic, so the way is at fault, and has to hold longer next time.
func (c *carrier) die(blame bool) {
	if c.alive && blame {
		c.need = min(2*max(c.need, streak), maxStreak)
	}
	c.alive, c.row, c.probes, c.probed = false, 0, [8]probe{}, c.probed && blame
}

// hello asks who the peer is, less and less often.
func (p *Peer) hello(now time.Duration, out []Send) []Send {
	switch {
	case p.helloSent && now-p.helloLast < leastGap:
		return out
	case p.asked:
		p.asked, p.helloWait = false, 0
	case p.helloSent && now < p.helloNext:
		return out
	}
	p.helloWait = min(max(2*p.helloWait, firstHello), lastHello)
	p.helloSent, p.helloLast, p.helloNext = true, now, now+p.helloWait
	p.helloNonce = p.Nonce()
	return append(out, p.message(native.Hello, p.helloNonce, 0))
}

func (p *Peer) message(k native.Kind, nonce uint64, by native.Carrier) Send {
	s := Send{p.Self, by, native.MessageLen}
	s.Kind, s.Nonce, s.To = k, nonce, p.known.From
	if by != 0 {
		s.Size = p.Self.Piece(by)
	}
	return s
}

// Receive takes a message from the peer's address that came by a carrier, or as a plain datagram (0).
func (p *Peer) Receive(now time.Duration, m native.Message, by native.Carrier, out []Send) []Send {
	switch m.Kind {
	case native.Hello:
		if m.From != p.known.From {
			p.asked = true
		}
		if p.welcomed && now-p.welcomeLast < leastGap {
			return out
		}
		p.welcomed, p.welcomeLast = true, now
		s := p.message(native.Welcome, m.Nonce, 0)
		s.To = m.From
		return append(out, s)
	case native.Welcome:
		if p.helloNonce == 0 || m.Nonce != p.helloNonce || m.To != p.Self.From {
			return out
		}
		p.helloNonce, p.helloWait, p.asked = 0, 0, false
		p.adopt(now, m)
	case native.Probe:
		if p.known.From == 0 || m.From != p.known.From || m.To != p.Self.From {
			p.asked = true
			return out
		}
		p.heard = now // it knows us and is who it was, whether our own probes pass or we have none to send
		if by&p.Self.Carriers != 0 {
			return append(out, p.message(native.Echo, m.Nonce, by))
		}
	case native.Echo:
		if m.From != p.known.From || m.To != p.Self.From {
			return out
		}
		for i := range p.carriers {
			if c := &p.carriers[i]; c.is == by && c.usable {
				p.echo(now, c, m.Nonce)
			}
		}
	}
	return out
}

// adopt takes what the peer says of itself.
func (p *Peer) adopt(now time.Duration, m native.Message) {
	m.Kind, m.To, m.Nonce = 0, 0, 0
	p.heard = now
	if m == p.known {
		return
	}
	p.known = m
	p.generation++
	for i := range p.carriers {
		c := &p.carriers[i]
		*c = carrier{is: c.is}
	}
}

func (p *Peer) echo(now time.Duration, c *carrier, nonce uint64) {
	for i := range c.probes {
		pr := &c.probes[i]
		if pr.nonce != nonce || nonce == 0 || now-pr.at > ProofLife {
			continue
		}
		pr.nonce = 0
		p.heard = now
		c.proof = max(c.proof, pr.at)
		c.row++
		if c.alive && now-c.since > settled {
			c.need = streak
		}
		if !c.alive && c.row >= max(c.need, streak) {
			c.alive, c.since = true, now
		}
		return
	}
}
