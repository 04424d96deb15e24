package forwarder

import (
	"encoding/binary"
	"net/netip"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// frame is the one packet that the worker has in its hand.
type frame struct {
	mem []byte       // lent: room in front, then the IP packet, exactly to its end
	at  int          // where in mem the IP packet begins
	v   encap.Virtio // offsets from the IP header on
	p   encap.Packet
	in  *port // where it was read; nil from the wire and for our own
	by  *peer // who sent it over the wire; else nil

	native bool // by the native stream: v is what the peer says
	judged bool // the worker's standing has seen it
}

func (f *frame) ip() []byte { return f.mem[f.at:] }

// outbound takes a batch that was read from a port through all decisions:
//
//	link header → parse → anti-spoof → route → TTL → MTU → transmit or deliver
//
// The frames are lent until the flush that follows it.
func (w *worker) outbound(in *port, frames []ring.Frame) {
	w.tally.received[in.direction] += uint64(len(frames))
	bytes, before := 0, w.tally.lost
	for i := range frames {
		bytes += w.outboundFrame(in, &frames[i])
	}
	if in.direction == Pod {
		a := &in.accounts[w.index]
		a.seen(w.now)
		a.sent.add(uint64(len(frames)), uint64(bytes))
		a.drop(w.tally.lost - before)
	}
}

// outboundFrame ends with the frame sent, delivered, handed over or dropped; it
// returns the length of its IP packet.
func (w *worker) outboundFrame(in *port, r *ring.Frame) int {
	f := &w.frame
	*f = frame{mem: r.Mem, at: r.Start, v: encap.Virtio(r.Virtio), in: in}
	if w.taps != nil {
		w.tapRead(f)
	}
	if r.Truncated {
		w.drop(DropTruncated)
		return 0
	}
	if in.link != 0 && !w.ethernet(in, f, r.VLAN) {
		return 0
	}
	if fault := encap.Parse(f.ip(), &f.p); fault != encap.OK {
		w.drop(faultReason[fault])
		return 0
	}
	f.mem = f.mem[:f.at+f.p.Len] // Ethernet pads short packets
	if in.link != 0 && (f.p.Version == 6) != (etherType(f) == encap.EtherTypeIPv6) {
		w.drop(DropBadVersion)
		return f.p.Len
	}
	if fault := f.v.Check(f.ip(), &f.p); fault != encap.OK {
		w.drop(faultReason[fault])
		return f.p.Len
	}
	if in.direction == Pod && !w.fromPod(in, f) {
		return f.p.Len
	}
	if f.p.Dst.IsMulticast() || f.p.Dst == broadcast4 {
		w.drop(DropMulticast)
		return f.p.Len
	}
	w.standing.saw(f)
	w.route(f)
	return f.p.Len
}

// ethernet takes the link header off and answers ARP.
func (w *worker) ethernet(in *port, f *frame, vlan bool) bool {
	eth := f.mem[f.at:]
	if len(eth) < encap.EthernetLen {
		w.drop(DropShort)
		return false
	}
	switch binary.BigEndian.Uint16(eth[12:]) {
	case encap.EtherTypeIPv4, encap.EtherTypeIPv6:
		if vlan {
			w.drop(DropNotIP)
			return false
		}
	case encap.EtherTypeARP:
		w.answerARP(in, eth)
		return false
	default:
		w.drop(DropNotIP)
		return false
	}
	if src := encap.Ethernet(eth).Src(); in.mac.Load() == 0 && !src.IsMulticast() && !src.IsZero() {
		in.mac.Store(packMAC(src)) // there is one station on a veth; later only its own packets may change it
	}
	if f.v.Flags&encap.NeedsCsum != 0 && f.v.CsumStart < encap.EthernetLen {
		w.drop(DropBadVirtio)
		return false
	}
	f.v.CsumStart -= encap.EthernetLen
	f.v.HdrLen -= min(f.v.HdrLen, encap.EthernetLen)
	f.at += encap.EthernetLen
	return true
}

// etherType reads the type in front of the IP header of a frame with a link header.
func etherType(f *frame) uint16 { return binary.BigEndian.Uint16(f.mem[f.at-2:]) }

// fromPod applies what holds for packets from pods alone.
func (w *worker) fromPod(in *port, f *frame) bool {
	// A pod may send ICMP of no bytes at all, which then has no type. A first fragment has that of the message that it begins; neighbour
	// discovery in fragments is none (RFC 6980).
	if l4 := f.ip()[f.p.L4:]; f.p.Frag != encap.LaterFrag && len(l4) > 0 {
		whole := f.p.Frag == encap.NotFrag
		switch {
		case f.p.Version == 6 && f.p.Proto == encap.ProtoICMPv6:
			switch l4[0] {
			case icmp6Solicit:
				if whole && w.answerND(in, f) {
					return false
				}
			case icmp6Advert:
				if whole && f.p.Dst == Gateway6 { // the answer to our own question
					w.learnMAC(in, f)
					w.drop(DropAnswered)
					return false
				}
			case icmp6RouterAdvert, icmp6Redirect:
				w.drop(DropRouterAdvert)
				return false
			}
		case f.p.Version == 4 && f.p.Proto == encap.ProtoICMP && l4[0] == icmp4Redirect:
			w.drop(DropRouterAdvert)
			return false
		}
	}
	if f.p.Dst.IsMulticast() || f.p.Dst == broadcast4 {
		w.drop(DropMulticast)
		return false
	}
	if martian(f.p.Dst) {
		w.drop(DropMartian)
		return false
	}
	for _, a := range in.addresses {
		if f.p.Src == a {
			w.learnMAC(in, f)
			return true
		}
	}
	w.drop(DropSpoofed)
	return false
}

// martian reports an address that no packet outside of a host may have as its destination (RFC 1122 3.2.1.3, RFC 4291 2.5): the host
// would take it for itself where route_localnet is on, as kube-proxy sets it, and services on its loopback trust who reaches them.
func martian(a netip.Addr) bool {
	return a.IsLoopback() || a.Is4() && a.As4()[0] == 0 || a.IsUnspecified()
}

// learnMAC notes the pod's MAC, which plugins may change under way.
func (w *worker) learnMAC(in *port, f *frame) {
	if in.link == 0 {
		return
	}
	src := encap.MAC(f.mem[f.at-8 : f.at-2])
	if m := packMAC(src); m != in.mac.Load() && !src.IsMulticast() && m != 0 {
		in.mac.Store(m)
	}
}

// route decides where a packet that a port or we ourselves sent goes.
func (w *worker) route(f *frame) {
	if w.tunnelLoop(f) {
		w.drop(DropTunnelLoop)
		return
	}
	fromHost := f.in != nil && f.in.direction == Host
	if fromHost && w.flows.enabled.Load() && !w.rememberFlow(f) {
		w.drop(DropFlowsFull)
		return
	}
	h := w.network.Route(f.p.Dst)
	if h == nil {
		h = w.f.hops.noRoute
	}
	switch h.kind {
	case hopPort:
		if !fromHost && h.port.translated.Load() && w.flows.isAnswer(f.ip(), &f.p) {
			w.toHost(f)
			return
		}
		w.toPort(f, h.port)
	case hopPeer:
		w.toPeer(f, h.peer)
	case hopSelf, hopHost, hopRouted:
		if fromHost {
			// The host's routes sent it to us and ours would send it back.
			w.refuse(f, DropNoRoute, encap.NetUnreachable)
			return
		}
		w.toHost(f)
	case hopNoPod:
		w.refuse(f, DropNoPod, encap.HostUnreachable)
	case hopAwaited:
		w.drop(DropPortDown)
	default:
		w.refuse(f, DropNoRoute, encap.NetUnreachable)
	}
}

// rememberFlow notes a flow that the host has sent on in the name of a local
// pod: its answers must go through the host again. False: no room.
func (w *worker) rememberFlow(f *frame) bool {
	h := w.network.Route(f.p.Src)
	if h == nil || h.kind != hopPort {
		return true
	}
	if !w.flows.remember(w.index, f.ip(), &f.p) {
		return false
	}
	if !h.port.translated.Load() {
		h.port.translated.Store(true)
	}
	return true
}

// tunnelLoop reports a packet that is, or would become, our encapsulation
// inside itself: addressed to a tunnel port or protocol of any node.
// A first fragment counts as the packet that it begins, and without it the
// others never become one. It has its ports: extension headers alone are no
// first fragment (encap.FaultBadFragment).
func (w *worker) tunnelLoop(f *frame) bool {
	p := &f.p
	switch p.Proto {
	case encap.ProtoUDP, encap.ProtoTCP:
		port := p.DstPort
		switch p.Frag {
		case encap.LaterFrag:
			return false
		case encap.FirstFrag:
			port = binary.BigEndian.Uint16(f.ip()[p.L4+2:])
		}
		if !w.f.tunnelPorts.has(p.Proto, port) {
			return false
		}
	case encap.ProtoIPIP, encap.ProtoIPv6:
		if !w.f.tunnelPorts.ipip.Load() {
			return false
		}
	default:
		return false
	}
	return p.Dst == w.f.address || w.view.Peer(p.Dst) != nil
}

// forwarded applies a router's duties to a packet on its way from one pod on:
// the TTL. The host has lowered it already for what it forwards, and is the
// origin of the rest, where 0 is no TTL to send with (RFC 1122 3.2.1.7); our
// own packets start with a fresh one.
func (w *worker) forwarded(f *frame) bool {
	fresh := f.in != nil && f.in.direction == Host || f.in == nil && f.by == nil
	if fresh && f.p.TTL > 0 {
		return true
	}
	if f.p.TTL <= 1 {
		w.refuse(f, DropTTLExpired, encap.TimeExceeded)
		return false
	}
	encap.DecrementTTL(f.ip(), &f.p)
	return true
}

// packetSize is the largest IP packet that the frame becomes when it is cut.
func packetSize(f *frame) int {
	if f.v.IsGSO() {
		return min(f.p.Len, encap.HeaderLen(f.ip(), &f.p)+int(f.v.GSOSize))
	}
	return f.p.Len
}

// toPeer sends f over the wire.
func (w *worker) toPeer(f *frame, p *peer) {
	if !w.forwarded(f) {
		return
	}
	mtu := p.innerMTU(w.now)
	if f.p.Version == 6 {
		// IPv6 sends 1280 bytes whatever it is told (RFC 8200 section 5): told less, it would only be refused for ever.
		mtu = max(mtu, min(encap.MinMTU6, p.mtu))
	}
	if w.live.clampMSS && f.p.Proto == encap.ProtoTCP {
		encap.ClampMSS(f.ip(), &f.p, f.v, mtu)
	}
	if packetSize(f) > mtu {
		w.tooBig(f, mtu, &destination{peer: p})
		return
	}
	if w.taps != nil {
		w.tapOut(f, nil, p)
	}
	if w.native != nil && w.toNative(f, p) {
		return
	}
	w.toStandard(f, p)
}

// toStandard sends f by p's encapsulation.
func (w *worker) toStandard(f *frame, p *peer) {
	switch {
	case f.v.IsGSO():
		if !w.transmitWhole(f, p) {
			w.transmitSegments(f, p)
		}
	default:
		w.transmit(f, p)
	}
}

// toPort delivers f to a pod of this node.
func (w *worker) toPort(f *frame, p *port) {
	if !w.forwarded(f) {
		return
	}
	if packetSize(f) > p.mtu {
		w.tooBig(f, p.mtu, &destination{port: p})
		return
	}
	if w.taps != nil {
		w.tapOut(f, p, nil)
	}
	w.deliver(f, w.outboxes[p.index], Pod)
}

// toHost hands f to the host's stack, which routes it on as it likes. The
// queue is that of the flow: the kernel answers on the queue last written.
func (w *worker) toHost(f *frame) {
	if w.taps != nil {
		w.tapOut(f, nil, nil)
	}
	w.deliver(f, w.hostboxes[f.p.Hash%uint32(len(w.hostboxes))], Host)
}
