package forwarder

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/forwarder/agree"
	"github.com/penstock-net/penstock/ring"
)

// The tcp carrier: a burst is one write to a packet socket on the uplink, with Ethernet, IP and TCP headers and the
// metadata of a TCP superframe, so that whatever cuts and merges TCP cuts and merges it.
//
// Each worker has one such socket. It receives those streams whose tag leaves the worker's number when it is divided
// by the number of workers: a stream always reaches the same worker, in order, no worker is in another's way, and the
// streams of a peer, whose tags are consecutive, are spread evenly, which a hash does not promise.
//
// The socket is a tap: the kernel goes on with what it reads, up to the drop at the ingress that hostnet keeps.
// The device's qdisc is not bypassed: this traffic is the node's own as any other.

// nativeTCP is a worker's part of the tcp carrier.
type nativeTCP struct {
	io    ring.Port
	index int // of the uplink
	sends *ring.Packets
}

// openTCP opens the sockets on the uplink and closes those on another. Without them the other carrier is used, or the encapsulation.
// f.control is held, or nothing runs.
func (n *nativePlane) openTCP(s *Settings) {
	f := n.f
	n.closeTCP()
	if n.may&native.TCP == 0 || s.Uplink.Index == 0 {
		return
	}
	for i, w := range f.workers {
		io, _, err := f.env.openPacket(ring.PacketConfig{Device: s.Uplink.Device, Index: s.Uplink.Index, RecvBuffer: receiveBuffer, SendBuffer: sendBuffer, NoBypass: true,
			TCP: &ring.TCPFilter{Local: s.Address, Port: s.Native.Port, MinSource: nativeMinTag, Share: i, Shares: len(f.workers)}})
		if err == nil {
			f.fds.add(fmt.Sprintf("native/tcp/%d", i), io.FD())
			t := &nativeTCP{io: io, index: s.Uplink.Index, sends: ring.NewPackets(nativeSends, 4096)}
			err = w.do(func(w *worker) error {
				w.native.tcp = t
				return w.poller.Add(io.FD(), tokenNativeTCP)
			})
		}
		if err != nil {
			f.log.Warn("the tcp carrier of the native stream cannot be used", "uplink", s.Uplink.Device, "error", err)
			n.closeTCP()
			return
		}
	}
	n.refused.Store(false)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tcp, n.index = f.workers[0].native.tcp.io, s.Uplink.Index
}

// closeTCP closes the sockets that there are.
func (n *nativePlane) closeTCP() {
	n.mu.Lock()
	n.tcp, n.index = nil, 0
	n.mu.Unlock()
	for _, w := range n.f.workers {
		if w.native == nil || w.native.tcp == nil {
			continue
		}
		w.do(func(w *worker) error {
			t := w.native.tcp
			w.native.tcp = nil
			_ = w.poller.Delete(t.io.FD()) // it may not have got there
			n.f.fds.remove(t.io.FD())
			return t.io.Close()
		})
	}
}

// setPrefer chooses between carriers that are proven, by what the uplink takes uncut.
func (n *nativePlane) setPrefer(u Uplink) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.prefer = native.TCP; u.USO && !u.TSO {
		n.prefer = native.UDP
	}
}

// sendTCP sends a message by the tcp carrier. n.mu is held.
func (n *nativePlane) sendTCP(a *nativeAgreement, s *agree.Send) {
	path := a.peer.state.direct.Load()
	if n.tcp == nil || path == nil || path.Index != n.index {
		return
	}
	if path != a.path {
		a.path, a.outer = path, newOuter(n.f, a.peer, path)
	}
	var head [native.MaxOuter]byte
	a.outer.Put(head[:], s.FirstTag, 0, 0, 0, s.Size, 0)
	s.Put(n.full)
	n.frames.Reset()
	if n.frames.Begin(ring.Virtio(a.outer.Virtio(s.Size, s.Size))) && n.frames.Append(head[:a.outer.Len()]) && n.frames.Append(n.full[:s.Size]) {
		_, _ = n.tcp.Write(n.frames, 0)
	}
	clear(n.full[:native.MessageLen])
}

func newOuter(f *Forwarder, p *peer, path *UplinkPath) native.Outer {
	o := native.NewOuter(f.address, p.spec.Address, f.tunnelPorts.native)
	o.SetLink(path.Source, path.NextHop)
	return o
}

// pathTCP is the path by which frames reach a peer by the tcp carrier; nil: there is none at this moment.
func (w *worker) pathTCP(s *peerState) *UplinkPath {
	path, t := s.direct.Load(), w.native.tcp
	if path == nil || t == nil || path.Index != t.index {
		return nil
	}
	return path
}

// passable reports whether frames can go by o's way at this moment, and prepares it. The way of the tcp carrier ends as soon as
// the host's routing has another or none: an xfrm policy must not be passed by until the plane looks again.
func (w *worker) passable(o *nativeOut) bool {
	if o.way == nil || o.way.carrier != native.TCP {
		return o.way != nil
	}
	s := o.peer.state
	path := w.pathTCP(s)
	if path == nil {
		return false
	}
	if path != o.path {
		o.path, o.outer = path, newOuter(w.f, o.peer, path)
	}
	if !s.wantsWhole.Load() {
		s.wantsWhole.Store(true) // so that its neighbour entry is kept fresh
	}
	return true
}

// flushTCP sends bursts by the tcp carrier.
func (w *worker) flushTCP(from, to int) {
	n := w.native
	t := n.tcp
	if t == nil {
		for ; from < to; from++ {
			w.endNative(&n.bursts[from], DropUnderlayUnreachable)
		}
		return
	}
	for from < to {
		t.sends.Reset()
		k := 0
		for from+k < to && k < nativeSends && w.loadTCP(&n.bursts[from+k], n.heads[k][:]) {
			k++
		}
		if k == 0 { // it cannot be: an empty batch takes any burst
			w.endNative(&n.bursts[from], DropSendFailed)
			from++
			continue
		}
		sent, err := t.io.Write(t.sends, 0)
		for range sent {
			w.endNative(&n.bursts[from], dropNone)
			from++
		}
		if err != nil {
			w.refusedTCP(&n.bursts[from], err)
			from++
		}
	}
}

// loadTCP makes a burst one message; false: there is no room.
func (w *worker) loadTCP(b *nativeSending, heads []byte) bool {
	o, p, size, tag := b.out, w.native.tcp.sends, b.way.piece, b.way.me.FirstTag+uint16(w.index)
	head := heads[:o.outer.Len()]
	if b.message != nil {
		o.outer.Put(head, tag, 0, 0, 0, len(b.message), 0)
		return p.Begin(ring.Virtio(o.outer.Virtio(len(b.message), size))) && p.Append(head) && p.Append(b.message)
	}
	dirLen := native.DirectoryLen(native.Pieces(b.bytes, size))
	length := b.bytes + 2*dirLen
	if !p.Begin(ring.Virtio(o.outer.Virtio(length, size))) {
		return false
	}
	dir := heads[len(head):][:dirLen]
	native.PutDirectory(dir, size, b.ends)
	ok := p.Append(head) && p.Append(dir)
	for i := b.first; i >= 0; i = w.arena.pieces[i].next {
		ok = ok && p.Append(w.arena.pieces[i].b)
	}
	if !ok || !p.Append(dir) {
		p.Drop()
		return false
	}
	b.place(length)
	o.outer.Put(head, tag, b.start, length, 0, length, b.tos)
	return true
}

// refusedTCP takes a burst that the kernel has refused. If it is for its being a superframe, its pieces are sent one by one, to the
// first that is refused as well, and it is remembered, as it is the device's. A kernel without buffers would not have them for
// the pieces either, and some may be on their way: the burst is dropped.
func (w *worker) refusedTCP(b *nativeSending, err error) {
	size := b.way.piece
	dirLen := native.DirectoryLen(native.Pieces(b.bytes, size))
	length := b.bytes + 2*dirLen
	if b.message != nil || length <= size || err != syscall.EINVAL && err != syscall.EOPNOTSUPP {
		w.endNative(b, w.reasonTCP(b, err))
		return
	}
	if w.f.native.refused.CompareAndSwap(false, true) {
		w.f.switchedOff[switchNativeTCP].Add(1)
		w.f.log.Warn("the uplink refuses TCP superframes of the native stream; it goes by another carrier, or by the encapsulation, from now on", "error", err)
	}
	p, o, tag := w.native.tcp.sends, b.out, b.way.me.FirstTag+uint16(w.index)
	dir := w.spare[:dirLen]
	native.PutDirectory(dir, size, b.ends)
	heads := w.spare[dirLen:]
	p.Reset()
	at, left := 0, 0
	send := func() bool {
		_, err = w.native.tcp.io.Write(p, 0)
		p.Reset()
		return err == nil
	}
	put := func(x []byte) bool {
		for len(x) > 0 {
			if left == 0 {
				if p.Len() == nativeSends && !send() {
					return false
				}
				left = min(size, length-at)
				h := heads[:o.outer.Len()]
				heads = heads[o.outer.Len():]
				o.outer.Put(h, tag, b.start, length, at, left, b.tos)
				p.Begin(ring.Virtio(o.outer.Virtio(left, size)))
				p.Append(h)
			}
			k := min(left, len(x))
			p.Append(x[:k])
			x, at, left = x[k:], at+k, left-k
		}
		return true
	}
	ok := put(dir)
	for i := b.first; ok && i >= 0; i = w.arena.pieces[i].next {
		ok = put(w.arena.pieces[i].b)
	}
	if ok && put(dir) && send() {
		w.endNative(b, dropNone)
		return
	}
	w.endNative(b, w.reasonTCP(b, err))
}

func (w *worker) reasonTCP(b *nativeSending, err error) Reason {
	if err == syscall.ENXIO || err == syscall.ENODEV {
		return DropUnderlayUnreachable // the device has gone
	}
	return w.sendReason(b.out.peer, err)
}

// serveTCP receives once from the packet socket.
func (w *worker) serveTCP(failed bool) {
	t := w.native.tcp
	if t == nil {
		return
	}
	if failed {
		_ = t.io.TakeError() // the uplink went down or away; the daemon follows it
	}
	w.slab.Reset()
	got, err := t.io.Read(w.slab, w.frames[:])
	if err != nil || got == 0 {
		return
	}
	for i := range w.frames[:got] {
		w.nativeSegment(&w.frames[i])
	}
	w.flush()
	t.io.Release()
}

// nativeSegment takes a TCP segment, or several that were merged. The socket's filter has looked at address and port.
func (w *worker) nativeSegment(x *ring.Frame) {
	b := x.Bytes()
	w.frame.judged = false
	if w.taps != nil { // with its IP header, as a raw socket has it
		w.tapped.hand, w.tapped.outer, w.tapped.key = nil, ring.Datagram{Data: b[min(encap.EthernetLen, len(b)):]}, endpointKey{kind: encap.KindIPIP}
	}
	if x.Truncated || len(b) < encap.EthernetLen {
		w.tally.received[Wire]++
		w.drop(DropTruncated)
		return
	}
	ip := b[encap.EthernetLen:]
	var q encap.Packet
	fault := encap.Parse(ip, &q)
	if fault == encap.OK && (q.Proto != encap.ProtoTCP || q.Frag != encap.NotFrag) {
		fault = encap.FaultBadOuter
	}
	if fault != encap.OK {
		w.tally.received[Wire]++
		w.drop(faultReason[fault])
		return
	}
	ip = ip[:q.Len:q.Len]
	seg := ip[q.L4:]
	outer := ring.Datagram{Data: ip, From: netip.AddrPortFrom(q.Src, binary.BigEndian.Uint16(seg)), TOS: q.TOS}
	if w.taps != nil {
		w.tapped.outer = outer
	}
	h := w.view.Peer(q.Src)
	if h == nil {
		w.stranger(DropUnknownPeer, outer)
		return
	}
	p := h.peer
	before, bytes := w.taken(), 0
	// What is partial never was on a wire that could have changed it.
	known := x.Virtio.Flags&(encap.NeedsCsum|encap.DataValid) != 0
	switch pc, ok := native.ParseTCP(seg); {
	case !known && encap.Fold(encap.Sum(seg, encap.PseudoSum(&q, len(seg)))) != 0xffff:
		w.refuseNative(p, DropNativeChecksum, ip)
	case !ok:
		w.refuseNative(p, DropNativeBad, ip)
	case pc.Length == 0:
		bytes = w.nativeMessage(p, pc.Data, native.TCP, ip)
	default:
		pc.TOS = q.TOS
		bytes = w.nativePiece(p, pc, native.TCP, ip)
	}
	w.credit(p, before, bytes)
}
