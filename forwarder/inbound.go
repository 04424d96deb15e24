package forwarder

import (
	"encoding/binary"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// inbound takes a batch of n received buffers, lent by the inbox, through all
// decisions:
//
//	outer source → borders (run, superframe, one) → decapsulate → parse →
//	inner source → route → tunnel loop → checksum → ECN → way back → TTL →
//	MTU → merge and deliver
func (w *worker) inbound(l *lane, n int) {
	for i := range n {
		d := w.inbox.Datagram(i)
		if w.taps != nil {
			w.tapped.hand, w.tapped.outer, w.tapped.key = nil, d, l.key
		}
		h := w.view.Peer(d.From.Addr())
		if h == nil {
			w.stranger(DropUnknownPeer, d)
			continue
		}
		p, before, bytes := h.peer, w.taken(), 0
		switch {
		case p.kind != l.key.kind || p.spec.Port != l.key.port:
			w.stranger(DropWrongEncap, d)
		case d.Truncated:
			w.tally.received[Wire]++
			w.frame.judged = false
			w.drop(DropTruncated)
		default:
			bytes = w.receive(p, d)
		}
		w.credit(p, before, bytes)
	}
}

// taken is what a worker has counted up to a moment.
type taken struct{ received, lost, rejected uint64 }

func (w *worker) taken() taken {
	return taken{w.tally.received[Wire], w.tally.lost, w.tally.rejected}
}

// credit puts what was counted since before to the account of p, which sent it,
// and that p was heard, unless all of it was turned away.
func (w *worker) credit(p *peer, before taken, bytes int) {
	a, now := &p.state.accounts[w.index], w.taken()
	frames, rejected := now.received-before.received, now.rejected-before.rejected
	if rejected != 0 {
		a.reject(rejected, w.tally.why, w.now)
	}
	if rejected == 0 || frames > rejected {
		a.seen(w.now)
	}
	a.got.add(frames, uint64(bytes))
	a.drop(now.lost - before.lost)
}

// stranger drops a whole buffer; a run counts as many frames as it has.
func (w *worker) stranger(r Reason, d ring.Datagram) {
	n := 1
	if d.Segment > 0 && len(d.Data) > d.Segment {
		n = (len(d.Data) + d.Segment - 1) / d.Segment
	}
	w.tally.received[Wire] += uint64(n)
	w.standing.loose += n
	w.reject(r, n)
	w.dropN(r, n)
	if w.taps != nil {
		w.tapOuter(r)
	}
}

// receive finds the packets in a buffer from p. The UDP_GRO size that came with
// it means one of two things: the borders of a run, or, for a superframe that
// the kernel passed whole, the size of its inner segments. The first inner
// length tells them apart.
func (w *worker) receive(p *peer, d ring.Datagram) (bytes int) {
	b, segment := d.Data, d.Segment
	if segment <= 0 || segment >= len(b) {
		return w.receiveOne(p, b, 0, d.TOS)
	}
	off, fault := encap.Decap(p.kind, b, p.vni, p.own)
	if fault == encap.OK {
		total := innerLength(b[off:])
		switch {
		case off+total == len(b):
			return w.receiveOne(p, b, segment, d.TOS)
		case total > 0 && off+total > segment:
			w.stranger(DropBadGRO, d)
			return 0
		}
	}
	for len(b) > 0 {
		n := min(segment, len(b))
		bytes += w.receiveOne(p, b[:n:n], 0, d.TOS)
		b = b[n:]
	}
	return bytes
}

// innerLength is the length that an IP header claims, 0 if it cannot be one.
func innerLength(b []byte) int {
	switch {
	case len(b) >= encap.IPv4Len && b[0]>>4 == 4:
		return int(binary.BigEndian.Uint16(b[2:]))
	case len(b) >= encap.IPv6Len && b[0]>>4 == 6:
		return encap.IPv6Len + int(binary.BigEndian.Uint16(b[4:]))
	}
	return 0
}

// receiveOne judges one encapsulated packet, which may be a superframe with
// inner segments of gso bytes (0: not known). It returns its inner length.
func (w *worker) receiveOne(p *peer, b []byte, gso int, outerTOS uint8) int {
	w.tally.received[Wire]++
	w.frame.judged = false
	if w.taps != nil {
		w.tapped.hand, w.tapped.outer.Data = nil, b
	}
	at, fault := encap.Decap(p.kind, b, p.vni, p.own)
	if fault != encap.OK {
		if fault == encap.FaultNotIP && w.native != nil {
			if is, bytes := w.fenced(p, b); is {
				w.tally.received[Wire]-- // no frame
				return bytes
			}
		}
		w.drop(faultReason[fault])
		return 0
	}
	f := &w.frame
	*f = frame{mem: b, at: at, by: p}
	if fault := encap.Parse(f.ip(), &f.p); fault != encap.OK {
		w.drop(faultReason[fault])
		return 0
	}
	f.mem = f.mem[:at+f.p.Len]
	if w.taps != nil {
		w.tapReceived(f, gso)
	}
	w.accept(f, gso, outerTOS)
	return f.p.Len
}

// accept applies the rules of what may come out of the tunnel.
func (w *worker) accept(f *frame, gso int, outerTOS uint8) {
	p := f.by
	if h := w.network.Route(f.p.Src); h == nil || h.kind != hopPeer || h.peer.state != p.state {
		w.drop(DropInnerSource)
		return
	}
	h := w.network.Route(f.p.Dst)
	if h == nil || h.kind != hopPort && h.kind != hopSelf && h.kind != hopRouted {
		switch {
		case h != nil && h.kind == hopNoPod:
			w.refuse(f, DropNoPod, encap.HostUnreachable)
		case h != nil && h.kind == hopAwaited:
			w.drop(DropPortDown)
		default:
			w.drop(DropNotLocal)
		}
		return
	}
	if w.tunnelLoop(f) {
		w.drop(DropTunnelLoop)
		return
	}
	w.standing.saw(f)
	mtu := w.live.podMTU
	if h.kind == hopPort {
		mtu = h.port.mtu
	}
	if f.native {
		// What is partial says so; a superframe is what Check has found it to be.
		if f.v.Flags&encap.NeedsCsum == 0 && encap.CheckL4(f.ip(), &f.p) == encap.ChecksumBad {
			w.drop(DropInnerChecksum)
			return
		}
	} else if !w.checksum(f, gso, mtu) {
		return
	}
	if outerTOS&3 != 0 {
		tos, bad := encap.ECNDecap(outerTOS, f.p.TOS)
		if bad {
			w.drop(DropECN)
			return
		}
		if tos != f.p.TOS {
			encap.SetTOS(f.ip(), &f.p, tos)
		}
	}
	if h.kind != hopPort || h.port.translated.Load() && w.flows.isAnswer(f.ip(), &f.p) {
		w.toHost(f)
		return
	}
	if !w.forwarded(f) {
		return
	}
	if packetSize(f) > mtu {
		w.tooBig(f, mtu, &destination{port: h.port})
		return
	}
	if w.taps != nil {
		w.tapOut(f, h.port, nil)
	}
	w.deliverMerged(f, w.outboxes[h.port.index])
}

// checksum verifies the inner checksum and finds out what a superframe is. A
// field that holds the pseudo-header sum is a checksum that the sender left to
// us: it goes on as it is, the pod's kernel takes it so.
func (w *worker) checksum(f *frame, gso, mtu int) bool {
	if gso > 0 || f.p.Len > mtu && f.p.Proto == encap.ProtoTCP && f.p.Frag == encap.NotFrag {
		v, fault := encap.RecoverSuperframe(f.ip(), &f.p, gso, mtu)
		if fault != encap.OK {
			w.drop(faultReason[fault])
			return false
		}
		f.v = v
		return true
	}
	switch encap.CheckL4(f.ip(), &f.p) {
	case encap.ChecksumBad:
		w.drop(DropInnerChecksum)
		return false
	case encap.ChecksumPartial:
		f.v = encap.Virtio{Flags: encap.NeedsCsum, CsumStart: f.p.L4, CsumOffset: 6}
		if f.p.Proto == encap.ProtoTCP {
			f.v.CsumOffset = 16
		}
	}
	return true
}
