package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/pprof"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table"
	"github.com/penstock-net/penstock/table/feed"
)

// Forwarder is one node's data plane. Its methods may be called from any
// goroutine; what changes things is serialised.
type Forwarder struct {
	env     environment
	log     *slog.Logger
	started time.Time

	// Fixed by New.
	address netip.Addr
	vni     uint32 // the one network, as table knows it
	use     use
	caps    []ring.Capability
	workers []*worker
	hops    struct{ self, host, noRoute, noPod, awaited *hop }
	keeper  *keeper

	// Read by workers without waiting.
	table       table.Table[hop]
	live        atomic.Pointer[live]
	flows       *flowMemory
	tunnelPorts tunnelPorts
	noWhole     atomic.Uint32 // kinds of superframes that the TAP has refused, see wholeBit
	running     atomic.Bool
	native      *nativePlane // nil: off; fixed by New
	taps        atomicTaps

	// Changed under control only.
	control       sync.Mutex
	settings      Settings
	hosts         []*port             // penstock0's queues, by worker
	awaited       map[netip.Addr]bool // see Await
	ports         []*port
	opening       []*port                 // claimed, but not there yet: the kernel is at work on them (portopen.go)
	most          int64                   // that one of those that Expect knows of may have of limits.totalBuffer; 0: no bound
	portList      atomic.Pointer[[]*port] // copy of ports for readers
	portSlots     slots
	peers         map[netip.Addr]*peer
	peerList      atomic.Pointer[[]*peer]
	peerSlots     slots
	feedPeers     []feed.Peer
	endpoints     map[endpointKey]*endpoint
	endpointSlots slots
	stopped       bool

	// Written by workers, and by the keeper.
	widened     atomic.Uint64 // wide rings opened
	switchedOff [switches]atomic.Uint64
	batching    atomic.Int32 // workers with an io_uring
	first       atomic.Int32 // workers that may go before other threads
	moving      sync.Mutex   // held by a worker that finds itself on another thread

	fds        registry
	complaints struct {
		sync.Mutex
		last map[string]int64
	}
}

// use is what the switches and the kernel together allow.
type use struct {
	udpSegment, udpGRO, tunOffload, tunBatch, mergeWrites, uso, tunnelGSO, priority, polling bool

	packetRing  ring.PacketRing
	flood       float64 // frames a second from which on a wide ring is V3; 0: never
	maxSegments int32   // datagrams of a run
}

// environment is how the forwarder gets its descriptors; tests put fakes here.
type environment struct {
	now        func() time.Time // the clock of the workers' batches
	probe      func() []ring.Capability
	openUDP    func(ring.UDPConfig) (ring.Socket, error)
	openIPIP   func(ring.RawConfig) (ring.Socket, error)
	openPacket func(ring.PacketConfig) (ring.Port, func() (ring.Stats, error), error)
	openWide   func(*ring.PacketSocket, ring.PacketConfig) (*ring.PacketSocket, error)
	createTUN  func(c ring.TUNConfig, offload bool) (ring.Port, ring.Offload, error)
	adoptTUN   func(fd int, offload bool) (ring.Port, ring.Offload, error)
	openHost   func(name string, mtu, queues int, offload bool) ([]ring.Port, ring.Offload, error)
	openUring  func() (*ring.Uring, error)
	openTunnel func(name string, queues int) ([]tunnel, error)

	setPriority func(thread int, p ring.Priority) error // of one of our threads
}

// New opens everything a forwarder needs: the host's TUN, sockets, memory. It
// forwards nothing before Start. On an error nothing stays open.
func New(s Settings) (*Forwarder, error) { return newForwarder(s, kernel()) }

func newForwarder(s Settings, env environment) (_ *Forwarder, err error) {
	if err := s.fill(); err != nil {
		return nil, err
	}
	if env.now == nil {
		env.now = time.Now
	}
	f := &Forwarder{env: env, log: s.Log, started: env.now(), address: s.Address, vni: s.VNI, settings: s,
		keeper: newKeeper(), flows: newFlowMemory(s.Workers), endpoints: map[endpointKey]*endpoint{}}
	f.complaints.last = map[string]int64{}
	f.hops.self, f.hops.host = &hop{kind: hopSelf}, &hop{kind: hopHost}
	f.hops.noRoute, f.hops.noPod = &hop{kind: hopNoRoute}, &hop{kind: hopNoPod}
	f.hops.awaited = &hop{kind: hopAwaited}
	f.savePorts()
	f.savePeers()
	f.tunnelPorts.native = s.Native.Port
	f.tunnelPorts.store(nil)
	f.caps = env.probe()
	if err := f.choose(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	for i := range s.Workers {
		w, err := newWorker(f, i)
		if err != nil {
			return nil, fmt.Errorf("worker %d: %w", i, err)
		}
		f.workers = append(f.workers, w)
	}
	if f.use.priority {
		f.first.Store(int32(len(f.workers)))
	}
	f.openUrings()
	if err := f.openHost(); err != nil {
		return nil, err
	}
	if err := f.openTunnels(); err != nil {
		return nil, err
	}
	f.storeLive()
	if err := f.openNative(); err != nil {
		return nil, err
	}
	if err := f.publish(nil); err != nil {
		return nil, err
	}
	return f, nil
}

// found reports whether the probe found a capability.
func (f *Forwarder) found(name string) bool {
	for _, c := range f.caps {
		if c.Name == name {
			return c.Found
		}
	}
	return false
}

// choose decides what is used, from the switches and what was found.
func (f *Forwarder) choose() error {
	o := f.settings.Offload
	f.use = use{
		udpSegment:  o.UDPSegment && f.found(ring.CapUDPSegment),
		udpGRO:      o.UDPGRO && f.found(ring.CapUDPGRO),
		tunOffload:  o.TUNOffload && f.found(ring.CapTUNOffload),
		tunBatch:    o.TUNBatch && f.found(ring.CapTUNBatch),
		mergeWrites: o.MergeWrites,
		priority:    f.settings.Priority && f.found(ring.CapPriority),
		polling:     f.settings.Polling,
		tunnelGSO:   o.TunnelGSO && f.found(ring.CapTunnelGSO),
		uso:         f.found(ring.CapTUNUSO),
		maxSegments: 1,
	}
	if f.use.udpSegment {
		f.use.maxSegments = int32(min(ring.MaxSegments(), maxRunSegments))
	}
	switch o.PacketRing {
	case "", "auto":
		f.use.packetRing = ring.RecvMMsg
		if f.found(ring.CapPacketV2) {
			f.use.packetRing = ring.RingV2
			if f.found(ring.CapPacketV3) && ring.BlockTimerIsPrecise() {
				f.use.flood = floodRate
			}
		}
	case "v2":
		f.use.packetRing = ring.RingV2
	case "v3":
		f.use.packetRing = ring.RingV3
	case "off":
		f.use.packetRing = ring.RecvMMsg
	default:
		return fmt.Errorf("offload.packetRing is %q, it can be auto, v2, v3 or off", o.PacketRing)
	}
	return nil
}

// hostPorts opens the queues of the host's TUN, one a worker.
func (f *Forwarder) hostPorts() (ports []*port, err error) {
	s := &f.settings
	queues, offload, err := f.env.openHost(s.HostDevice, s.PodMTU, s.Workers, f.use.tunOffload)
	for i, q := range queues {
		ports = append(ports, &port{spec: PortSpec{Device: s.HostDevice}, direction: Host, io: q, worker: i, mtu: s.PodMTU,
			gso: offload&ring.OffloadTSO4 != 0, uso: offload&ring.OffloadUSO4 != 0})
	}
	return ports, err
}

// openHost attaches one queue of the host's TUN to each worker.
func (f *Forwarder) openHost() (err error) {
	if f.hosts, err = f.hostPorts(); err != nil {
		return err
	}
	for i, p := range f.hosts {
		f.fds.add(fmt.Sprintf("host/%d", i), p.io.FD())
	}
	for i, w := range f.workers {
		w.host = f.hosts[i]
		for _, p := range f.hosts {
			w.hostboxes = append(w.hostboxes, &outbox{port: p})
		}
		if err := w.poller.Add(w.host.io.FD(), tokenHost); err != nil {
			return fmt.Errorf("poll %s: %w", f.settings.HostDevice, err)
		}
	}
	return nil
}

// openTunnels attaches a queue of the TAP for whole superframes to each worker.
func (f *Forwarder) openTunnels() error {
	if !f.use.tunnelGSO {
		return nil
	}
	ts, err := f.env.openTunnel(GSODevice, f.settings.Workers)
	if err != nil {
		return err
	}
	for i, t := range ts {
		f.workers[i].tunnel = t
		t.BatchWrites(f.workers[i].uring)
		f.fds.add(fmt.Sprintf("gso/%d", i), t.FD())
	}
	return nil
}

// openUrings makes a ring for each worker. Without one it reads and writes TUN queues by a system call a packet.
func (f *Forwarder) openUrings() {
	for _, w := range f.workers {
		if !f.use.tunBatch {
			return
		}
		u, err := f.env.openUring()
		if err != nil {
			f.switchedOff[switchTUNBatch].Add(1)
			f.log.Warn("many packets of a TUN cannot be read at once; reading one by one", "worker", w.index, "error", err)
			continue
		}
		f.fds.add(fmt.Sprintf("uring/%d", w.index), u.FD())
		w.useUring(u)
		f.batching.Add(1)
	}
}

// storeLive makes what workers read of the settings.
func (f *Forwarder) storeLive() {
	s := &f.settings
	l := &live{copyDSCP: s.CopyDSCP, clampMSS: s.ClampMSS, podMTU: s.PodMTU}
	for _, a := range s.hostAddresses() {
		switch {
		case a.Is4() && !l.self4.IsValid():
			l.self4 = a
		case a.Is6() && !l.self6.IsValid():
			l.self6 = a
		}
	}
	f.live.Store(l)
}

// Start lets the workers run.
func (f *Forwarder) Start() {
	f.control.Lock()
	defer f.control.Unlock()
	if f.stopped || f.running.Swap(true) {
		return
	}
	for _, w := range f.workers {
		go pprof.Do(context.Background(), pprof.Labels("worker", strconv.Itoa(w.index)), func(context.Context) { w.run() })
	}
	f.keeper.done.Go(func() { f.keeper.run(f) })
	if f.native != nil {
		f.native.done.Go(f.native.run)
	}
}

// Stop lets each worker finish the batch in its hands, then closes all
// descriptors. Devices, routes and rules stay for a successor.
func (f *Forwarder) Stop(ctx context.Context) error {
	f.control.Lock()
	was := f.stopped
	f.stopped = true // nothing is opened from here on, the keeper sees it too
	f.control.Unlock()
	f.keeper.stop()
	f.control.Lock()
	defer f.control.Unlock()
	if was {
		return nil
	}
	if f.running.Load() {
		if f.native != nil {
			close(f.native.stop)
			f.native.done.Wait()
		}
		for _, w := range f.workers {
			w.ask(func(w *worker) error { w.stopping = true; return nil })
		}
		for _, w := range f.workers {
			select {
			case <-w.done:
			case <-ctx.Done():
				return fmt.Errorf("worker %d did not stop: %w", w.index, ctx.Err())
			}
		}
		f.running.Store(false)
	}
	return f.close()
}

// close closes every descriptor. No worker runs.
func (f *Forwarder) close() error {
	errs := []error{f.closePorts()}
	f.ports = nil // readers keep their copy: what was counted stays
	for _, p := range f.hosts {
		f.fds.remove(p.io.FD())
		errs = append(errs, p.io.Close())
	}
	f.closeNative()
	for _, w := range f.workers {
		for _, l := range w.lanes {
			if l != nil {
				l.close(f, w.index)
			}
		}
		if w.tunnel != nil {
			f.fds.remove(w.tunnel.FD())
			errs = append(errs, w.tunnel.Close())
		}
		if w.uring != nil {
			f.fds.remove(w.uring.FD())
			errs = append(errs, w.uring.Close())
		}
		errs = append(errs, w.poller.Close())
	}
	return errors.Join(errs...)
}

// onAll runs fn on one worker after the other between two batches and waits:
// afterwards no worker holds a View, or anything from one, that was replaced
// before.
func (f *Forwarder) onAll(fn func(*worker)) {
	for _, w := range f.workers {
		w.do(func(w *worker) error { fn(w); return nil })
	}
}

func (f *Forwarder) onWorker(i int, fn func(*worker) error) error { return f.workers[i].do(fn) }

func (f *Forwarder) savePeers() {
	list := make([]*peer, 0, len(f.peers))
	for _, p := range f.peers {
		list = append(list, p)
	}
	f.peerList.Store(&list)
}

// Capability is one mechanism: whether the kernel has it, whether it is used, and why not.
type Capability struct {
	Name, Needs string
	Found, Used bool
	Detail      string
}

// Capabilities lists what was probed and chosen.
func (f *Forwarder) Capabilities() []Capability {
	used := map[string]bool{
		ring.CapTUN:                  true,
		ring.CapTUNOffload:           f.use.tunOffload,
		ring.CapTUNUSO:               f.use.tunOffload && f.use.uso,
		ring.CapTUNBatch:             f.batching.Load() > 0,
		ring.CapTunnelGSO:            f.use.tunnelGSO,
		ring.CapPacketVnetHdr:        true,
		ring.CapPacketV2:             f.use.packetRing == ring.RingV2,
		ring.CapPacketV3:             f.use.packetRing == ring.RingV3 || f.use.flood > 0,
		ring.CapPacketIgnoreOutgoing: true,
		ring.CapPacketQdiscBypass:    true,
		ring.CapUDPSegment:           f.use.udpSegment,
		ring.CapUDPGRO:               f.use.udpGRO,
		ring.CapUDPNoCheck6:          f.address.Is6(),
		ring.CapRawIPIP:              f.tunnelPorts.ipip.Load(),
		ring.CapReusePort:            len(f.workers) > 1,
		ring.CapPriority:             f.first.Load() > 0,
	}
	var cs []Capability
	for _, c := range f.caps {
		cs = append(cs, Capability{c.Name, c.Needs, c.Found, used[c.Name] && c.Found, c.Detail})
	}
	return cs
}

// Progress tells a watchdog how each worker is doing: its turns so far, and
// whether it waits for packets. One that does neither move nor wait is stuck.
func (f *Forwarder) Progress() (turns []uint64, waiting []bool) {
	for _, w := range f.workers {
		turns = append(turns, w.progress.Load())
		waiting = append(waiting, w.asleep.Load())
	}
	return turns, waiting
}
