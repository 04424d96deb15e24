package daemon

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/ipam"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// A pod's life, and what is on disk at each moment of it:
//
//	            allocate            attach              detach
//	nothing ──────────────▶ reserved ─────▶ attached ──────────────▶ nothing
//	          addresses,            file,      │      file "detaching",
//	          file, answer          device     │      port, chain, queue,
//	                                           │      note, file, addresses
//	                        restart, tun ──▶ waiting ──▶ attached   (penstock adopt)
//
// The file goes before the deed when something is made, and behind it when something is taken away: whatever instant a daemon
// dies at, the next start, DEL or GC finds a file that says what may be left.

// pod is one pod in memory. What its record points to is never changed: a new one takes its place.
type pod struct {
	rec     *podstate.Record
	open    bool   // the forwarder has a port for it
	opening bool   // it is about to: an attachment is under way
	seen    bool   // a tun's: its network namespace could be seen when the port was opened
	index   int    // of the veth's host end: it tells a device made anew under the same name
	problem string // why an attached pod has no port
}

// phase is the record's, but for a pod that ought to be attached and has no port: a tun's queue has not come back yet, of any other the
// port could not be opened.
func (p *pod) phase() string {
	switch {
	case p.rec.Phase != control.PhaseAttached || p.open || p.opening:
		return p.rec.Phase
	case p.rec.Attach == control.AttachTUN:
		return control.PhaseWaiting
	}
	return control.PhaseFailed
}

// pods is all that the daemon knows of pods. Whoever changes a pod holds its key's lock throughout; mu is held only to look
// things up and to put them in place, never while anything waits for a disk or the kernel.
type pods struct {
	store *podstate.Store
	alloc *ipam.Allocator
	keys  keyLocks

	mu      sync.Mutex
	all     map[control.PodKey]*pod
	names   map[string]control.PodKey   // by file name
	damaged map[string]podstate.Damaged // by file name
}

func newPods() *pods {
	return &pods{alloc: ipam.New(time.Now), all: map[control.PodKey]*pod{}, names: map[string]control.PodKey{}, damaged: map[string]podstate.Damaged{}}
}

// get is the pod of a key, or nil. The copy is the caller's.
func (ps *pods) get(k control.PodKey) *pod {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.all[k]; p != nil {
		c := *p
		return &c
	}
	return nil
}

func (ps *pods) put(p *pod) {
	c := *p
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.all[p.rec.Key()] = &c
	ps.names[p.rec.Name()] = p.rec.Key()
}

func (ps *pods) drop(k control.PodKey) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.all, k)
	delete(ps.names, control.DeviceName(k.Container, k.Interface))
}

// list is all pods, by key.
func (ps *pods) list() []pod {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	l := make([]pod, 0, len(ps.all))
	for _, p := range ps.all {
		l = append(l, *p)
	}
	slices.SortFunc(l, func(a, b pod) int { return compareKeys(a.rec.Key(), b.rec.Key()) })
	return l
}

// waiting counts the pods that `penstock adopt` must bring back.
func (ps *pods) waiting() int {
	n, _ := ps.awaited()
	return n
}

// awaited counts them, and lists their addresses in order, together with those of a tun that an ADD is opening: until its port is
// there it is as good as waiting, and may be one that did.
func (ps *pods) awaited() (n int, addresses []netip.Addr) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		waits := p.phase() == control.PhaseWaiting
		if waits {
			n++
		}
		if waits || p.opening && p.rec.Attach == control.AttachTUN {
			addresses = append(addresses, p.rec.Addresses...)
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return n, addresses
}

// failed counts the pods that should have a network and have none: no port, or one that has lost its device.
func (ps *pods) failed() (n int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.all {
		if phase := p.phase(); phase == control.PhaseFailed || phase == control.PhaseAttached && p.problem != "" {
			n++
		}
	}
	return n
}

// deviceOwner says which other pod has a device.
func (ps *pods) deviceOwner(device string, but control.PodKey) (control.PodKey, bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for k, p := range ps.all {
		if k != but && p.rec.Device == device && p.rec.Attach != control.AttachRouted && device != "" {
			return k, true
		}
	}
	return control.PodKey{}, false
}

// sourceOf says who gives the addresses of a CIDR; empty: nobody yet. ps.mu is held.
func (ps *pods) sourceOf(cidr netip.Prefix) (source string, example control.PodKey) {
	for k, p := range ps.all {
		if p.rec.Source != control.SourceManual && slices.ContainsFunc(p.rec.Addresses, cidr.Contains) {
			return p.rec.Source, k
		}
	}
	return "", control.PodKey{}
}

// keyLocks lets one at a time work on a pod.
type keyLocks struct {
	mu sync.Mutex
	m  map[control.PodKey]*keyLock
}

type keyLock struct {
	held  chan struct{}
	users int
}

// lock waits for its turn, at most as long as ctx lasts.
func (l *keyLocks) lock(ctx context.Context, k control.PodKey) (unlock func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[control.PodKey]*keyLock{}
	}
	kl := l.m[k]
	if kl == nil {
		kl = &keyLock{held: make(chan struct{}, 1)}
		l.m[k] = kl
	}
	kl.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if kl.users--; kl.users == 0 {
			delete(l.m, k)
		}
	}
	select {
	case kl.held <- struct{}{}:
		return func() { <-kl.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, control.Errorf(control.NotReady, "something else is still being done to %s: try again", k)
	}
}
