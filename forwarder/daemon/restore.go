package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// reservedGrace is how long a reservation without a device is believed to be an ADD that is under way.
const reservedGrace = 2 * time.Minute

// restorePods brings back the pods of a predecessor, in this order:
//
//	files → addresses → pods of another boot go → queued deletes → deletes cut short → drops of all veths that are there
//	→ pods whose device or namespace is gone go → ports of all that are there, side by side → devices that no pod has go
//
// What fails for one pod is logged and does not keep the daemon from starting. No worker runs and no request is served yet.
func (d *Daemon) restorePods(ctx context.Context, s *state) error {
	records, damaged, err := d.pods.store.Load()
	if err != nil {
		return err
	}
	if d.pods.store.Fresh() {
		if err := d.spareStrangers(); err != nil {
			d.log.Error("devices that no pod has are not looked at", "error", err)
		}
	}
	d.takeAddresses(s, records, damaged)
	if err := d.finishAllPending(ctx); err != nil {
		d.log.Error("queued deletes are not finished; trying again", "error", err)
	}
	queues := d.machine.StoredQueues() // by device name
	blocked := d.blockRestored()
	var found []*returning
	for _, p := range d.pods.list() {
		fd, stored := queues[p.rec.Device]
		if !stored {
			fd = -1
		}
		delete(queues, p.rec.Device)
		found = append(found, d.examine(&p, fd, blocked))
	}
	counts := d.restore(found)
	for device, fd := range queues {
		closeFD(fd)
		d.machine.ForgetQueue(device)
	}
	if err := d.collectOrphans(); err != nil {
		d.log.Error("devices that no pod has stay", "error", err)
	}
	d.waitMu.Lock()
	d.restored = true
	d.waitMu.Unlock()
	if waiting := d.countWaiting(); waiting > 0 {
		d.log.Info("pods with a TUN wait for their queue: penstock adopt brings it", "pods", waiting)
	}
	if len(counts) > 0 {
		d.log.Info("pods of the daemon before this one", "restored", counts[restored], "waiting", counts[waits], "reserved", counts[kept], "gone", counts[gone], "failed", counts[failed])
	}
	return nil
}

// openState takes the state directory for this daemon.
func (d *Daemon) openState(dir string) error {
	boot, err := d.machine.BootID()
	if err != nil {
		return err
	}
	if d.pods.store, err = podstate.Open(dir, boot); err != nil {
		return err
	}
	d.pods.store.Moved = func() { look(d.kick) }
	return nil
}

// spareStrangers keeps the veths of pods that a brand-new state directory knows nothing of from being taken for what a killed plugin
// has left: far likelier somebody has set `state` to another directory, or removed the old one, and the pods run. The next start
// takes them away.
func (d *Daemon) spareStrangers() error {
	links, err := d.machine.Links()
	if err != nil {
		return err
	}
	d.spared = map[string]bool{}
	for _, l := range links {
		if strayVeth(l) {
			d.spared[l.Name] = true
		}
	}
	if len(d.spared) > 0 {
		d.log.Warn("the state directory is new, but devices of pods stand here; these pods have no network, and the next start removes their devices: "+
			"if state was another directory, stop the daemon, move the files of its pods directory into the new one's and start again; else delete these pods",
			"state", d.state.Load().cfg.State, "devices", slices.Sorted(maps.Keys(d.spared)))
	}
	return nil
}

// sharedAddress begins the problem of a pod whose address is another's as well.
const sharedAddress = "two state files have one address"

// takeAddresses makes the allocator what the files say.
func (d *Daemon) takeAddresses(s *state, records []*podstate.Record, damaged []podstate.Damaged) {
	ps := d.pods
	slices.SortFunc(records, func(a, b *podstate.Record) int { return a.Created.Compare(b.Created) })
	ps.alloc.Prepare(s.cfg.Node.PodCIDRs)
	for _, r := range records {
		if r.BootID != ps.store.Boot() {
			// Neither its device nor its namespace has survived, nor has anybody who could have talked to it.
			if err := ps.store.Remove(r.Name()); err != nil {
				d.log.Error("the state of a pod from before the last boot stays", "pod", r.Key(), "error", err)
			}
			continue
		}
		p := &pod{rec: r}
		if err := ps.alloc.Take(r.Key().String(), r.Addresses); err != nil {
			p.problem = fmt.Sprintf("%s: %v: delete one of the two pods", sharedAddress, err)
			d.log.Error(sharedAddress, "pod", r.Key(), "error", err)
		}
		ps.put(p)
	}
	for _, dm := range damaged {
		if dm.OldBoot {
			if err := ps.store.Remove(dm.Name); err != nil {
				d.log.Error("a damaged state file from before the last boot stays", "file", dm.Path, "error", err)
			}
			continue
		}
		if dm.Fresh {
			d.log.Error("a state file is damaged; it was moved aside, and its addresses are kept until its pod is deleted", "file", dm.Path, "addresses", dm.Addresses, "reason", dm.Reason)
		}
		for _, a := range dm.Addresses {
			if err := ps.alloc.Take(damagedOwner(dm.Name), slices.Insert(ps.alloc.Addresses(damagedOwner(dm.Name)), 0, a)); err != nil {
				d.log.Debug("an address in a damaged state file is somebody's", "file", dm.Path, "error", err)
			}
		}
		ps.mu.Lock()
		ps.damaged[dm.Name] = dm
		ps.mu.Unlock()
	}
	// The search goes on behind the pod that came last.
	released := ps.store.Released()
	for _, r := range records {
		released = append(released, podstate.TakenAt(r)...)
	}
	slices.SortStableFunc(released, podstate.ByTime)
	ps.alloc.Resume(released)
}

// What becomes of a pod at the start.
const (
	restored = "restored"
	waits    = "waiting"
	kept     = "reserved"
	gone     = "gone"
	failed   = "failed"
)

// returning is a pod at the start.
type returning struct {
	p    *pod
	what string       // becomes of it, if open succeeds
	open func() error // makes its port; nil: it gets none
	err  error
}

// opensAtOnce is how many ports are opened side by side. Nobody else waits for the kernel's locks yet, so they are more than ADDs (gate.go).
const opensAtOnce = 64

// restore opens the ports, says of each pod in their order why it was not brought back, and counts what has become of them.
func (d *Daemon) restore(found []*returning) map[string]int {
	var expected []forwarder.PortSpec
	for _, r := range found {
		if r.open != nil || r.what == waits {
			expected = append(expected, specOf(r.p.rec))
		}
	}
	d.plane.Expect(expected)
	defer d.plane.Expect(nil)
	var g errgroup.Group
	g.SetLimit(opensAtOnce)
	for _, r := range found {
		if r.open != nil {
			g.Go(func() error { r.err = r.open(); return nil })
		}
	}
	_ = g.Wait()
	counts := map[string]int{}
	for _, r := range found {
		if r.err != nil {
			r.what, r.p.problem = failed, r.err.Error()
			d.pods.put(r.p)
			d.log.Error("a pod was not brought back", "pod", r.p.rec.Key(), "error", r.err)
		}
		counts[r.what]++
	}
	return counts
}

// examine finds out what becomes of a pod, and takes away for good one that is gone. It owns fd, a queue of the pod's TUN, if that is
// not negative, and hands it to open.
func (d *Daemon) examine(p *pod, fd int, blocked map[string]bool) *returning {
	rec := p.rec
	k := rec.Key()
	used := false
	defer func() {
		if fd >= 0 && !used {
			closeFD(fd)
		}
	}()
	is := func(what string) *returning { return &returning{p: p, what: what} }
	take := func(why string) *returning {
		if err := d.remove(p, true); err != nil {
			return &returning{p: p, what: failed, err: err}
		}
		d.log.Info("collected a pod that is gone", "pod", k, "why", why)
		return is(gone)
	}
	link, err := d.machine.Link(rec.Device)
	switch {
	case p.problem != "":
		return is(failed)
	case rec.Phase == control.PhaseDetaching:
		return take("its delete had begun")
	case d.netnsGone(rec):
		return take("its network namespace is gone")
	case rec.Phase == control.PhaseReserved:
		if time.Since(rec.Created) > reservedGrace && (rec.NetnsID == "" || err != nil) {
			return take("its ADD never ended")
		}
		return is(kept)
	case rec.Attach == control.AttachVeth && errors.Is(err, errNoLink):
		return take("its device is gone")
	case err != nil && !errors.Is(err, errNoLink):
		return &returning{p: p, what: failed, err: err}
	}
	p.index = link.Index
	spec := specOf(rec)
	attach := func() error { _, err := d.plane.Attach(spec); return err }
	returns := func(open func() error) *returning { return &returning{p: p, what: restored, open: open} }
	switch {
	case rec.Attach == control.AttachTUN && fd >= 0:
		used = true
		return returns(func() error { return d.openPort(p, func() error { _, err := d.plane.Adopt(spec, fd); return err }) })
	case rec.Attach == control.AttachTUN && err == nil: // it was never moved
	case rec.Attach == control.AttachTUN && rec.NetnsID == "":
		return take("nobody said where its device is")
	case rec.Attach == control.AttachTUN:
		return is(waits)
	case rec.Attach == control.AttachVeth && blocked[rec.Device]:
		return returns(func() error {
			if err := attach(); err != nil {
				return err
			}
			p.open = true
			d.pods.put(p)
			return nil
		})
	}
	return returns(func() error { return d.openPort(p, attach) })
}

// netnsThere is whether we can see a pod's namespace.
func (d *Daemon) netnsThere(rec *podstate.Record) bool {
	if rec.Netns == "" || rec.NetnsID == "" {
		return false
	}
	id, err := d.machine.NetnsID(rec.Netns)
	return err == nil && id == rec.NetnsID
}

// netnsGone is whether a pod's namespace certainly is no more. Without the right to look it may be there.
func (d *Daemon) netnsGone(rec *podstate.Record) bool {
	if rec.Netns == "" || rec.NetnsID == "" {
		return false
	}
	id, err := d.machine.NetnsID(rec.Netns)
	return errors.Is(err, fs.ErrNotExist) || err == nil && id != rec.NetnsID
}

// bootID reads the kernel's.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("the boot id cannot be read: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
