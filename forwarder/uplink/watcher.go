package uplink

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	nl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/beat"
)

// Config is what a Watcher needs.
type Config struct {
	Local netip.Addr // this node's underlay address
	TAP   string     // whose ingress is redirected; it exists. Empty: nothing is redirected, and Direct alone is told
	Log   *slog.Logger
	// Used reports whether superframes went to the peer since it was last asked.
	Used func(peer netip.Addr) bool
	// Notify is told of each peer's Link whenever it changes; nil: none, see why.
	Notify func(peer netip.Addr, l *Link, why string)
	// Direct is told of each peer's Link as routes and neighbours have it, for what leaves by a packet socket and needs no
	// redirect; nil: nobody wants to know.
	Direct func(peer netip.Addr, l *Link)
}

// Path is what the Watcher knows of a peer.
type Path struct {
	Peer netip.Addr
	Link *Link // nil: none
	Why  string
}

// Watcher follows the ways to all peers.
type Watcher struct {
	cfg    Config
	poke   chan struct{}
	mu     sync.Mutex
	peers  []netip.Addr
	fresh  bool               // peers were set anew: tell of all of them
	moved  bool               // routing may have changed, and not neighbours alone
	verify bool               // somebody else may have changed the rules or the TAP
	ways   map[netip.Addr]way // what routing said; of the Run goroutine
	paths  map[netip.Addr]Path
	direct map[netip.Addr]*Link // that was told; of the Run goroutine
	uplink []Link               // that the rules redirect to now
	stands string               // how the kernel numbers these rules; of the Run goroutine
	failed bool                 // a look has failed; of the Run goroutine
	said   string               // the last failure that was logged
}

const (
	settle  = 20 * time.Millisecond  // the least wait for changes that come together
	share   = 20                     // looking takes one part in so many of the time at most
	longest = 500 * time.Millisecond // but nobody waits for more than this: a look may be slow only because the machine is busy
	retry   = time.Second            // after a failure everything is asked again: no message tells that what was refused is granted now
)

// New makes a watcher; nothing is redirected before Run.
func New(cfg Config) *Watcher {
	return &Watcher{cfg: cfg, poke: make(chan struct{}, 1), paths: map[netip.Addr]Path{}}
}

// SetPeers tells for whom ways are wanted.
func (w *Watcher) SetPeers(peers []netip.Addr) {
	w.mu.Lock()
	w.peers, w.fresh = slices.Clone(peers), true
	w.mu.Unlock()
	w.wake(true)
}

// Recheck looks whether the TAP is up and its rules are as they were written, and
// mends what is not: somebody else may have flushed the ruleset, or deleted the
// device, which the forwarder has made anew by then.
func (w *Watcher) Recheck() {
	w.mu.Lock()
	w.verify = true
	w.mu.Unlock()
	w.wake(false)
}

// Paths lists what is known now, by address.
func (w *Watcher) Paths() []Path {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ps []Path
	for _, p := range w.paths {
		ps = append(ps, p)
	}
	slices.SortFunc(ps, func(a, b Path) int { return a.Peer.Compare(b.Peer) })
	return ps
}

// wake makes Run look again, at the neighbours or, if routing may have moved, at everything.
func (w *Watcher) wake(moved bool) {
	w.mu.Lock()
	w.moved = w.moved || moved
	w.mu.Unlock()
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// Groups: links, what routers announce of them, neighbours, addresses, routes and rules of both families
// (1<<(RTNLGRP_…-1), linux/rtnetlink.h); xfrm policies (linux/xfrm.h, XFRMNLGRP_POLICY is 4).
const (
	routeGroups = 1 | 4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x800 | 1<<18
	xfrmGroups  = 1 << 3
)

// Run keeps the paths true until ctx ends (nil), or netlink fails.
func (w *Watcher) Run(ctx context.Context) error {
	if w.cfg.TAP != "" {
		if err := raise(w.cfg.TAP); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel()
	for _, s := range []struct {
		family int
		groups uint32
	}{{unix.NETLINK_ROUTE, routeGroups}, {unix.NETLINK_XFRM, xfrmGroups}} {
		conn, err := nl.Dial(s.family, &nl.Config{Groups: s.groups})
		if err != nil {
			if s.family == unix.NETLINK_XFRM {
				continue // a kernel without xfrm protects nothing
			}
			return fmt.Errorf("cannot watch the routes: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
		wait.Go(func() {
			defer conn.Close()
			defer stop()
			for ctx.Err() == nil {
				// What was lost for want of space (ENOBUFS) says all it could say: look again.
				messages, err := conn.Receive()
				if err != nil {
					select {
					case <-ctx.Done():
					case <-time.After(settle):
					}
				}
				w.wake(err != nil || slices.ContainsFunc(messages, func(m nl.Message) bool {
					return m.Header.Type != unix.RTM_NEWNEIGH && m.Header.Type != unix.RTM_DELNEIGH
				}))
			}
		})
	}
	w.wake(true)
	var again <-chan time.Time
	tick := time.After(beat.Next(beat.Period))
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
			w.keep()
			tick = time.After(beat.Next(beat.Period))
			continue
		case <-again:
			w.wake(true)
			continue
		case <-w.poke:
		}
		began := time.Now()
		w.failed, again = false, nil
		w.look()
		if w.failed {
			again = time.After(retry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(max(settle, share*time.Since(began)), longest)):
		}
	}
}

// keep has the kernel verify stale neighbours that superframes use, as these
// themselves do not: once a beat.
func (w *Watcher) keep() {
	var ns neighbours
	for a, way := range w.ways {
		if way.link == nil || !w.cfg.Used(a) {
			continue
		}
		if ns == nil {
			if ns, _ = readNeighbours(w.cfg.Local.Is6()); ns == nil {
				return
			}
		}
		if ns.stale(way) {
			_ = use(way.link.Index, way.hop) // what comes of it is told by netlink
		}
	}
}

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// raise brings the TAP up, without addresses of its own: it is an entrance only.
func raise(tap string) error {
	l, err := netlink.LinkByName(tap)
	if err == nil && l.Attrs().Flags&net.FlagUp != 0 {
		return nil // setting what is set would be told to all who watch links
	}
	if err == nil {
		_ = netlink.LinkSetIP6AddrGenMode(l, addrGenNone) // a kernel without IPv6 has nothing to turn off
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("cannot bring %s up: %w", tap, err)
	}
	return nil
}

// look resolves all peers anew and tells what has changed. A way that ends is
// told before the rules change, one that begins after.
func (w *Watcher) look() {
	w.mu.Lock()
	peers, fresh, moved, verify := slices.Clone(w.peers), w.fresh, w.moved, w.verify
	w.fresh, w.moved, w.verify = false, false, false
	w.mu.Unlock()
	if verify && w.cfg.TAP != "" {
		w.inspect()
	}
	if moved {
		w.route(peers)
	}
	ns, err := readNeighbours(w.cfg.Local.Is6())
	if err != nil {
		w.failed = true
	}
	next := map[netip.Addr]Path{}
	for _, a := range peers {
		p := Path{Peer: a}
		if err != nil {
			p.Why = err.Error()
		} else {
			p.Link, p.Why = ns.resolve(w.ways[a])
		}
		next[a] = p
	}
	w.tellDirect(next, fresh)
	if w.cfg.TAP == "" {
		return
	}
	oneDevice(next)
	w.mu.Lock()
	old := w.paths
	w.mu.Unlock()
	for a, p := range old {
		if n, ok := next[a]; !ok || n.Link == nil && p.Link != nil {
			w.cfg.Notify(a, nil, n.Why)
		}
	}
	if err := w.redirect(next); err != nil {
		w.failed = true
		if w.said != err.Error() { // it is tried again every second
			w.said = err.Error()
			w.cfg.Log.Warn("superframes cannot be redirected to the uplink and are cut instead; trying again", "error", err)
		}
		for a, p := range next {
			p.Link, p.Why = nil, err.Error()
			next[a] = p
		}
	}
	for a, p := range next {
		if was := old[a]; fresh || p.Link != nil && (was.Link == nil || *was.Link != *p.Link) || p.Link == nil && was.Why != p.Why {
			w.cfg.Notify(a, p.Link, p.Why)
		}
	}
	w.mu.Lock()
	w.paths = next
	w.mu.Unlock()
}

// tellDirect tells of the ways that have changed.
func (w *Watcher) tellDirect(next map[netip.Addr]Path, fresh bool) {
	if w.cfg.Direct == nil {
		return
	}
	told := make(map[netip.Addr]*Link, len(next))
	for a := range w.direct {
		if _, ok := next[a]; !ok {
			w.cfg.Direct(a, nil)
		}
	}
	for a, p := range next {
		was := w.direct[a]
		if fresh || (was == nil) != (p.Link == nil) || was != nil && *was != *p.Link {
			w.cfg.Direct(a, p.Link)
		}
		told[a] = p.Link
	}
	w.direct = told
}

// inspect finds out whether the TAP and the rules are still what they were.
func (w *Watcher) inspect() {
	if err := raise(w.cfg.TAP); err != nil {
		w.failed, w.uplink = true, nil
		return
	}
	if w.uplink == nil {
		return // they are to be written anyway
	}
	now, err := standing(w.cfg.TAP)
	if err != nil {
		w.failed = true
		return
	}
	if now != w.stands {
		w.cfg.Log.Warn("somebody had changed the redirect of superframes to the uplink; it is put back", "device", w.cfg.TAP)
		w.uplink = nil
	}
}

// route asks the routing for the ways to all peers.
func (w *Watcher) route(peers []netip.Addr) {
	w.ways = make(map[netip.Addr]way, len(peers))
	s, err := takeSnapshot(w.cfg.Local.Is6())
	if err != nil {
		w.failed = true
	}
	for _, a := range peers {
		if err != nil {
			w.ways[a] = way{why: err.Error()}
			continue
		}
		w.ways[a] = s.route(w.cfg.Local, a)
	}
}

// oneDevice takes the ways by all but the first of several uplinks with the same
// MAC, as a NIC and its VLANs have it: the rules know an uplink by its MAC alone,
// and frames for the others would leave by the first.
func oneDevice(paths map[netip.Addr]Path) {
	first := map[[6]byte]*Link{}
	for _, p := range paths {
		if l := p.Link; l != nil && (first[l.Source] == nil || l.Index < first[l.Source].Index) {
			first[l.Source] = l
		}
	}
	for a, p := range paths {
		if l := p.Link; l != nil && l.Index != first[l.Source].Index {
			p.Link, p.Why = nil, fmt.Sprintf("the uplink %s has the MAC of the uplink %s", l.Device, first[l.Source].Device)
			paths[a] = p
		}
	}
}

// redirect makes the rules lead to every uplink in use.
func (w *Watcher) redirect(paths map[netip.Addr]Path) error {
	var want []Link
	for _, p := range paths {
		if p.Link != nil && !slices.ContainsFunc(want, func(l Link) bool { return l.Index == p.Link.Index && l.Source == p.Link.Source }) {
			l := *p.Link
			l.NextHop, l.MTU = [6]byte{}, 0
			want = append(want, l)
		}
	}
	slices.SortFunc(want, func(a, b Link) int { return a.Index - b.Index })
	if w.uplink != nil && slices.Equal(want, w.uplink) {
		return nil
	}
	w.uplink = nil
	if err := writeRules(w.cfg.TAP, want); err != nil {
		return err
	}
	stands, err := standing(w.cfg.TAP)
	if err != nil {
		return err
	}
	w.uplink, w.stands, w.said = append([]Link{}, want...), stands, ""
	return nil
}
