package forwarder

import (
	"encoding/binary"
	"net/netip"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// This is the workers' side of taps: what they do where a frame passes and there is one.

// tapping is a worker's memory for it.
type tapping struct {
	hand   *frame        // whose drop is shown; nil: the datagram in outer
	start  int           // where hand was read: its link header is there
	wall   int64         // Unix nanoseconds at the batch's begin
	outer  ring.Datagram // that is being judged
	key    endpointKey   // where it came in
	head   [outerRoom]byte
	pieces [8][]byte
}

// outerRoom is the longest outer header that is put in front of a datagram again.
const outerRoom = encap.IPv6Len + udpLen

const udpLen = 8

// tap shows a frame: its pieces one behind the other.
func (w *worker) tap(s tapSlot, pieces ...[]byte) {
	length := 0
	for _, b := range pieces {
		length += len(b)
	}
	s.nanos, s.length = w.tapped.wall, int32(length)
	var in encap.Packet // what is no IP packet has no addresses
	peek(&s, pieces, &in)
	for _, t := range *w.taps {
		q := t.queues[w.index]
		s.size = int32(min(length, t.filter.Snap))
		if !t.match(w, &s, &in) || !q.begin(int(s.size)) {
			continue
		}
		s.at = q.head
		for left, i := int(s.size), 0; left > 0; i++ {
			b := pieces[i][:min(left, len(pieces[i]))]
			q.copyIn(b)
			left -= len(b)
		}
		q.slots[q.written.Load()%tapSlots] = s
		q.written.Add(1)
	}
}

// peekRoom holds the headers of all packets but freaks.
const peekRoom = 128

// peek reads the headers of a frame, which may lie in its first two pieces: of a fragment that was cut here the IP header lies alone.
func peek(s *tapSlot, pieces [][]byte, in *encap.Packet) {
	ip := pieces[0]
	if s.ethernet {
		if len(ip) < encap.EthernetLen {
			return
		}
		if kind := binary.BigEndian.Uint16(ip[12:]); kind != encap.EtherTypeIPv4 && kind != encap.EtherTypeIPv6 {
			return
		}
		ip = ip[encap.EthernetLen:]
	}
	var both [peekRoom]byte
	if len(pieces) > 1 && len(ip) < peekRoom {
		n := copy(both[:], ip)
		n += copy(both[n:], pieces[1])
		ip = both[:n]
	}
	encap.Peek(ip, in)
}

// segment is the payload of the packets that a superframe stands for, else 0.
func (f *frame) segment() uint16 {
	if f.v.IsGSO() {
		return f.v.GSOSize
	}
	return 0
}

// tapRead shows a frame that was read from a port.
func (w *worker) tapRead(f *frame) {
	w.tapped.hand, w.tapped.start = f, f.at
	s := tapSlot{stage: FromPod, port: f.in, ethernet: f.in.link != 0, segment: f.segment()}
	if f.in.direction == Host {
		s.stage = FromHost
	}
	w.tap(s, f.ip())
}

// tapReceived shows a packet that has come out of its encapsulation.
func (w *worker) tapReceived(f *frame, gso int) {
	w.tapped.hand = f
	w.tap(tapSlot{stage: FromPeer, peer: f.by, segment: uint16(gso)}, f.ip())
}

// tapOut shows a frame that leaves for a port, or for a peer.
func (w *worker) tapOut(f *frame, p *port, to *peer) {
	s := tapSlot{stage: ToPeer, port: f.in, peer: to, segment: f.segment()}
	switch {
	case to != nil:
	case p == nil || p.direction == Host:
		s.stage, s.peer = ToHost, f.by
	default:
		s.stage, s.port, s.peer = ToPod, p, f.by
	}
	w.tap(s, f.ip())
}

// tapDrop shows the frame in hand, which ends here; without one, the datagram.
func (w *worker) tapDrop(r Reason) {
	f := w.tapped.hand
	if f == nil {
		w.tapOuter(r)
		return
	}
	w.tap(tapSlot{stage: Dropped, reason: r, port: f.in, peer: f.by, segment: f.segment(),
		ethernet: f.in != nil && f.in.link != 0 && f.at == w.tapped.start}, f.ip())
}

// tapOuter shows a datagram as it came over the wire. The socket has taken its headers off; what it told of them is put in
// front again, so that a reader sees who sent what to whom.
func (w *worker) tapOuter(r Reason) {
	d := &w.tapped.outer
	s := tapSlot{stage: Dropped, reason: r, outer: true}
	if h := w.view.Peer(d.From.Addr()); h != nil {
		s.peer = h.peer
	}
	head := w.tapped.head[:0]
	if w.tapped.key.kind != encap.KindIPIP { // there the header is part of what is read
		head = w.tapped.head[:putOuter(w.tapped.head[:], d, netip.AddrPortFrom(w.f.address, w.tapped.key.port))]
	}
	w.tap(s, head, d.Data)
}

// putOuter writes the IP and UDP headers that d had, as far as they are known: TTL and UDP checksum are not.
func putOuter(b []byte, d *ring.Datagram, to netip.AddrPort) int {
	from, n := d.From.Addr().Unmap(), encap.IPv4Len
	size := udpLen + len(d.Data)
	if from.Is4() {
		h := b[:n]
		clear(h)
		h[0], h[1], h[6], h[8], h[9] = 0x45, d.TOS, 0x40, 64, encap.ProtoUDP
		binary.BigEndian.PutUint16(h[2:], uint16(min(n+size, 65535)))
		copy(h[12:], from.AsSlice())
		copy(h[16:], to.Addr().AsSlice())
		sum := uint32(0)
		for i := 0; i < n; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(h[i:]))
		}
		sum = sum>>16 + sum&0xffff
		binary.BigEndian.PutUint16(h[10:], ^uint16(sum>>16+sum))
	} else {
		n = encap.IPv6Len
		h := b[:n]
		clear(h)
		binary.BigEndian.PutUint32(h, 6<<28|uint32(d.TOS)<<20)
		binary.BigEndian.PutUint16(h[4:], uint16(min(size, 65535)))
		h[6], h[7] = encap.ProtoUDP, 64
		copy(h[8:], from.AsSlice())
		copy(h[24:], to.Addr().AsSlice())
	}
	u := b[n:]
	binary.BigEndian.PutUint16(u, d.From.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(min(size, 65535)))
	binary.BigEndian.PutUint16(u[6:], 0)
	return n + udpLen
}

// tapRun shows the packets of a run that did not leave, without their encapsulation.
func (w *worker) tapRun(r *run, reason Reason) {
	s := tapSlot{stage: Dropped, reason: reason, peer: r.peer}
	if r.superframe != nil {
		s.segment = r.v.GSOSize
		w.tap(s, r.superframe[r.at:])
		return
	}
	room := r.peer.header.Len()
	for i := r.first; i >= 0; i = w.arena.pieces[i].next {
		// A datagram is one piece, or headers and their payload.
		head, tail := w.arena.pieces[i].b[room:], []byte(nil)
		if next := w.arena.pieces[i].next; next >= 0 && innerLength(head) > len(head) {
			i, tail = next, w.arena.pieces[next].b
		}
		w.tap(s, head, tail)
	}
}

// tapDelivery shows what could not be written to a port; of a long merge, the beginning.
func (w *worker) tapDelivery(p *port, d *delivery, reason Reason) {
	pieces := w.tapped.pieces[:0]
	for i := d.first; i >= 0 && len(pieces) < cap(pieces); i = w.arena.pieces[i].next {
		pieces = append(pieces, w.arena.pieces[i].b)
	}
	w.tap(tapSlot{stage: Dropped, reason: reason, port: p, ethernet: d.version == 0, segment: d.v.GSOSize}, pieces...)
}
