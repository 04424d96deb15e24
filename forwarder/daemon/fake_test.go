package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/hostflow"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/probe"
	"github.com/penstock-net/penstock/forwarder/uplink"
	"github.com/penstock-net/penstock/table/feed"
)

// fake is a machine, with a plane, a host and flows, that writes down what is done to it and fails where it is told to.
type fake struct {
	mu       sync.Mutex
	did      []string
	fail     map[string]error // by what is done
	underlay hostnet.Underlay
	byRoute  netip.Addr // where the default route leads, if not by the underlay
	taken    bool       // a predecessor's device stands there
	links    map[string]link
	blocked  map[string]bool

	remade       []string // devices that the next look makes anew
	proberClosed int

	settings forwarder.Settings
	peers    []feed.Peer
	hostnet  hostnet.Config
	ports    []forwarder.PortInfo
	awaited  []netip.Addr
	awaits   int // calls of Await
	counters forwarder.Counters
	turns    uint64 // of worker 0, which moves at every look; worker 1 waits
	stuck    bool   // worker 0 does not move any more
	tapped   forwarder.TapFilter
	traced   forwarder.TraceSpec

	stopTime time.Duration // that the forwarder was given to stop

	step     func() // before each deed; mu is held
	expected []int  // pods of a predecessor, at each call
	opens    func() // while a port is opened; mu is not held
	boot     string
	netns    map[string]string     // path to id
	routes4  map[netip.Addr]string // device by address; penstock0 if not there
	holders  map[netip.Addr]string // devices of addresses beside the underlay's
	stored   map[string]int        // descriptors with systemd

	watch  func(hostnet.Underlay, error) error // of WatchUnderlay, once it runs
	routes func()
	rules  func()
}

func newFake() *fake {
	return &fake{fail: map[string]error{}, blocked: map[string]bool{}, boot: "boot-1", netns: map[string]string{}, routes4: map[netip.Addr]string{}, holders: map[netip.Addr]string{}, stored: map[string]int{},
		underlay: hostnet.Underlay{Address: netip.MustParseAddr("192.0.2.1"), Device: "eth0", Index: 2, MTU: 1500, Up: true},
		links:    map[string]link{"eth0": {Index: 2, Ethernet: true, Type: "veth"}, "ve1": {Index: 11, Ethernet: true, Type: "veth"}, "ve2": {Index: 12, Ethernet: true, Type: "veth"}, "dummy0": {Index: 13, Ethernet: false, Type: "ipip"}},
	}
}

func (f *fake) do(what string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.step != nil {
		f.step()
	}
	f.did = append(f.did, strings.TrimSpace(what+" "+fmt.Sprint(args...)))
	return f.fail[what]
}

// deeds returns what was done since the last call.
func (f *fake) deeds() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.did
	f.did = nil
	return d
}

func (f *fake) failing(what string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[what] = err
}

func (f *fake) Claim() (func() error, error) { return func() error { return nil }, f.fail["claim"] }
func (f *fake) Privileged() error            { return f.do("privileged") }
func (f *fake) DefaultAddress() (netip.Addr, error) {
	if f.byRoute.IsValid() {
		return f.byRoute, f.do("address")
	}
	return f.underlay.Address, f.do("address")
}
func (f *fake) FindUnderlay(a netip.Addr, _ bool) (hostnet.Underlay, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if device := f.holders[a]; device != "" {
		return hostnet.Underlay{Device: device}, nil
	}
	if a != f.underlay.Address {
		return hostnet.Underlay{}, hostnet.ErrNoAddress
	}
	return f.underlay, nil
}

func (f *fake) WatchUnderlay(ctx context.Context, _ netip.Addr, _ bool, fn func(hostnet.Underlay, error) error) error {
	f.mu.Lock()
	f.watch = fn
	u := f.underlay
	f.mu.Unlock()
	fn(u, nil)
	<-ctx.Done()
	return nil
}

// untilDone keeps what is to be called when something changes.
func (f *fake) untilDone(ctx context.Context, keep *func(), fn func()) error {
	f.mu.Lock()
	*keep = fn
	f.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (f *fake) WatchRoutes(ctx context.Context, fn func()) error {
	return f.untilDone(ctx, &f.routes, fn)
}

func (f *fake) WatchRules(ctx context.Context, fn func()) error {
	return f.untilDone(ctx, &f.rules, fn)
}

func (f *fake) PrepareTUN(name string, queues int) (bool, error) {
	return !f.taken, f.do("prepare", name, " ", queues)
}
func (f *fake) NewForwarder(s forwarder.Settings) (plane, error) {
	f.settings = s
	return fakePlane{f}, f.do("forwarder")
}
func (f *fake) NewHost(c hostnet.Config) (host, error) {
	f.hostnet = c
	return fakeHost{f}, f.do("host")
}
func (f *fake) OpenFlows(c hostflow.Config) (flows, error) {
	if c.Sink == nil {
		return nil, errors.New("no sink")
	}
	return fakeFlows{f}, f.do("flows")
}
func (f *fake) Link(name string) (link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l, ok := f.links[name]; ok {
		return l, nil
	}
	return link{}, errNoLink
}
func (f *fake) setLink(name string, l link) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l.Name, l.MTU = name, cmp.Or(l.MTU, 1500)
	f.links[name] = l
}
func (f *fake) Links() ([]link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []link
	for name, l := range f.links {
		l.Name = name
		all = append(all, l)
	}
	return all, nil
}
func (f *fake) RemoveLink(name string) error {
	if err := f.do("rmlink", name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.links[name]; !ok {
		return errNoLink
	}
	delete(f.links, name)
	return nil
}
func (f *fake) SetMTU(index, mtu int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, l := range f.links {
		if l.Index == index {
			l.MTU = mtu
			f.links[name] = l
			return f.fail["mtu"]
		}
	}
	return errNoLink
}
func (f *fake) RouteDevice(a, _ netip.Addr) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d, ok := f.routes4[a]; ok {
		return d, nil
	}
	return "penstock0", nil
}
func (f *fake) BootID() (string, error) { return f.boot, nil }
func (f *fake) NetnsID(path string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id, ok := f.netns[path]; ok {
		return id, nil
	}
	return "", os.ErrNotExist
}
func (f *fake) StoreQueue(name string, fd int) error { return f.do("store", name) }
func (f *fake) ForgetQueue(name string)              { f.do("unstore", name) }
func (f *fake) StoredQueues() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stored
	f.stored = map[string]int{}
	return s
}
func (f *fake) Cleanup(_ context.Context, device string) (hostnet.Report, error) {
	return hostnet.Report{Removed: []string{device}}, f.do("cleanup", device)
}

type fakePlane struct{ *fake }

func (f fakePlane) Start() { f.do("start") }
func (f fakePlane) Stop(ctx context.Context) error {
	if end, ok := ctx.Deadline(); ok {
		f.stopTime = time.Until(end)
	}
	return errors.Join(f.do("stop"), ctx.Err())
}
func (f fakePlane) SetPeers(p []feed.Peer) error {
	if err := f.do("peers", len(p)); err != nil {
		return err
	}
	f.peers = p
	return nil
}
func (f fakePlane) Reconfigure(s forwarder.Settings) error {
	if err := f.do("reconfigure", s.PodMTU); err != nil {
		return err
	}
	f.settings = s
	return nil
}
func (f fakePlane) Replace(s forwarder.Settings, p []feed.Peer) error {
	if err := f.do("replace", s.PodMTU, " ", len(p)); err != nil {
		return err
	}
	f.settings, f.peers = s, p
	return nil
}
func (f fakePlane) Expect(s []forwarder.PortSpec) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.expected = append(f.expected, len(s))
}
func (f fakePlane) CanAttach(s forwarder.PortSpec) error { return f.do("canattach", s.Device) }
func (f fakePlane) Attach(s forwarder.PortSpec) (forwarder.PortInfo, error) {
	if f.opens != nil {
		f.opens()
	}
	if err := f.do("attach", s.Device); err != nil {
		return forwarder.PortInfo{}, err
	}
	p := forwarder.PortInfo{PortSpec: s}
	if s.Attach == forwarder.AttachTUN && s.Bandwidth != (forwarder.Bandwidth{}) {
		p.QueueLen = 37
	}
	f.mu.Lock()
	f.ports = append(f.ports, p)
	f.mu.Unlock()
	return p, nil
}
func (f fakePlane) AttachQueue(s forwarder.PortSpec, fd int) (forwarder.PortInfo, error) {
	unix.Close(fd)
	return f.Attach(s)
}
func (f fakePlane) Adopt(s forwarder.PortSpec, fd int) (forwarder.PortInfo, error) {
	unix.Close(fd)
	if err := f.do("adopt", s.Device); err != nil {
		return forwarder.PortInfo{}, err
	}
	p := forwarder.PortInfo{PortSpec: s}
	f.mu.Lock()
	f.ports = append(f.ports, p)
	f.mu.Unlock()
	return p, nil
}
func (f fakePlane) Await(a []netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.awaited, f.awaits = slices.Clone(a), f.awaits+1
	return nil
}
func (f fakePlane) Descriptors() (l []forwarder.Descriptor) {
	for _, p := range f.Ports() {
		l = append(l, forwarder.Descriptor{Name: "pod/" + p.PortSpec.Container + "/" + p.PortSpec.Interface, FD: 0})
	}
	return l
}
func (f fakePlane) Detach(c, i string) error {
	if !slices.ContainsFunc(f.Ports(), func(p forwarder.PortInfo) bool { return p.PortSpec.Container == c && p.PortSpec.Interface == i }) {
		return nil
	}
	if err := f.do("detach", c, "/", i); err != nil {
		return err
	}
	f.mu.Lock()
	f.ports = slices.DeleteFunc(f.ports, func(p forwarder.PortInfo) bool {
		return p.PortSpec.Container == c && p.PortSpec.Interface == i
	})
	f.mu.Unlock()
	return nil
}
func (f fakePlane) PortCount() int { return len(f.Ports()) }

func (f fakePlane) Ports() []forwarder.PortInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ports)
}
func (f fakePlane) Trace(s forwarder.TraceSpec) (*forwarder.Trace, error) {
	f.traced = s
	return &forwarder.Trace{Origin: "host", Outcome: forwarder.Dropped.String(), Reason: forwarder.DropSpoofed, Steps: []forwarder.TraceStep{{Name: "drop", Text: "x"}}}, nil
}
func (f fakePlane) Tap(t forwarder.TapFilter) (*forwarder.Tap, error) {
	f.tapped = t
	return nil, errors.New("a pretended forwarder has no taps")
}
func (f fakePlane) Counters() forwarder.Counters { return f.counters }
func (f fakePlane) Progress() ([]uint64, []bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stuck {
		f.turns++
	}
	return []uint64{f.turns, 7}, []bool{false, true}
}
func (f fakePlane) Capabilities() []forwarder.Capability {
	return []forwarder.Capability{{Name: "tun", Found: true, Used: true}, {Name: "tunnelGSO", Needs: "6.17", Detail: "EINVAL"}}
}
func (f fakePlane) HostFlows() hostflow.Sink { return fakeSink{} }
func (f fakePlane) TrackFlows()              {}
func (f fakePlane) SendsWhole() bool         { return false }
func (f fakePlane) ReopenNative()            {}
func (f fakePlane) NativeUnopened() string   { return "" }

func (f fakePlane) RestoreDevices() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	made := f.remade
	f.remade = nil
	return made, f.fail["devices"]
}

func (f fakePlane) UplinkUsed(netip.Addr) bool { return false }

func (f fakePlane) SetUplinkPath(netip.Addr, *forwarder.UplinkPath) {}

func (f fakePlane) SetDirectPath(netip.Addr, *forwarder.UplinkPath) {}

func (f *fake) NewUplinks(uplink.Config) uplinks { return nil }

type fakeSink struct{ hostflow.Sink }

type fakeHost struct{ *fake }

func (f fakeHost) Apply(context.Context) (hostnet.Report, error) {
	return hostnet.Report{}, f.do("apply")
}
func (f fakeHost) Reconfigure(_ context.Context, c hostnet.Config) (hostnet.Report, error) {
	if err := f.do("hostreconfigure", c.MTU); err != nil {
		return hostnet.Report{}, err
	}
	f.hostnet = c
	return hostnet.Report{Added: []string{"something"}}, nil
}
func (f fakeHost) BlockIngress(d string) error {
	f.mu.Lock()
	f.blocked[d] = true
	f.mu.Unlock()
	return f.do("block", d)
}
func (f fakeHost) UnblockIngress(d string) error {
	f.mu.Lock()
	delete(f.blocked, d)
	f.mu.Unlock()
	return f.do("unblock", d)
}
func (f fakeHost) Blocked() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l []string
	for d := range f.blocked {
		l = append(l, d)
	}
	slices.Sort(l)
	return l, nil
}
func (f fakeHost) KeepIngress(d []string) (again []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range d {
		if _, there := f.links[x]; there && !f.blocked[x] {
			again = append(again, x)
			f.blocked[x] = true
		}
	}
	return again, f.fail["keep"]
}
func (f fakeHost) ReconcileIngress(d []string) (hostnet.Report, error) {
	f.mu.Lock()
	f.blocked = map[string]bool{}
	for _, x := range d {
		f.blocked[x] = true
	}
	f.mu.Unlock()
	return hostnet.Report{}, f.do("reconcile", d)
}

type fakeFlows struct{ *fake }

func (f fakeFlows) Load(context.Context) (int, error) { return 3, f.do("load") }
func (f fakeFlows) Run(ctx context.Context) error     { <-ctx.Done(); return nil }
func (f fakeFlows) Stats() hostflow.Stats             { return hostflow.Stats{Preloaded: 3} }
func (f fakeFlows) Close() error                      { return f.do("flowsclose") }

type portInfo = forwarder.PortInfo

func (f *fake) watching() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.watch != nil && f.routes != nil && f.rules != nil
}

func (f *fake) NewProber(string) prober { return &fakeProber{fake: f} }

// fakeProber remembers what it was asked.
type fakeProber struct {
	fake       *fake
	mu         sync.Mutex
	own, peers []netip.Addr
	target     probe.Target
	path       probe.Path
	bench      error
	benching   chan struct{} // not nil: a bench says here that it has begun, and lasts until it is broken off
}

func (p *fakeProber) Set(own, peers []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.own, p.peers = own, peers
	return nil
}

func (p *fakeProber) Path(_ context.Context, t probe.Target) (probe.Path, error) {
	p.target = t
	return p.path, nil
}

func (p *fakeProber) Bench(ctx context.Context, t probe.Target, took time.Duration) (probe.Bench, error) {
	p.target = t
	if p.benching != nil {
		p.benching <- struct{}{}
		<-ctx.Done()
		return probe.Bench{}, ctx.Err()
	}
	return probe.Bench{Bulk: probe.Flow{Size: 1000, Sent: 20, Delivered: 10, Took: took}}, p.bench
}

func (p *fakeProber) Close() error {
	p.fake.mu.Lock()
	defer p.fake.mu.Unlock()
	p.fake.proberClosed++
	return nil
}
