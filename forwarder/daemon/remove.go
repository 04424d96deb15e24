package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// Detach ends a pod's life. What is not there is detached.
func (d *Daemon) Detach(ctx context.Context, r control.DetachRequest) error {
	k := control.PodKey{Container: r.Container, Interface: r.Interface}
	if k.Container == "" || k.Interface == "" {
		return control.Errorf(control.BadRequest, "container and interface say which pod to detach, and one is empty")
	}
	d.gate.leave(k)
	done, err := d.begin(ctx, k)
	if err != nil {
		return err
	}
	defer done()
	p := d.pods.get(k)
	if p == nil {
		return d.forgetDamaged(control.DeviceName(k.Container, k.Interface))
	}
	if r.Lost {
		return d.lose(p)
	}
	if err := d.remove(p, false); err != nil {
		return err
	}
	d.log.Info("detached", "pod", k.Container, "interface", k.Interface)
	return nil
}

// lose makes a pod that waits for a TUN that is nowhere a mere reservation. The ADD that will repeat its attach may be under way;
// if none is, the reservation is collected in its time.
func (d *Daemon) lose(p *pod) error {
	if p.phase() != control.PhaseWaiting {
		return nil
	}
	rec := *p.rec
	rec.Phase = control.PhaseReserved
	if err := d.pods.store.Save(&rec); err != nil {
		return err
	}
	p.rec = &rec
	d.pods.put(p)
	d.countWaiting()
	d.log.Warn("the TUN of a pod is nowhere; its addresses stay reserved for a while", "pod", rec.Key())
	return nil
}

// remove takes a pod away, whatever phase it is in; with device, the host end of its veth too, which otherwise is the
// plugin's. It can be done again after it failed, or after the daemon died on the way.
func (d *Daemon) remove(p *pod, device bool) error {
	if p.rec.Phase == control.PhaseAttached {
		rec := *p.rec
		rec.Phase = control.PhaseDetaching
		if err := d.pods.store.Mark(&rec); err != nil {
			// A full disk must not keep a pod from going. The mark only saves the next start from bringing it back.
			d.log.Warn("a detach goes on without its mark on disk", "pod", rec.Key(), "error", err)
		}
		p.rec = &rec
		d.pods.put(p)
	}
	if err := d.closePort(p); err != nil {
		return err
	}
	if device {
		if err := d.removeDevice(p.rec); err != nil {
			return err
		}
	}
	if err := d.pods.store.NoteReleased(p.rec.Addresses, time.Now()); err != nil {
		d.log.Debug("released addresses are not noted; after a restart they may be given again at once", "error", err)
	}
	if err := d.pods.store.Remove(p.rec.Name()); err != nil {
		return err
	}
	d.pods.drop(p.rec.Key())
	d.pods.alloc.Release(p.rec.Key().String())
	d.countWaiting()
	return nil
}

// removeDevice removes what the plugin has made under the name that only it uses.
func (d *Daemon) removeDevice(rec *podstate.Record) error {
	if rec.Attach == control.AttachRouted || rec.Device != rec.Name() {
		return nil // another plugin's, or made by hand
	}
	if err := d.machine.RemoveLink(rec.Device); err != nil && !errors.Is(err, errNoLink) {
		return fmt.Errorf("the device of %s cannot be removed: %w", rec.Key(), err)
	}
	return nil
}

// forgetDamaged frees what a damaged state file has held.
func (d *Daemon) forgetDamaged(name string) error {
	if _, ok := d.pods.damagedFile(name); !ok {
		return nil
	}
	if err := d.pods.store.Remove(name); err != nil {
		return err
	}
	d.pods.mu.Lock()
	delete(d.pods.damaged, name)
	d.pods.mu.Unlock()
	d.pods.alloc.Release(damagedOwner(name))
	d.log.Info("the pod of a damaged state file is gone", "file", name+".json")
	if !ourName(name) {
		return nil
	}
	if err := d.host.UnblockIngress(name); err != nil { // behind it: repairDrops puts back what is claimed
		return fmt.Errorf("the drop on the device of a damaged state file stays: %w", err)
	}
	return nil
}

// GC removes all pods of a network but the valid ones. One that cannot be removed does not keep the others.
func (d *Daemon) GC(ctx context.Context, r control.GCRequest) (control.GCResult, error) {
	if r.Network == "" {
		return control.GCResult{}, control.Errorf(control.BadRequest, "network is empty: GC is of one network")
	}
	if err := d.await(ctx); err != nil {
		return control.GCResult{}, err
	}
	if err := d.finishAllPending(ctx); err != nil {
		d.log.Warn("queued deletes are not finished", "error", err)
	}
	// The specification allows no DEL beside GC, so nobody is writing one.
	if err := control.SweepPending(d.state.Load().cfg.Control.Socket, 0); err != nil {
		d.log.Warn("halves of queued deletes stay", "error", err)
	}
	valid := map[control.PodKey]bool{}
	names := map[string]bool{}
	for _, k := range r.Valid {
		valid[k] = true
		names[control.DeviceName(k.Container, k.Interface)] = true
	}
	g := control.GCResult{Removed: []control.PodKey{}, Failed: []control.GCFailure{}}
	for _, p := range d.pods.list() {
		k := p.rec.Key()
		if p.rec.Network != r.Network || valid[k] {
			continue
		}
		removed, err := d.collect(ctx, k, func(p *pod) bool { return p.rec.Network == r.Network })
		switch {
		case err != nil:
			g.Failed = append(g.Failed, control.GCFailure{PodKey: k, Error: err.Error()})
		case removed:
			g.Removed = append(g.Removed, k)
		}
	}
	for _, dm := range d.pods.damagedFiles() {
		if dm.Network == r.Network && !names[dm.Name] {
			if err := d.forgetDamaged(dm.Name); err != nil {
				d.log.Warn("a damaged state file stays", "file", dm.Path, "error", err)
			}
		}
	}
	if err := d.collectOrphans(); err != nil {
		d.log.Warn("devices that no pod has stay", "error", err)
	}
	if len(g.Removed)+len(g.Failed) > 0 {
		d.log.Info("garbage collected", "network", r.Network, "removed", len(g.Removed), "failed", len(g.Failed))
	}
	return g, nil
}

// collect removes a pod with its device if it is still there and still wanted gone.
func (d *Daemon) collect(ctx context.Context, k control.PodKey, still func(*pod) bool) (bool, error) {
	done, err := d.pods.keys.lock(ctx, k)
	if err != nil {
		return false, err
	}
	defer done()
	p := d.pods.get(k)
	if p == nil || !still(p) {
		return false, nil
	}
	return true, d.remove(p, true)
}

// collectOrphans removes devices that the plugin or we have made and that no pod has: the plugin was killed before it could
// take back what it did. A pod's record is on disk before its device is made, so there is no pod to come.
func (d *Daemon) collectOrphans() error {
	links, err := d.machine.Links()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		ours := strayVeth(l) && !d.spared[l.Name] || ourName(l.Name) && (l.Type == "tun" || l.Type == "tuntap")
		if !ours || d.pods.claims(l.Name) {
			continue
		}
		if err := d.machine.RemoveLink(l.Name); err != nil && !errors.Is(err, errNoLink) {
			errs = append(errs, err)
			continue
		}
		d.log.Info("removed a device that no pod has", "device", l.Name)
		errs = append(errs, d.host.UnblockIngress(l.Name))
	}
	return errors.Join(errs...)
}

// strayVeth is whether a device is the host end of a pod's veth, if no pod has it.
func strayVeth(l link) bool {
	return ourName(l.Name) && l.Group == control.DeviceGroup && l.Type == "veth"
}

// ourName is whether a device's name is one that control.DeviceName makes.
func ourName(name string) bool {
	hex, ok := strings.CutPrefix(name, "ps")
	return ok && len(hex) == 11 && strings.Trim(hex, "0123456789abcdef") == ""
}

// While the daemon runs it looks into the directory of queued deletes when something has come there: a plugin that gave up waiting
// for us has left one, or wrote it while we started; or the control socket beside it has gone. Where the kernel does not tell (inotify) it looks every pendingLook whether
// it has changed; every pendingInterval it looks in any case.
const (
	pendingLook     = 500 * time.Millisecond
	pendingInterval = 5 * time.Second
	pendingAge      = 10 * time.Second // half a delete is then a dead plugin's: writing one takes milliseconds
)

// watchPending finishes deletes that were queued while we ran, puts back the control socket beside them, and collects tun pods whose
// namespace has gone and reservations that nobody will ever use.
func (d *Daemon) watchPending(ctx context.Context) error {
	socket := d.state.Load().cfg.Control.Socket
	dir := control.PendingDir(socket)
	watch := func() (<-chan struct{}, context.CancelFunc, error) {
		ctx, cancel := context.WithCancel(ctx)
		moved, err := watchDir(ctx, dir, socket)
		if err != nil {
			d.log.Info("the directory of queued deletes is not watched, but looked at every "+pendingLook.String(), "dir", dir, "error", err)
		}
		return moved, cancel, err
	}
	moved, unwatch, err := watch()
	defer func() { unwatch() }()
	var changed, looked, collected time.Time
	for wait := pendingLook; ; {
		told := false
		select {
		case <-ctx.Done():
			return nil
		case <-moved:
			told = true
		case <-d.nudge:
		case <-time.After(wait):
		}
		if d.keepSocket(ctx) { // what was watched may be a directory that is gone
			unwatch()
			moved, unwatch, err = watch()
			told = true
		}
		var now time.Time
		if fi, err := os.Stat(dir); err == nil {
			now = fi.ModTime()
		}
		again := time.Since(looked) >= pendingInterval
		if told || again || !now.Equal(changed) {
			changed, looked = now, time.Now()
			if err := d.finishAllPending(ctx); err != nil && ctx.Err() == nil {
				d.log.Warn("queued deletes are not finished; trying again", "error", err)
			}
		}
		if again || d.pods.waiting() > 0 {
			d.collectGone(ctx)
		}
		if time.Since(collected) >= reservedGrace/4 {
			collected = time.Now()
			d.collectReservations(ctx)
		}
		if wait = pendingInterval; err != nil || d.pods.waiting() > 0 {
			wait = pendingLook
		}
	}
}

// collectGone takes away tun pods whose namespace has gone, as restore does with those whose namespace had gone before: nobody can
// bring the queue of one that waits, and the daemon would not be ready for its sake; and the queue that we hold of any other keeps
// the namespace alive with all that is in it (tun_chr_open in drivers/net/tun.c takes a reference), without a name and for nobody.
// repairPods looks after veths.
func (d *Daemon) collectGone(ctx context.Context) {
	gone := func(p *pod) bool {
		return (p.phase() == control.PhaseWaiting || p.open && p.seen && p.rec.Attach == control.AttachTUN) && d.netnsGone(p.rec)
	}
	for _, p := range d.pods.list() {
		if !gone(&p) {
			continue
		}
		switch removed, err := d.collect(ctx, p.rec.Key(), gone); {
		case err != nil && ctx.Err() == nil:
			d.log.Warn("a pod whose network namespace is gone stays", "pod", p.rec.Key(), "error", err)
		case removed:
			d.log.Info("collected a pod that is gone", "pod", p.rec.Key(), "why", "its network namespace is gone")
		}
	}
}

// collectReservations takes away reservations whose ADD never ended and has made no device: a plugin that was killed, and a
// runtime that has forgotten its pod, or a request that came in behind its DEL. ADD gives up long before reservedGrace.
func (d *Daemon) collectReservations(ctx context.Context) {
	stale := func(p *pod) bool {
		if p.rec.Phase != control.PhaseReserved || time.Since(p.rec.Created) <= reservedGrace {
			return false
		}
		_, err := d.machine.Link(p.rec.Device)
		return errors.Is(err, errNoLink)
	}
	for _, p := range d.pods.list() {
		if p.rec.Phase != control.PhaseReserved || time.Since(p.rec.Created) <= reservedGrace {
			continue
		}
		switch removed, err := d.collect(ctx, p.rec.Key(), stale); {
		case err != nil && ctx.Err() == nil:
			d.log.Warn("a reservation whose ADD never ended stays", "pod", p.rec.Key(), "error", err)
		case removed:
			d.log.Info("collected a reservation whose ADD never ended", "pod", p.rec.Key())
		}
	}
}

// finishAllPending carries out all deletes that were queued.
func (d *Daemon) finishAllPending(ctx context.Context) error {
	socket := d.state.Load().cfg.Control.Socket
	pending, err := control.Pending(socket)
	if err != nil {
		return err
	}
	errs := []error{control.SweepPending(socket, pendingAge)}
	for name := range pending {
		k, known := d.pods.keyOf(name)
		if !known { // only a device or a damaged file can be left
			k = control.PodKey{Container: pending[name].Container, Interface: pending[name].Interface}
		}
		done, err := d.pods.keys.lock(ctx, k)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, d.finish(socket, name))
		done()
	}
	return errors.Join(errs...)
}

// finishPending carries out the delete that was queued for a pod, if there is one. The key is locked.
func (d *Daemon) finishPending(k control.PodKey) error {
	return d.finish(d.state.Load().cfg.Control.Socket, control.DeviceName(k.Container, k.Interface))
}

// finish carries out one queued delete. Its pod's key is locked. Who waited for the lock may find that an ADD, which had it before,
// has done what was queued: what stands under the name now is a new pod, which nobody wants gone.
func (d *Daemon) finish(socket, name string) error {
	if !control.IsPending(socket, name) {
		return nil
	}
	if k, known := d.pods.keyOf(name); known {
		if p := d.pods.get(k); p != nil {
			if err := d.remove(p, true); err != nil {
				return fmt.Errorf("the queued delete of %s: %w", k, err)
			}
			d.log.Info("finished a queued delete", "pod", k.Container, "interface", k.Interface)
		}
	}
	if err := d.forgetDamaged(name); err != nil {
		return err
	}
	if l, err := d.machine.Link(name); err == nil && l.Group == control.DeviceGroup && ourName(name) {
		if err := d.machine.RemoveLink(name); err != nil && !errors.Is(err, errNoLink) {
			return err
		}
	}
	return control.RemovePending(socket, name)
}

// damagedOwner is the owner of addresses that a damaged state file holds.
func damagedOwner(name string) string { return "the damaged state file " + name + ".json" }

func (ps *pods) damagedFile(name string) (podstate.Damaged, bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	dm, ok := ps.damaged[name]
	return dm, ok
}

func (ps *pods) damagedFiles() []podstate.Damaged {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var l []podstate.Damaged
	for _, dm := range ps.damaged {
		l = append(l, dm)
	}
	slices.SortFunc(l, func(a, b podstate.Damaged) int { return strings.Compare(a.Name, b.Name) })
	return l
}

// keyOf finds the pod whose file has a name.
func (ps *pods) keyOf(name string) (control.PodKey, bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	k, ok := ps.names[name]
	return k, ok
}

// claims is whether a pod, or a damaged file that may be a pod's, has the device.
func (ps *pods) claims(device string) bool {
	if _, ok := ps.keyOf(device); ok {
		return true
	}
	if _, ok := ps.damagedFile(device); ok {
		return true
	}
	_, ok := ps.deviceOwner(device, control.PodKey{})
	return ok
}
