package forwarder

import (
	"syscall"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// What goes to a pod or the host passes here: frames become writes, of which
// those of one flow grow together (merges.go), and each outbox is written in one go.

// delivery is one write to a port.
type delivery struct {
	v           encap.Virtio // offsets from the IP header
	first, last int32        // pieces
	next        int32        // of the same outbox
	frames      int32        // frames that end in it
	bytes       int32        // of these frames' IP packets
	version     uint8        // of IP: the Ethernet type in front; 0: the frame has its own link header
	unfinished  bool         // a piece of a frame that ends in a later write
	to          Direction
	merge       int16 // which of the worker's merges lets it grow; noMerge: none
}

// outbox is one worker's way to one port.
type outbox struct {
	port        *port
	first, last int32 // deliveries
	queued      bool
	broken      Reason // why the frame that is being written in pieces has lost one; dropNone: it has not
	midway      bool   // the last delivery to a queue did not end its frame
	open        int    // merges: deliveries that may still grow
	eth         [2][encap.EthernetLen]byte
	mac         uint64 // that eth was made for
	asked       int64  // when the pod was last asked for its MAC
}

// enqueue puts one write (head, then payload) on its way. The bytes are lent
// until the flush. ends says that f ends with it.
func (w *worker) enqueue(b *outbox, to Direction, f *frame, head, payload []byte, v encap.Virtio, ends bool) *delivery {
	a := &w.arena
	i := int32(len(a.deliveries))
	a.deliveries = append(a.deliveries, delivery{v: v, first: -1, last: -1, next: -1, version: f.p.Version, to: to, unfinished: !ends, merge: noMerge})
	d := &a.deliveries[i]
	d.first = a.chain(-1, head)
	d.last = d.first
	if len(payload) > 0 {
		d.last = a.chain(d.last, payload)
	}
	if ends {
		d.frames, d.bytes = 1, int32(f.p.Len)
	}
	if !b.queued {
		b.queued, b.first = true, i
		w.boxes = append(w.boxes, b)
	} else {
		a.deliveries[b.last].next = i
	}
	b.last = i
	return d
}

// deliver writes a frame to a port as it is; what the port cannot take whole
// is cut, a partial checksum that it cannot take is completed.
func (w *worker) deliver(f *frame, b *outbox, to Direction) {
	w.makeRoom()
	w.merges.closeFlow(&w.arena, b, f)
	p := b.port
	if p == nil {
		w.drop(DropPortDown)
		return
	}
	if f.v.IsGSO() && (!p.gso || f.v.GSOType&^encap.GSOECN == encap.GSOUDPL4 && !p.uso) {
		w.deliverSegments(f, b, to)
		return
	}
	if f.v.Flags&encap.NeedsCsum != 0 && (!p.gso || f.p.Proto == encap.ProtoSCTP) {
		encap.Complete(f.ip(), &f.p, &f.v)
	}
	v := f.v
	v.Flags &= encap.NeedsCsum
	v.HdrLen = uint16(encap.HeaderLen(f.ip(), &f.p))
	w.enqueue(b, to, f, f.ip(), nil, v, true)
}

func (w *worker) deliverSegments(f *frame, b *outbox, to Direction) {
	s := &w.segments
	if fault := s.Init(f.ip(), &f.p, f.v); fault != encap.OK {
		w.drop(faultReason[fault])
		return
	}
	w.tally.segmented++
	for i, n := 0, s.Count(); i < n; i++ {
		w.makeRoom()
		h := w.alloc(s.HeaderLen())
		payload, _ := s.Next(h)
		w.enqueue(b, to, f, h, payload, encap.Virtio{}, i == n-1)
	}
}

// flushOutbox writes all that waits for a port.
func (w *worker) flushOutbox(b *outbox) {
	a, p := &w.arena, w.packets
	w.merges.closeAll(a, b)
	b.queued = false
	if b.port == nil {
		for i := b.first; i >= 0; i = a.deliveries[i].next {
			w.dropN(DropPortDown, int(a.deliveries[i].frames))
			if w.taps != nil {
				w.tapDelivery(nil, &a.deliveries[i], DropPortDown)
			}
		}
		return
	}
	if b.port.link != 0 && b.port.mac.Load() == 0 {
		w.solicit(b)
	}
	b.makeEthernet()
	if b.port.queue != nil {
		w.flushShaped(b)
		return
	}
	for next := b.first; next >= 0; {
		p.Reset()
		n := 0
		for next >= 0 && n < len(w.loaded) && b.load(p, a, &a.deliveries[next]) {
			w.loaded[n] = next
			n++
			next = a.deliveries[next].next
		}
		w.write(b, w.loaded[:n])
	}
}

// solicitEvery is how often a pod whose MAC is not known is asked for it.
const solicitEvery = int64(200e6)

// solicit asks a pod for its MAC, so that frames need not go to all stations,
// where its TCP would not take them. It writes at once, outside the arena.
func (w *worker) solicit(b *outbox) {
	if b.asked != 0 && w.nanos-b.asked < solicitEvery {
		return
	}
	b.asked = w.nanos
	a, kind := b.port.addresses[0], GeneratedARP
	n := encap.ARPRequest(w.question[:], Gateway4, GatewayMAC, a)
	if a.Is6() {
		n, kind = encap.NeighbourSolicit(w.question[:], Gateway6, GatewayMAC, a), GeneratedND
	}
	p := w.packets
	p.Reset()
	p.Begin(ring.Virtio{})
	p.Append(w.question[:n])
	w.tally.generated[kind]++
	if _, err := b.port.io.Write(p, 0); err != nil {
		w.dropN(w.writeReason(b.port, err), 1)
		return
	}
	w.tally.forwarded[Pod][encapNone].packets++
}

// makeEthernet keeps the link headers for the pod's MAC, which may change.
func (b *outbox) makeEthernet() {
	mac := b.port.mac.Load()
	if b.port.link == 0 || mac == b.mac && b.mac != 0 {
		return
	}
	b.mac = mac
	dst := unpackMAC(mac)
	if mac == 0 {
		dst = encap.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} // not heard yet: the only station there
	}
	for i, t := range [2]uint16{encap.EtherTypeIPv4, encap.EtherTypeIPv6} {
		copy(b.eth[i][0:], dst[:])
		copy(b.eth[i][6:], GatewayMAC[:])
		b.eth[i][12], b.eth[i][13] = byte(t>>8), byte(t)
	}
}

// head is what stands in front of a delivery: the link header, empty if there
// is none, and the virtio header, whose offsets count from there.
func (b *outbox) head(d *delivery) (link []byte, v ring.Virtio) {
	if b.port.link != 0 && d.version != 0 {
		link = b.eth[0][:]
		if d.version == 6 {
			link = b.eth[1][:]
		}
	}
	if d.v.Flags != 0 || d.v.GSOType != 0 {
		v = ring.Virtio(d.v)
		v.CsumStart += uint16(len(link))
		v.HdrLen += uint16(len(link))
	}
	return link, v
}

// load makes a delivery one message of p; false: p is full.
func (b *outbox) load(p *ring.Packets, a *arena, d *delivery) bool {
	link, v := b.head(d)
	if !p.Begin(v) {
		return false
	}
	ok := p.Append(link)
	for i := d.first; ok && i >= 0; i = a.pieces[i].next {
		ok = p.Append(a.pieces[i].b)
	}
	if !ok {
		p.Drop()
	}
	return ok
}

// write hands the loaded deliveries to the kernel and counts each where it ended.
func (w *worker) write(b *outbox, loaded []int32) {
	for from := 0; from < len(loaded); {
		n, err := b.port.io.Write(w.packets, from)
		for _, i := range loaded[from : from+n] {
			w.written(b, &w.arena.deliveries[i])
		}
		from += n
		if err == nil {
			return
		}
		w.unwritten(b, &w.arena.deliveries[loaded[from]], w.writeReason(b.port, err))
		from++
	}
}

func (w *worker) writeReason(p *port, err error) Reason {
	switch err {
	case syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM:
		return DropPortFull
	case syscall.ENETDOWN, syscall.ENXIO, syscall.ENODEV, syscall.EIO, syscall.EBADFD:
		return DropPortDown
	}
	if p.said.again(w.now) {
		w.f.log.Warn("writing to a port failed", "device", p.spec.Device, "error", err)
	}
	return DropPortFailed
}

func (w *worker) written(b *outbox, d *delivery) {
	frames := uint64(d.frames)
	if b.broken != dropNone && frames > 0 {
		frames--
		w.dropN(b.broken, 1)
		w.dropFor(b.port, 1)
		b.broken = dropNone
	}
	w.tally.writes++
	w.delivered(b.port, d.to, frames, uint64(d.bytes))
}

// delivered counts frames that have left by p.
func (w *worker) delivered(p *port, to Direction, frames, bytes uint64) {
	c := &w.tally.forwarded[to][encapNone]
	c.packets += frames
	c.bytes += bytes
	if to == Pod {
		p.accounts[w.index].got.add(frames, bytes)
	}
}

func (w *worker) unwritten(b *outbox, d *delivery, r Reason) {
	if b.broken = dropNone; d.unfinished {
		b.broken = r
	}
	w.dropN(r, int(d.frames))
	w.dropFor(b.port, uint64(d.frames))
	if w.taps != nil {
		w.tapDelivery(b.port, d, r)
	}
}

// dropFor notes in a pod's account that frames for it were dropped; the host has none.
func (w *worker) dropFor(p *port, frames uint64) {
	if p.direction == Pod {
		p.accounts[w.index].drop(frames)
	}
}
