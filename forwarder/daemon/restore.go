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

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// reservedGrace is how long a reservation without a device is believed to be an ADD that is under way.
const reservedGrace = 2 * time.Minute

// restorePods brings back the pods of a predecessor, in this order:
//
//	files → addresses → pods of another boot go → queued deletes → deletes cut short → drops of all veths that are there
//	→ ports of all pods that are there; pods whose device or namespace is gone go → devices that no pod has go
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
	counts := map[string]int{}
	for _, p := range d.pods.list() {
		fd, stored := queues[p.rec.Device]
		if !stored {
			fd = -1
		}
		delete(queues, p.rec.Device)
		counts[d.restore(&p, fd, blocked)]++
	}
	for device, fd := range queues {
		closeFD(fd)
		d.machine.ForgetQueue(device)
	}
	if err := d.collectOrphans(); err != nil {
		d.log.Error("devices that no pod has stay", "error", err)
	}
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

// blockRestored puts the drops on all veths that will be ports again, in one transaction, and takes away all others. Those of veths that
// are spared stay: the host's stack shall not have their pods' packets.
func (d *Daemon) blockRestored() map[string]bool {
	want := slices.Collect(maps.Keys(d.spared))
	for _, p := range d.pods.list() {
		if p.rec.Phase == control.PhaseAttached && p.rec.Attach == control.AttachVeth {
			if _, err := d.machine.Link(p.rec.Device); err == nil {
				want = append(want, p.rec.Device)
			}
		}
	}
	slices.Sort(want)
	set := map[string]bool{}
	have, err := d.host.Blocked()
	if err == nil && !slices.Equal(have, want) {
		_, err = d.host.ReconcileIngress(want)
	}
	if err != nil {
		d.log.Warn("the drops on the pods' devices are put there one by one", "error", err)
		return set
	}
	for _, device := range want {
		set[device] = true
	}
	return set
}

// What becomes of a pod at the start.
const (
	restored = "restored"
	waits    = "waiting"
	kept     = "reserved"
	gone     = "gone"
	failed   = "failed"
)

// restore brings one pod back, or takes it away for good. It owns fd, a queue of its TUN, if that is not negative.
func (d *Daemon) restore(p *pod, fd int, blocked map[string]bool) string {
	rec := p.rec
	k := rec.Key()
	what, err := failed, error(nil)
	used := false
	defer func() {
		if fd >= 0 && !used {
			closeFD(fd)
		}
		if err != nil {
			p.problem = err.Error()
			d.pods.put(p)
			d.log.Error("a pod was not brought back", "pod", k, "error", err)
		}
	}()
	take := func(why string) string {
		if err = d.remove(p, true); err != nil {
			return failed
		}
		d.log.Info("collected a pod that is gone", "pod", k, "why", why)
		return gone
	}
	link, linkErr := d.machine.Link(rec.Device)
	switch {
	case p.problem != "":
		return failed
	case rec.Phase == control.PhaseDetaching:
		return take("its delete had begun")
	case d.netnsGone(rec):
		return take("its network namespace is gone")
	case rec.Phase == control.PhaseReserved:
		if time.Since(rec.Created) > reservedGrace && (rec.NetnsID == "" || linkErr != nil) {
			return take("its ADD never ended")
		}
		return kept
	case rec.Attach == control.AttachVeth && errors.Is(linkErr, errNoLink):
		return take("its device is gone")
	case linkErr != nil && !errors.Is(linkErr, errNoLink):
		err = linkErr
		return failed
	}
	p.index = link.Index
	spec := specOf(rec)
	attach := func() error { _, err := d.plane.Attach(spec); return err }
	switch {
	case rec.Attach == control.AttachTUN && fd >= 0:
		used = true
		err = d.openPort(p, func() error { _, err := d.plane.Adopt(spec, fd); return err })
		what = restored
	case rec.Attach == control.AttachTUN && linkErr == nil: // it was never moved
		err, what = d.openPort(p, attach), restored
	case rec.Attach == control.AttachTUN && rec.NetnsID == "":
		return take("nobody said where its device is")
	case rec.Attach == control.AttachTUN:
		return waits
	case rec.Attach == control.AttachVeth && blocked[rec.Device]:
		if err = attach(); err == nil {
			p.open = true
			d.pods.put(p)
		}
		what = restored
	default:
		err, what = d.openPort(p, attach), restored
	}
	if err != nil {
		return failed
	}
	return what
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
