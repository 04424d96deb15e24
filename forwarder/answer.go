package forwarder

import (
	"net/netip"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// Types that the forwarder looks at (IANA icmp-parameters, icmpv6-parameters).
const (
	icmp4Redirect     = 5
	icmp6RouterAdvert = 134
	icmp6Solicit      = 135
	icmp6Advert       = 136
	icmp6Redirect     = 137
)

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Answers are rationed by source, so that one flooding source does not silence
// the answers to others: a burst, then so many a second for each bucket.
const (
	answerBuckets = 64
	answerRate    = 100
	answerBurst   = 20
)

type answerLimiter [answerBuckets]struct {
	nanos  int64 // when credit was last added
	credit int64 // in billionths of an answer
}

func (l *answerLimiter) allow(hash uint32, nanos int64) bool {
	b := &l[hash%answerBuckets]
	if b.nanos == 0 {
		b.nanos, b.credit = nanos, answerBurst*1e9
	}
	elapsed := min(nanos-b.nanos, answerBurst*1e9/answerRate) // more fills it just so, and would overflow after years
	b.credit = min(answerBurst*1e9, b.credit+elapsed*answerRate)
	b.nanos = nanos
	if b.credit < 1e9 {
		return false
	}
	b.credit -= 1e9
	return true
}

// refuse drops f and tells its sender by ICMP, where RFC 1122 3.2.2 and
// RFC 4443 2.4 allow it.
func (w *worker) refuse(f *frame, r Reason, kind encap.ICMPKind) { w.answerICMP(f, r, kind, 0) }

// refuseMTU drops f as too big and tells its sender which MTU fits.
func (w *worker) refuseMTU(f *frame, mtu int) {
	w.answerICMP(f, DropTooBig, encap.PacketTooBig, mtu)
}

func (w *worker) answerICMP(f *frame, r Reason, kind encap.ICMPKind, mtu int) {
	w.drop(r)
	src := w.live.self4
	if f.p.Version == 6 {
		src = w.live.self6
	}
	if f.in != nil && f.in.direction == Host {
		// The host takes no packet from one of its own addresses (a martian
		// source), nor by another device than its routes say: the address it
		// could not reach is the one that it believes.
		src = f.p.Dst
	}
	if !src.IsValid() || !encap.MayAnswer(f.ip(), &f.p) || !w.limiter.allow(sourceHash(&f.p), w.nanos) {
		return
	}
	// Not scratch: on its way to a peer it may cause a flush (nativehold.go,
	// nativesend.go), which takes scratch back, and wait behind that one. It is the
	// collector's to know when nobody refers to it; the ration bounds what is made.
	mem := make([]byte, ring.Headroom+encap.MaxICMPError)
	n := encap.ICMPError(mem[ring.Headroom:], f.ip(), &f.p, kind, mtu, src)
	if n == 0 {
		return
	}
	g := &w.answer
	*g = frame{mem: mem[:ring.Headroom+n], at: ring.Headroom}
	if encap.Parse(g.ip(), &g.p) != encap.OK {
		return
	}
	w.tally.generated[GeneratedICMP]++
	w.tapped.hand = g
	w.route(g)
	w.tapped.hand = nil
}

// sourceHash keeps sources apart for the limiter, as the flow hash does not.
func sourceHash(p *encap.Packet) uint32 {
	h := uint32(2166136261)
	for _, b := range p.Src.As16() {
		h = (h ^ uint32(b)) * 16777619
	}
	return h ^ h>>16
}

// answerARP answers a pod that asks for the gateway, and learns the pod's MAC
// from what it says of itself.
func (w *worker) answerARP(in *port, eth []byte) {
	if len(eth) >= encap.EthernetLen+28 {
		arp := encap.ARP(eth[encap.EthernetLen:])
		for _, a := range in.addresses {
			if arp.Sender() == a {
				if m := arp.SenderMAC(); !m.IsMulticast() && !m.IsZero() {
					in.mac.Store(packMAC(m))
				}
			}
		}
	}
	w.makeRoom()
	b := w.alloc(64)
	n := encap.ARPReply(b, eth, Gateway4, GatewayMAC)
	otherwise := DropNotIP
	if len(eth) >= encap.EthernetLen+28 && encap.ARP(eth[encap.EthernetLen:]).Target() == Gateway4 {
		otherwise = DropAnswered // the answer to our own question
	}
	w.answerLink(in, b[:n], GeneratedARP, otherwise)
}

// answerND answers a pod that solicits the gateway; false if f is something else.
func (w *worker) answerND(in *port, f *frame) bool {
	if in.link == 0 {
		return false
	}
	w.makeRoom()
	b := w.alloc(128)
	n := encap.NeighbourAdvert(b, f.mem[f.at-encap.EthernetLen:], Gateway6, GatewayMAC)
	if n == 0 {
		return false
	}
	w.answerLink(in, b[:n], GeneratedND, DropNotIP)
	return true
}

// answerLink ends the question and sends the answer, a whole Ethernet frame,
// back to the port; without an answer the question is dropped as otherwise.
func (w *worker) answerLink(in *port, b []byte, kind Generated, otherwise Reason) {
	if len(b) == 0 {
		w.drop(otherwise)
		return
	}
	w.drop(DropAnswered)
	w.tally.generated[kind]++
	g := &w.answer
	*g = frame{}
	g.p.Len = len(b) - encap.EthernetLen
	w.enqueue(w.outboxes[in.index], Pod, g, b, nil, encap.Virtio{}, true)
}
