package forwarder

import "github.com/penstock-net/penstock/encap"

// destination is a peer or a port: where pieces of a cut packet go.
type destination struct {
	peer *peer
	port *port
}

// tooBig fragments an IPv4 packet that allows it, or answers with the right MTU
// (RFC 1191, RFC 4443 3.2).
func (w *worker) tooBig(f *frame, mtu int, to *destination) {
	if f.p.DF || f.p.Version == 6 {
		w.refuseMTU(f, mtu)
		return
	}
	if w.taps != nil {
		w.tapOut(f, to.port, to.peer)
	}
	if !f.v.IsGSO() {
		encap.Complete(f.ip(), &f.p, &f.v)
		w.fragment(f, mtu, to, true)
		return
	}
	// Datagrams of a USO superframe, each larger than the path: rare enough
	// to be put together in memory of their own and flushed one by one. Not in
	// scratch: a flush while one is being fragmented would take it back.
	var s encap.Segments
	if fault := s.Init(f.ip(), &f.p, f.v); fault != encap.OK {
		w.drop(faultReason[fault])
		return
	}
	if w.assembled == nil {
		w.assembled = make([]byte, 65536)
	}
	for i, n := 0, s.Count(); i < n; i++ {
		w.flush() // of the fragments that refer to the datagram before
		b := w.assembled
		payload, _ := s.Next(b)
		g := frame{mem: b[:s.HeaderLen()+copy(b[s.HeaderLen():], payload)], in: f.in, by: f.by}
		if fault := encap.Parse(g.ip(), &g.p); fault != encap.OK {
			w.drop(faultReason[fault])
			return
		}
		// The last segment's last fragment carries the frame.
		w.fragment(&g, mtu, to, i == n-1)
	}
}

// fragment cuts f (complete, not GSO) and sends or delivers the pieces; last
// says that the frame ends with it.
func (w *worker) fragment(f *frame, mtu int, to *destination, last bool) {
	var fs encap.Fragments
	if fault := fs.Init(f.ip(), &f.p, mtu); fault != encap.OK {
		if last {
			w.drop(faultReason[fault])
		}
		return
	}
	room := 0
	if to.peer != nil {
		room = to.peer.header.Len()
	} else {
		// The fragments must not be overtaken by what joins an older write.
		w.merges.closeFlow(&w.arena, w.outboxes[to.port.index], f)
	}
	for i, n := 0, fs.Count(); i < n; i++ {
		w.makeRoom()
		b := w.alloc(room + 60)
		h, payload, _ := fs.Next(b[room:])
		b = b[:room+h]
		ends := last && i == n-1
		if to.peer != nil {
			to.peer.header.Put(b, false)
			w.append(to.peer, w.egressOf(to.peer, &f.p), f, b, payload, ends)
			continue
		}
		w.enqueue(w.outboxes[to.port.index], Pod, f, b, payload, encap.Virtio{}, ends)
	}
}
