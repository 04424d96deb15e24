package daemon

import (
	"errors"
	"maps"
	"slices"

	"github.com/penstock-net/penstock/forwarder/control"
)

// The host's stack shall not have what a pod sends, whether the daemon can read the pod's device or not: a frame that is forwarded past
// us has passed none of our checks, and what it claims to come from or to be is anything.

// blockable are the devices whose frames the host's stack shall not have, if they stand there: veths of pods that are attached by their
// records, open or not, and those that only the name of a damaged file or a new state directory (spared) tells of.
func (d *Daemon) blockable() []string {
	devices := slices.Collect(maps.Keys(d.spared))
	for _, dm := range d.pods.damagedFiles() {
		if ourName(dm.Name) {
			devices = append(devices, dm.Name)
		}
	}
	for _, p := range d.pods.list() {
		if p.rec.Phase == control.PhaseAttached && p.rec.Attach == control.AttachVeth {
			devices = append(devices, p.rec.Device)
		}
	}
	slices.Sort(devices)
	return slices.Compact(devices)
}

// blockRestored puts the drops on all veths that will be ports again or may be a pod's, in one transaction, and takes away all others.
// While a file is damaged a drop that stands may be on a device that the file named, by hand: then none is taken away.
func (d *Daemon) blockRestored() map[string]bool {
	there := func(device string) bool { _, err := d.machine.Link(device); return err == nil }
	gone := func(device string) bool { return !there(device) }
	want := slices.DeleteFunc(d.blockable(), gone)
	set := map[string]bool{}
	have, err := d.host.Blocked()
	if err == nil && len(d.pods.damagedFiles()) > 0 {
		want = append(want, slices.DeleteFunc(slices.Clone(have), gone)...)
		slices.Sort(want)
		want = slices.Compact(want)
	}
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

// drops are the devices that have a drop, sorted; none if they cannot be listed, so that each is put there again.
func (d *Daemon) drops() []string {
	devices, err := d.host.Blocked()
	if err != nil {
		return nil
	}
	return devices
}

// repairDrops puts the drops back on the veths of pods. A pod that is detached meanwhile takes its drop away behind us, or we
// take it away again: a drop without a pod would outlive it.
func (d *Daemon) repairDrops() error {
	again, err := d.host.KeepIngress(d.blockable())
	if err != nil || len(again) == 0 {
		return err
	}
	d.log.Warn("somebody had removed the drops on pods' devices, so that the host processed their packets as well; they are back", "devices", again)
	now := d.blockable() // one that goes from here on removes the drop itself
	for _, device := range again {
		if !slices.Contains(now, device) {
			err = errors.Join(err, d.host.UnblockIngress(device))
		}
	}
	return err
}
