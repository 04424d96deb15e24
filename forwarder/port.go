package forwarder

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table"
)

// The ways to attach a pod.
const (
	AttachVeth   = "veth"   // AF_PACKET on the host end of the pod's veth
	AttachTUN    = "tun"    // a TUN queue, whose device the caller makes in the pod or moves there
	AttachRouted = "routed" // the host's stack has the pod behind a device of its own: only routes, see routed.go
)

// GatewayMAC is the MAC of the gateway as every veth pod sees it, and of the
// host end of its veth.
var GatewayMAC = encap.MAC{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}

// The gateway's addresses as every pod sees them; the forwarder answers for them.
var (
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// PortSpec says what to attach. Container and Interface are its key.
type PortSpec struct {
	Container, Interface string
	Attach               string       // AttachVeth, AttachTUN or AttachRouted
	Device               string       // veth: the host end, which exists; tun: the TUN to make, or a name for the one that comes; routed: empty
	MAC                  string       // veth: the pod's; empty: learned from its first frame
	Addresses            []netip.Addr // the pod's own
	MTU                  int          // 0: Settings.PodMTU
	Bandwidth            Bandwidth
}

// Bandwidth limits what a pod receives (ingress) and sends (egress), as CNI's capability of that name has it: rates in bits a
// second, bursts in bits. A rate of 0 is no limit; a burst is at least leastBurst of its rate. See throttle.go and queue.go.
type Bandwidth struct {
	IngressRate, IngressBurst uint64
	EgressRate, EgressBurst   uint64
}

// PortInfo is an attached port.
type PortInfo struct {
	PortSpec
	Worker int
	Lost   bool // its device has gone under the daemon's hands

	// QueueLen is how many packets its bandwidth lets wait in a TUN; 0: as many as do. Whoever made the TUN sets that, as there is no
	// way by a queue of it.
	QueueLen int
	PortCounters
}

// port is where a pod, or the host, is attached. One worker reads it; any
// worker writes to it. Immutable but for the atomics.
type port struct {
	index     int
	spec      PortSpec
	addresses []netip.Addr
	direction Direction // Pod or Host
	io        ring.Port
	stats     func() (ring.Stats, error) // nil where the kernel has none
	unblock   func() (bool, error)       // nil where no frame can block the ring
	link      int                        // bytes of link header: 14 or 0
	worker    int
	mtu       int
	gso, uso  bool      // takes TCP superframes; takes UDP ones
	buffer    int64     // of limits.totalBuffer
	throttle  *throttle // bounds what the pod sends; nil: nothing does. The reading worker's
	breadth   *breadth  // its wide ring while it is busy; nil: it never has one
	queue     *queue    // bounds what the pod receives; nil: nothing does. All workers'
	hop       *hop

	mac        atomic.Uint64 // the pod's, in the low 48 bits; 0: not known yet
	translated atomic.Bool   // the host has translated flows of this pod: look into the flow memory
	accounts   accounts      // by worker; nil of the host's queues
	lost       atomic.Bool   // its device has gone
	said       said          // that writing failed
}

func (p *port) info() PortInfo {
	i := PortInfo{PortSpec: p.spec, Worker: p.worker, Lost: p.lost.Load(), PortCounters: p.counters()}
	if m := p.mac.Load(); m != 0 {
		i.MAC = unpackMAC(m).String()
	}
	i.PortSpec.MTU = p.mtu
	if p.spec.Attach == AttachTUN && p.throttle != nil {
		i.QueueLen = p.throttle.tunQueue(p.mtu)
	}
	return i
}

func (p *port) counters() PortCounters {
	t := p.accounts.total()
	c := PortCounters{Container: p.spec.Container, Interface: p.spec.Interface, Device: p.spec.Device,
		Sent: t.sent, Got: t.got, Dropped: t.dropped, LastSeen: t.lastSeen}
	if p.stats != nil {
		if s, err := p.stats(); err == nil {
			c.RingDrops = s.Dropped
		}
	}
	return c
}

func packMAC(m encap.MAC) uint64 {
	return uint64(m[0])<<40 | uint64(m[1])<<32 | uint64(m[2])<<24 | uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
}

func unpackMAC(v uint64) encap.MAC {
	return encap.MAC{byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// minPortBuffer is the least ring and socket buffer that a veth port works with.
const minPortBuffer = 512 << 10

// Attach connects a pod. Attaching the same again is fine; the same key with
// another spec, or an address that is taken, is an error. On an error nothing
// has changed. Several may be attached at once; while one is, another call for
// its key is an error.
func (f *Forwarder) Attach(spec PortSpec) (PortInfo, error) {
	f.control.Lock()
	defer f.control.Unlock()
	return f.attach(spec, f.openPort, true)
}

// AttachQueue is Attach for a TUN that the caller has made, in whatever network namespace, by its only queue. The forwarder owns fd
// from then on, also when this fails. The TUN lasts from then on, until it is detached; when this fails it does not.
func (f *Forwarder) AttachQueue(spec PortSpec, fd int) (PortInfo, error) {
	f.control.Lock()
	defer f.control.Unlock()
	return f.byQueue(spec, fd, func(p *port) error { return f.takePort(p, fd) }, true)
}

// Adopt is Attach for a TUN that exists already, in whatever network namespace, by a queue of it. The forwarder owns fd from
// then on, also when this fails; the TUN then stays as it is, because it is a living pod's.
func (f *Forwarder) Adopt(spec PortSpec, fd int) (PortInfo, error) {
	f.control.Lock()
	defer f.control.Unlock()
	return f.byQueue(spec, fd, func(p *port) error { return f.adoptPort(p, fd) }, false)
}

// byQueue is attach with an open that owns fd; where it is not even called, fd is closed.
func (f *Forwarder) byQueue(spec PortSpec, fd int, open func(*port) error, makes bool) (PortInfo, error) {
	taken := false
	i, err := f.attach(spec, func(p *port) error { taken = true; return open(p) }, makes)
	if !taken {
		unix.Close(fd)
	}
	return i, err
}

// attach is Attach with a way to open the device, which an attach that fails takes away again if it made it; f.control is held.
func (f *Forwarder) attach(spec PortSpec, open func(*port) error, makes bool) (PortInfo, error) {
	if f.stopped {
		return PortInfo{}, stoppedAttach(spec)
	}
	if old := f.findPort(spec.Container, spec.Interface); old != nil {
		if sameSpec(old.spec, spec) {
			return old.info(), nil
		}
		return PortInfo{}, fmt.Errorf("%s/%s is attached already with another device, address, MTU or bandwidth: detach it first", spec.Container, spec.Interface)
	}
	if f.beingOpened(spec.Container, spec.Interface) {
		return PortInfo{}, fmt.Errorf("%s/%s is being attached already: ask again when that has ended", spec.Container, spec.Interface)
	}
	p, err := f.newPort(spec)
	if err != nil {
		return PortInfo{}, err
	}
	if p.hop.kind == hopRouted {
		return f.attachRouted(p)
	}
	f.shapePort(p)
	if err := open(p); err != nil {
		return PortInfo{}, err
	}
	f.fds.add(fmt.Sprintf("pod/%s/%s", p.spec.Container, p.spec.Interface), p.io.FD())
	if p.queue != nil && p.queue.cuts() {
		p.gso, p.uso = false, false
	}
	p.index = f.portSlots.take()
	var polled error
	f.onAll(func(w *worker) {
		w.growOutboxes(f.portSlots.size())
		*w.outboxes[p.index] = outbox{port: p}
		w.alarms.reserve(f.portSlots.size())
		if w.index == p.worker { // in the same visit: a worker has to be woken for each
			polled = w.addPort(p)
		}
	})
	undo := func() {
		f.onAll(func(w *worker) { w.outboxes[p.index].port = nil })
		f.portSlots.give(p.index)
		f.closePort(p, makes)
	}
	if polled != nil {
		undo()
		return PortInfo{}, fmt.Errorf("poll %s: %w", p.spec.Device, polled)
	}
	if err := f.routePort(p); err != nil {
		f.onWorker(p.worker, func(w *worker) error { w.removePort(p); return nil })
		undo()
		return PortInfo{}, err
	}
	if f.flows.size() > 0 {
		// Answers to flows that were translated before this pod was (re)attached:
		// asked once more when the routes stand, as Preload asks these.
		p.translated.Store(true)
	}
	if p.link != 0 && p.mac.Load() == 0 {
		f.onWorker(p.worker, func(w *worker) error {
			w.begin()
			w.solicit(w.outboxes[p.index])
			w.ledger.publish(&w.tally)
			return nil
		})
	}
	f.ports = append(f.ports, p)
	f.savePorts()
	return p.info(), nil
}

// routePort leads packets for the port's addresses to it.
func (f *Forwarder) routePort(p *port) error {
	return f.table.Update(func(x *table.Txn[hop]) error {
		n := x.Network(f.settings.VNI)
		for _, a := range p.addresses {
			n.SetRoute(netip.PrefixFrom(a, a.BitLen()), p.hop)
		}
		return nil
	})
}

// Detach disconnects a pod; it is nil if there is none. A TUN that Attach made
// or AttachQueue took vanishes with it, a veth stays.
func (f *Forwarder) Detach(container, iface string) error {
	f.control.Lock()
	defer f.control.Unlock()
	if f.stopped { // its descriptor is closed, or about to be
		return fmt.Errorf("%s/%s is not detached: the daemon is stopping", container, iface)
	}
	p := f.findPort(container, iface)
	if p == nil && f.beingOpened(container, iface) {
		return fmt.Errorf("%s/%s is being attached: detach it when that has ended", container, iface)
	}
	if p == nil {
		return nil
	}
	err := f.table.Update(func(x *table.Txn[hop]) error {
		n := x.Network(f.settings.VNI)
		for _, a := range p.addresses {
			n.DeleteRoute(netip.PrefixFrom(a, a.BitLen()))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p.hop.kind == hopRouted {
		f.ports = slices.DeleteFunc(f.ports, func(q *port) bool { return q == p })
		f.savePorts()
		return nil
	}
	f.onWorker(p.worker, func(w *worker) error { w.removePort(p); return nil })
	// After this no worker holds a View, an outbox, an alarm or a merge that names the port.
	f.onAll(func(w *worker) { w.outboxes[p.index].port = nil; w.alarms.forget(p) })
	f.ports = slices.DeleteFunc(f.ports, func(q *port) bool { return q == p })
	f.savePorts()
	f.portSlots.give(p.index)
	return f.closePort(p, true)
}

// Ports lists the attached pods.
func (f *Forwarder) Ports() []PortInfo {
	var infos []PortInfo
	for _, p := range *f.portList.Load() {
		infos = append(infos, p.info())
	}
	return infos
}

// PortCount is len(Ports()), without a look at each.
func (f *Forwarder) PortCount() int { return len(*f.portList.Load()) }

func (f *Forwarder) savePorts() {
	list := slices.Clone(f.ports)
	f.portList.Store(&list)
}

func (f *Forwarder) findPort(container, iface string) *port {
	for _, p := range f.ports {
		if p.spec.Container == container && p.spec.Interface == iface {
			return p
		}
	}
	return nil
}

func sameSpec(a, b PortSpec) bool {
	return a.Attach == b.Attach && a.Device == b.Device && a.MTU == b.MTU && a.Bandwidth == b.Bandwidth && slices.Equal(a.Addresses, b.Addresses) && (b.MAC == "" || strings.EqualFold(a.MAC, b.MAC))
}

// newPort checks the spec and fills a port, without opening anything.
func (f *Forwarder) newPort(spec PortSpec) (*port, error) {
	s := &f.settings
	p := &port{spec: spec, direction: Pod, mtu: spec.MTU, accounts: f.newAccounts()}
	p.hop = &hop{kind: hopPort, port: p}
	what := spec.Container + "/" + spec.Interface
	if err := spec.Bandwidth.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if spec.Container == "" || spec.Interface == "" || spec.Device == "" && spec.Attach != AttachRouted {
		return nil, fmt.Errorf("attach needs a container, an interface and a device name")
	}
	switch spec.Attach {
	case AttachVeth, AttachTUN:
	case AttachRouted:
		p.hop.kind = hopRouted
		if spec.Bandwidth != (Bandwidth{}) {
			return nil, fmt.Errorf("%s: no frame of a %s pod is read here, so its bandwidth cannot be bounded: bound it where its device is made", what, spec.Attach)
		}
	default:
		return nil, fmt.Errorf("%s: attach is %q, it can be %q, %q or %q", what, spec.Attach, AttachVeth, AttachTUN, AttachRouted)
	}
	if len(spec.Addresses) == 0 {
		return nil, fmt.Errorf("%s has no address: give at least one of node.podCIDRs", what)
	}
	if p.mtu == 0 {
		p.mtu = s.PodMTU
	}
	if p.mtu < 68 || p.mtu > 65535 {
		return nil, fmt.Errorf("%s: MTU %d is impossible: use %d or less", what, p.mtu, s.PodMTU)
	}
	for _, a := range spec.Addresses {
		a = a.Unmap()
		switch {
		case !slices.ContainsFunc(s.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }):
			return nil, fmt.Errorf("%s: address %s is in none of this node's pod CIDRs %s", what, a, s.PodCIDRs)
		case slices.Contains(s.hostAddresses(), a):
			return nil, fmt.Errorf("%s: address %s is the host's own: use another", what, a)
		case a.Is6() && p.mtu < 1280:
			return nil, fmt.Errorf("%s: IPv6 needs an MTU of at least 1280, not %d", what, p.mtu)
		case slices.Contains(p.addresses, a):
			return nil, fmt.Errorf("%s: address %s is given twice", what, a)
		}
		for _, o := range f.claimed() {
			if slices.Contains(o.addresses, a) {
				return nil, fmt.Errorf("%s: address %s belongs to %s/%s already", what, a, o.spec.Container, o.spec.Interface)
			}
		}
		p.addresses = append(p.addresses, a)
	}
	for _, o := range f.claimed() {
		if o.spec.Device == spec.Device && o.hop.kind != hopRouted && p.hop.kind != hopRouted {
			return nil, fmt.Errorf("%s: device %s is attached already for %s/%s", what, spec.Device, o.spec.Container, o.spec.Interface)
		}
	}
	if spec.MAC != "" {
		m, err := net.ParseMAC(spec.MAC)
		if err != nil || len(m) != 6 || m[0]&1 != 0 {
			return nil, fmt.Errorf("%s: %q is no unicast Ethernet address", what, spec.MAC)
		}
		p.mac.Store(packMAC(encap.MAC(m)))
	}
	p.translated.Store(f.flows.size() > 0)
	p.worker = f.leastLoaded()
	return p, nil
}

// leastLoaded is the worker that reads the fewest ports.
func (f *Forwarder) leastLoaded() (least int) {
	load := make([]int, len(f.workers))
	for _, o := range f.claimed() {
		if o.hop.kind != hopRouted {
			load[o.worker]++
		}
	}
	for w := range load {
		if load[w] < load[least] {
			least = w
		}
	}
	return least
}

// ownPodAddress reports whether a lies in this node's pod CIDRs.
func (f *Forwarder) ownPodAddress(a netip.Addr) bool {
	n := f.table.Load().Network(f.vni)
	h := n.Route(a)
	return h != nil && (h.kind == hopPort || h.kind == hopNoPod || h.kind == hopAwaited) // never a routed pod: its answers pass the host anyway
}

// flagTranslated marks the port of a so that workers look into the flow memory.
func (f *Forwarder) flagTranslated(a netip.Addr) {
	if h := f.table.Load().Network(f.vni).Route(a); h != nil && h.kind == hopPort {
		h.port.translated.Store(true)
	}
}
