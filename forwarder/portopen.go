package forwarder

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// How a port's device is opened and closed, and what memory it gets.

// claimed are the ports that are there and those that are being opened: their
// addresses, devices and memory are taken.
func (f *Forwarder) claimed() []*port {
	if len(f.opening) == 0 {
		return f.ports
	}
	return slices.Concat(f.ports, f.opening)
}

func (f *Forwarder) beingOpened(container, iface string) bool {
	return slices.ContainsFunc(f.opening, func(p *port) bool { return p.spec.Container == container && p.spec.Interface == iface })
}

// unlocked lets open work while f.control is free and the port is claimed. The
// kernel makes a device or a ring only at the price of an RCU grace period
// (packet_set_ring in net/packet/af_packet.c) or of the lock of all devices:
// some 15 ms, which fifty pods must not wait for one after the other. open reads
// nothing that f.control guards.
func (f *Forwarder) unlocked(p *port, open func() (ring.Port, error)) error {
	f.opening = append(f.opening, p)
	defer func() { f.opening = slices.DeleteFunc(f.opening, func(q *port) bool { return q == p }) }()
	io, err := func() (ring.Port, error) {
		f.control.Unlock()
		defer f.control.Lock() // also when open panics: the caller unlocks
		return open()
	}()
	if err != nil {
		return err
	}
	if f.stopped {
		f.withdraw(p, io)
		io.Close()
		return stoppedAttach(p.spec)
	}
	p.io = io
	return nil
}

func stoppedAttach(s PortSpec) error {
	return fmt.Errorf("%s/%s is not attached: the daemon is stopping", s.Container, s.Interface)
}

// withdraw lets a TUN of ours vanish with its last descriptor.
func (f *Forwarder) withdraw(p *port, io ring.Port) {
	if q, ok := io.(interface{ SetPersist(bool) error }); ok {
		if err := q.SetPersist(false); err != nil {
			f.settings.Log.Warn("the pod's TUN may stay behind", "device", p.spec.Device, "error", err)
		}
	}
}

// openPort opens the port's device. f.control is held, but for the while that
// the kernel takes.
func (f *Forwarder) openPort(p *port) error {
	socket, err := f.reserve(p)
	if err != nil {
		return err
	}
	if p.spec.Attach == AttachTUN {
		cfg := ring.TUNConfig{Name: p.spec.Device, MTU: p.mtu}
		if p.throttle != nil {
			cfg.QueueLen = p.throttle.tunQueue(p.mtu)
		}
		create, wanted := f.env.createTUN, f.use.tunOffload
		if err := f.openTUN(p, func() (ring.Port, ring.Offload, error) { return create(cfg, wanted) }); err != nil {
			return err
		}
	} else {
		cfg := ring.PacketConfig{Device: p.spec.Device, Ring: f.use.packetRing, RecvBuffer: int(socket), SendBuffer: sendBuffer}
		if p.throttle != nil {
			cfg.Ring = ring.RecvMMsg // its queue is bounded in bytes, and what it does not hold is dropped whole
		}
		switch cfg.Ring {
		case ring.RingV2:
			cfg.RecvBuffer -= ringV2
			cfg.Widen = f.settings.PodBuffer-socket >= leastBreadth
		case ring.RingV3:
			cfg.Slots, cfg.SlotSize = int(min(socket/blockV3, 4)), blockV3
			cfg.RecvBuffer = 0 // all is in the ring
		}
		var stats func() (ring.Stats, error)
		open := f.env.openPacket
		if err := f.unlocked(p, func() (io ring.Port, err error) { io, stats, err = open(cfg); return io, err }); err != nil {
			return err
		}
		if u, ok := p.io.(interface{ Unblock() (bool, error) }); ok && cfg.Ring == ring.RingV2 {
			p.unblock = u.Unblock
		}
		if s, ok := p.io.(*ring.PacketSocket); ok && s.CanWiden() {
			p.breadth = &breadth{socket: s, narrow: socket}
		}
		p.stats, p.link, p.gso, p.uso = stats, encap.EthernetLen, true, f.use.uso
	}
	return nil
}

// openTUN opens a TUN that goes with its port.
func (f *Forwarder) openTUN(p *port, open func() (ring.Port, ring.Offload, error)) error {
	var offload ring.Offload
	if err := f.unlocked(p, func() (io ring.Port, err error) { io, offload, err = open(); return io, err }); err != nil {
		return err
	}
	p.gso, p.uso = offload&ring.OffloadTSO4 != 0, offload&ring.OffloadUSO4 != 0
	if err := p.throttle.refuseSuperframes(p.io, offload); err != nil {
		f.closePort(p, true)
		return err
	}
	return nil
}

// takePort opens the port of a TUN that the caller of AttachQueue has made.
func (f *Forwarder) takePort(p *port, fd int) error {
	if err := f.reserveTUN(p, fd); err != nil {
		return err
	}
	adopt, wanted := f.env.adoptTUN, f.use.tunOffload
	return f.openTUN(p, func() (ring.Port, ring.Offload, error) {
		io, offload, err := adopt(fd, wanted)
		if q, ok := io.(interface{ SetPersist(bool) error }); ok && err == nil {
			if err = q.SetPersist(true); err != nil {
				io.Close()
			}
		}
		return io, offload, err
	})
}

// reserveTUN is reserve for a port that comes with its queue, which it closes when there is no room.
func (f *Forwarder) reserveTUN(p *port, fd int) error {
	if p.spec.Attach != AttachTUN {
		unix.Close(fd)
		return fmt.Errorf("%s/%s is a %s: only a %s has a queue to hand over", p.spec.Container, p.spec.Interface, p.spec.Attach, AttachTUN)
	}
	if _, err := f.reserve(p); err != nil {
		unix.Close(fd)
		return err
	}
	return nil
}

// reserve takes the port's share of limits.totalBuffer and returns how much of
// it is for the socket: none of a TUN's.
func (f *Forwarder) reserve(p *port) (socket int64, err error) {
	if p.queue != nil {
		p.buffer = p.queue.size()
	}
	if p.spec.Attach == AttachVeth {
		if socket = f.share(); p.throttle != nil {
			socket = min(socket, p.throttle.socketBuffer())
		}
	}
	least := min(socket, minPortBuffer)
	left := f.makeRoom(p.buffer + socket)
	socket = min(socket, left-p.buffer)
	if socket < least {
		return 0, f.noBuffer(p.spec)
	}
	p.buffer += socket
	return socket, nil
}

// CanAttach is the error of an Attach that would not come to opening the device, because of what is asked for or because too little is
// left of limits.totalBuffer: asked before anything is made on the host for it.
func (f *Forwarder) CanAttach(s PortSpec) error {
	f.control.Lock()
	defer f.control.Unlock()
	if _, err := f.newPort(s); err != nil {
		return err
	}
	left := f.settings.TotalBuffer - s.Bandwidth.queueMemory()
	for _, o := range f.claimed() { // wide rings give way
		left -= o.buffer
	}
	least := int64(0)
	if s.Attach == AttachVeth {
		if least = minPortBuffer; bounded(s.Bandwidth.EgressRate) {
			least = min(least, (&throttle{bucket: bucket{rate: s.Bandwidth.EgressRate}}).socketBuffer())
		}
	}
	if left < least {
		return f.noBuffer(s)
	}
	return nil
}

func (f *Forwarder) noBuffer(s PortSpec) error {
	pods := 0
	for _, o := range f.claimed() {
		if o.buffer > 0 { // a TUN has none unless it is bounded
			pods++
		}
	}
	return fmt.Errorf("%s/%s: no packet buffer left, limits.totalBuffer %d bytes are taken by %d pods: raise it or lower limits.podBuffer",
		s.Container, s.Interface, f.settings.TotalBuffer, pods)
}

// share is how much of limits.totalBuffer a veth pod may take when it is attached. With a V2 ring the rest of limits.podBuffer
// is for its wide one. When three quarters of all is taken, pods get the least they can work with, so that more of them fit.
func (f *Forwarder) share() int64 {
	s := &f.settings
	free := s.TotalBuffer
	for _, o := range f.claimed() {
		free -= o.buffer
	}
	share := min(s.PodBuffer, narrowBuffer)
	if f.use.packetRing != ring.RingV2 {
		share = min(s.PodBuffer, max(share, free/64))
	}
	if free < s.TotalBuffer/4 {
		share = min(share, minPortBuffer)
	}
	if f.most > 0 {
		share = min(share, f.most)
	}
	return share
}

// Expect says which pods are about to be attached, all that a predecessor had, so that the order in which they come does not decide which
// of them gets how much of limits.totalBuffer, or none at all. They share three quarters of it, as those that came one by one did before new
// ones got the least. Nil: they are attached.
func (f *Forwarder) Expect(specs []PortSpec) {
	f.control.Lock()
	defer f.control.Unlock()
	f.most = 0
	left, veths := f.settings.TotalBuffer/4*3, int64(0)
	for _, s := range specs {
		if s.Attach == AttachVeth {
			veths++
		}
		left -= s.Bandwidth.queueMemory()
	}
	if veths > 0 {
		f.most = max(left/veths, minPortBuffer)
	}
}

// queueMemory is what the queue of a pod with this bound takes of limits.totalBuffer.
func (b Bandwidth) queueMemory() int64 {
	if !bounded(b.IngressRate) {
		return 0
	}
	_, slots, mem := queueSize(b.IngressRate)
	return queueMemory(slots, mem)
}

// adoptPort takes over a queue of the port's TUN.
func (f *Forwarder) adoptPort(p *port, fd int) error {
	if err := f.reserveTUN(p, fd); err != nil {
		return err
	}
	io, offload, err := f.env.adoptTUN(fd, f.use.tunOffload)
	if err != nil {
		return err
	}
	p.io, p.gso, p.uso = io, offload&ring.OffloadTSO4 != 0, offload&ring.OffloadUSO4 != 0
	if err := p.throttle.refuseSuperframes(io, offload); err != nil {
		io.Close()
		return err
	}
	return nil
}

// What a port's ring takes out of its buffer: V2's 128 slots of 2 KiB; V3's blocks, 4 of them if they fit.
const (
	ringV2  = 128 * 2048
	blockV3 = 256 << 10
)

// closePort closes the descriptor; with remove, a TUN's device goes too.
func (f *Forwarder) closePort(p *port, remove bool) error {
	f.leavePort(p)
	if remove {
		f.withdraw(p, p.io)
	}
	return p.io.Close()
}

// leavePort forgets the port's descriptors, which are still to be closed, and drops what waits for it.
func (f *Forwarder) leavePort(p *port) {
	f.onWorker(p.worker, func(w *worker) error { w.abandon(p); return nil })
	f.fds.remove(p.io.FD())
	if b := p.breadth; b != nil && b.wide != nil {
		f.fds.remove(b.wide.FD()) // closed with the narrow one
		b.wide, b.size = nil, 0
	}
}

// closesAtOnce is how many sockets wait together for the grace periods that each needs.
const closesAtOnce = 64

// closePorts closes all ports; their devices stay. No worker runs. A packet socket is closed at the price of two or three grace periods
// of RCU (packet_release in net/packet/af_packet.c), in which no pod is served: some 50 ms, so that all wait for the same ones.
func (f *Forwarder) closePorts() error {
	errs := make([]error, len(f.ports))
	var g errgroup.Group
	g.SetLimit(closesAtOnce)
	for i, p := range f.ports {
		if p.io == nil {
			continue // a routed pod's
		}
		f.leavePort(p) // here, as it touches the workers' memory
		g.Go(func() error { errs[i] = p.io.Close(); return nil })
	}
	_ = g.Wait()
	return errors.Join(errs...)
}
