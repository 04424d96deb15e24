package forwarder

import (
	"net/netip"
	"syscall"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// A superframe may leave whole: encapsulated in one write to the TAP
// penstock-gso, from where it is redirected to the uplink, to be cut by the NIC,
// by the kernel, or never (mechanism 1 of the design). It needs the way to the
// peer (package uplink tells it), vxlan, and a partial inner checksum. Whatever is
// missing, transmitSegments does the same in small. Not udp: where nothing cuts it
// on its way (a veth, a virtual NIC) a superframe reaches the peer's plain socket
// whole, and flannel, which may be that peer, reads one packet's length of it.
//
// Order: the write returns when the frame stands in the uplink's queue, as a
// send does. So whole frames stand among the runs of their flow's socket, whose
// source port they bear.

// GSODevice is the TAP.
const GSODevice = "penstock-gso"

// tunnel is a worker's queue of the TAP: *ring.Tunnel.
type tunnel interface {
	Write(frames [][]byte, errs []syscall.Errno) (n int)
	BatchWrites(*ring.Uring)
	FD() int
	Close() error
}

// UplinkPath is how frames that bypass the host's routing reach a peer.
type UplinkPath struct {
	Source, NextHop encap.MAC
	MTU             int // of the route, or of the device by which it leaves, bytes; 0: as the underlay's
	Index           int // of the device, where that matters
}

// SetUplinkPath says how superframes reach the peer at an address; nil: not.
func (f *Forwarder) SetUplinkPath(peer netip.Addr, path *UplinkPath) {
	f.control.Lock()
	defer f.control.Unlock()
	if p := f.peers[peer.Unmap()]; p != nil {
		p.state.path.Store(path)
		f.routeMTU(p, path)
	}
}

// SetDirectPath says how what leaves by a packet socket reaches the peer at an address; nil: not.
func (f *Forwarder) SetDirectPath(peer netip.Addr, path *UplinkPath) {
	f.control.Lock()
	defer f.control.Unlock()
	if p := f.peers[peer.Unmap()]; p != nil {
		p.state.direct.Store(path)
		f.routeMTU(p, path)
		if f.native != nil {
			f.native.poke()
		}
	}
}

// routeMTU notes the MTU of the route to p, or of the device by which it leaves: it may be less than that of the device that holds the node's
// address, and what leaves past the routing is refused by nobody. f.control is held.
func (f *Forwarder) routeMTU(p *peer, path *UplinkPath) {
	if path == nil || path.MTU == 0 {
		return // where it leaves is not known now; of datagrams that are too long the kernel says so (socketError)
	}
	mtu, least := max(path.MTU, minDeviceMTU), f.settings.UnderlayMTU
	old := int(p.state.routeMTU.Swap(int64(mtu)))
	if old == mtu {
		return
	}
	p.state.pathMTU.Store(0) // another way: what was learned is learned again if it still holds
	if mtu < least || old != 0 && old < least {
		f.log.Info("the route to a peer has another MTU", "peer", p.spec.Name, "mtu", mtu, "innerMTU", p.innerMTU(f.env.now().Unix()))
	}
}

// UplinkUsed reports whether anything went to a peer by its UplinkPath since it was last asked.
func (f *Forwarder) UplinkUsed(peer netip.Addr) bool {
	f.control.Lock()
	defer f.control.Unlock()
	p := f.peers[peer.Unmap()]
	return p != nil && p.state.wantsWhole.Swap(false)
}

// SendsWhole reports whether superframes leave whole once their way is known.
func (f *Forwarder) SendsWhole() bool { return f.use.tunnelGSO }

// wholeHeader is a worker's outer header to one peer from one of its sockets.
type wholeHeader struct {
	encap.Whole
	peer *peer
	path *UplinkPath
}

// Which inner superframes the TAP has refused (bits of peerState.noWhole).
func wholeBit(v encap.Virtio) uint32 { return 1 << (v.GSOType &^ encap.GSOECN) }

// transmitWhole sends a superframe whole; false: it cannot go that way.
func (w *worker) transmitWhole(f *frame, p *peer) bool {
	if !p.state.wantsWhole.Load() {
		p.state.wantsWhole.Store(true)
	}
	path := p.state.path.Load()
	if path == nil || w.tunnel == nil || p.kind != encap.KindVXLAN || f.v.Flags&encap.NeedsCsum == 0 || w.f.noWhole.Load()&wholeBit(f.v) != 0 {
		return false
	}
	w.makeRoom()
	e, t := w.egressOf(p, &f.p), w.transmits[p.state.index]
	h := &t.sources[e.index].outer
	if h.peer != p || h.path != path {
		*h = wholeHeader{encap.NewWhole(e.sock.Local(), p.to.AddrPort(), p.header), p, path}
		h.SetLink(path.Source, path.NextHop)
	}
	n := h.Len()
	if !h.Fits(f.p.Len) || f.at < n+ring.TunnelHeaderLen {
		return false
	}
	tos := encap.ECNEncap(f.p.TOS, w.live.copyDSCP)
	h.Put(f.mem[f.at-n:], f.p.Len, tos, f.p.Version == 6)
	v := ring.TunnelVirtio{Virtio: ring.Virtio(f.v), Outer6: h.Outer6(), OuterL4: uint16(h.OuterL4()), InnerL3: uint16(n)}
	v.CsumStart += uint16(n)
	v.HdrLen = uint16(n + encap.HeaderLen(f.ip(), &f.p))
	at := f.at - n - ring.TunnelHeaderLen
	v.Put(f.mem[at:])
	r := w.beginRun(p, e, f.p.Hash, tos)
	r.closed, r.superframe, r.at, r.v = true, f.mem[at:], int32(f.at-at), f.v
	r.frames, r.inner, r.count = 1, int32(f.p.Len), 1
	return true
}

// wholeAtOnce is how many superframes are written by one system call at most: 2 MiB.
const wholeAtOnce = 32

// sendWhole writes superframes that stand behind each other, from run first on;
// what the kernel does not take is cut. It returns the run behind those it has tried.
func (w *worker) sendWhole(e *egress, first int32) (next int32) {
	a, n := &w.arena, 0
	for i := first; i >= 0 && a.runs[i].superframe != nil && n < wholeAtOnce; i = a.runs[i].next {
		w.superframes[n], w.loaded[n] = a.runs[i].superframe, i
		n++
	}
	n = w.tunnel.Write(w.superframes[:n], w.refusals[:])
	for i, at := range w.loaded[:n] {
		r := &a.runs[at]
		next = r.next
		errno := w.refusals[i]
		if errno == 0 {
			w.tally.whole++
			w.sent(e, r)
			continue
		}
		if errno == syscall.EINVAL || errno == syscall.EOPNOTSUPP {
			if old := w.f.noWhole.Load(); w.f.noWhole.CompareAndSwap(old, old|wholeBit(r.v)) && old&wholeBit(r.v) == 0 {
				w.f.switchedOff[switchTunnelGSO].Add(1)
				w.f.log.Warn("the kernel refuses a kind of encapsulated superframe; cutting them from now on", "type", r.v.GSOType, "error", errno)
			}
		}
		if w.overtaken(r, i+1, n) {
			w.unsent(e, r, w.sendReason(r.peer, errno))
			continue
		}
		w.resend(e, r)
	}
	return next
}

// overtaken reports whether another superframe of r's flow, of those from index
// from on, has left already: cut, r would come behind it.
func (w *worker) overtaken(r *run, from, n int) bool {
	for i := from; i < n; i++ {
		if w.refusals[i] == 0 && w.arena.runs[w.loaded[i]].flow == r.flow {
			return true
		}
	}
	return false
}

// resend cuts a superframe that could not leave whole, outside the arena, whose
// runs are being sent.
func (w *worker) resend(e *egress, r *run) {
	b := r.superframe[r.at:]
	var p encap.Packet
	var s encap.Segments
	if encap.Parse(b, &p) != encap.OK || s.Init(b, &p, r.v) != encap.OK {
		w.unsent(e, r, DropSendFailed)
		return
	}
	w.tally.segmented++
	d, room, why := w.replays, r.peer.header.Len(), dropNone
	limit := 1
	if w.f.use.udpSegment && !r.peer.state.noSegment.Load() {
		limit = max(1, min(int(w.f.use.maxSegments), maxRunBytes/(room+s.SegmentLen())))
	}
	for sent, count := 0, s.Count(); sent < count; {
		d.Reset()
		segment := 0
		n := min(limit, count-sent)
		if n > 1 {
			segment = room + s.SegmentLen()
		}
		d.Begin(&r.peer.to, r.tos, segment)
		for i := range n {
			h := w.spare[i*spareHeader:][:room+s.HeaderLen()]
			r.peer.header.Put(h, p.Version == 6)
			payload, _ := s.Next(h[room:])
			d.Append(h)
			d.Append(payload)
		}
		_, err := e.sock.Send(d, 0)
		if n > 1 && err != nil && w.runRefused(r.peer, err) {
			limit = 1
			s.Init(b, &p, r.v) // again, up to here
			for range sent {
				s.Next(w.spare)
			}
			continue
		}
		sent += n
		if err != nil {
			if why = w.sendReason(r.peer, err); noBuffers(err) {
				break // the rest is of no use to anybody
			}
		}
	}
	if why != dropNone {
		w.unsent(e, r, why)
		return
	}
	w.sent(e, r)
}

// spareHeader is room for the headers of one segment.
const spareHeader = encap.MaxHeaderLen + 32
