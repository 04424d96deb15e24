package forwarder

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// drainErrors takes in the ICMP errors about our own datagrams. The kernel has
// matched each with a socket of ours by the packet that it quotes.
func (w *worker) drainErrors(s ring.Socket) {
	if w.view == nil {
		w.begin()
	}
	s.Errors(w.onError)
}

// socketError learns a path MTU, and notes that nobody takes what we send a
// peer, for doctor; all other errors only tell that a peer is not there, which
// its silence tells as well. Our own kernel's word of an MTU is taken as it is: it says so
// of what we have just sent, and means the device by which the route to the peer leaves (IP_PMTUDISC_PROBE).
func (w *worker) socketError(e *ring.SocketError) {
	h := w.view.Peer(e.Peer.Addr())
	if h == nil {
		return
	}
	if nobodyListens(e, h.peer) {
		if s := h.peer.state; s.nobodyListens.Load() != w.now {
			s.nobodyListens.Store(w.now)
		}
		return
	}
	if e.Errno != syscall.EMSGSIZE || e.MTU <= 0 {
		return
	}
	p, mtu, said := h.peer, max(e.MTU, minLearnedMTU), e.Offender.String()
	switch {
	case e.Origin == ring.OriginLocal:
		mtu, said = max(e.MTU, minDeviceMTU), "this host, of the device that the route leaves by"
		if encap.PodMTU(mtu, p.kind, p.spec.Address.Is6()) >= p.mtu {
			return
		}
	case !w.onPath(e) || !w.tooBigForPath(e, p):
		return
	}
	if p.state.learn(mtu, time.Unix(w.now, 0)) {
		w.f.log.Info("the path to a peer has a smaller MTU", "peer", p.spec.Name, "underlayMTU", mtu, "innerMTU", p.innerMTU(w.now), "said", said, "for", learnedLifetime)
	}
}

// nobodyListens reports whether it is the peer's node that says so, and of the
// tunnel: the native stream has a port of its own. A firewall there that
// rejects says the same, as may a pod that the node masquerades.
func nobodyListens(e *ring.SocketError, p *peer) bool {
	return (e.Errno == syscall.ECONNREFUSED || e.Errno == syscall.ENOPROTOOPT) && e.Origin != ring.OriginLocal &&
		e.Offender.Unmap() == p.spec.Address && e.Peer.Port() == p.spec.Port
}

// onPath reports whether who sends an ICMP error can be on the way between
// nodes. Pods are not, here or elsewhere: one that quotes the tunnel to its node
// would lower the MTU for all of the node's pods. Nor has anything an address of
// the pods' network there, where the underlay is outside it. The kernel itself
// has none, or the node's. Nor is the peer itself: no host finds what is for it
// too big, and a pod whose packets it masquerades speaks with its address.
func (w *worker) onPath(e *ring.SocketError) bool {
	offender := e.Offender.Unmap()
	if !offender.IsValid() {
		return true
	}
	if offender == e.Peer.Addr().Unmap() {
		return false
	}
	h := w.network.Route(offender)
	return h == nil || h.kind == hopHost
}

// tooBigForPath reports whether the error can be true: the MTU is less than we
// know of, and what is quoted, as far as it is, was longer than that and went
// to that peer's pods. The kernel has compared addresses and ports, but for
// ipip there are no ports, and whoever knows two nodes' addresses can quote
// "us". RFC 792 asks for 8 bytes behind the IP header, so that of ipip the
// inner length is always there.
func (w *worker) tooBigForPath(e *ring.SocketError, p *peer) bool {
	outer6 := p.spec.Address.Is6()
	if encap.PodMTU(e.MTU, p.kind, outer6) >= p.mtu {
		return false
	}
	var inner []byte
	if n := p.header.Len(); n < len(e.Quoted) {
		inner = e.Quoted[n:]
	}
	if len(inner) < 6 { // what is behind UDP is rarely quoted; the ports were ours
		return p.kind != encap.KindIPIP
	}
	length, dst := 0, netip.Addr{}
	switch inner[0] >> 4 {
	case 4:
		length = int(binary.BigEndian.Uint16(inner[2:]))
		if len(inner) >= encap.IPv4Len {
			dst = netip.AddrFrom4([4]byte(inner[16:]))
		}
	case 6:
		length = encap.IPv6Len + int(binary.BigEndian.Uint16(inner[4:]))
		if len(inner) >= encap.IPv6Len {
			dst = netip.AddrFrom16([16]byte(inner[24:]))
		}
	default:
		return false // we send nothing else
	}
	if length+p.kind.Overhead(outer6) <= e.MTU {
		return false
	}
	if !dst.IsValid() {
		return true
	}
	h := w.network.Route(dst)
	return h != nil && h.kind == hopPeer && h.peer.state == p.state
}

// said is when something that may happen with every packet was last logged, in Unix seconds: once a minute will do.
type said struct{ atomic.Int64 }

// again reports whether it is to be logged now.
func (s *said) again(now int64) bool {
	last := s.Load()
	return now-last >= 60 && s.CompareAndSwap(last, now)
}

// complain logs what happens again and again, at most once a minute and kind. It has a lock and allocates: of packets see said.
func (f *Forwarder) complain(msg, key, value string, err error) {
	now := time.Now().Unix()
	f.complaints.Lock()
	defer f.complaints.Unlock()
	if now-f.complaints.last[msg+value] < 60 {
		return
	}
	if len(f.complaints.last) > 1000 {
		clear(f.complaints.last)
	}
	f.complaints.last[msg+value] = now
	f.log.Warn(msg, key, value, "error", err)
}
