package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/penstock-net/penstock/forwarder/beat"
	"github.com/penstock-net/penstock/forwarder/control"
)

// Somebody else on the machine takes away what is ours: a network manager takes a device down, nftables.service flushes the
// ruleset, a person deletes a device. Whatever moves makes the daemon look at all of it and put back what is missing:
//
//	penstock0 and penstock-gso → addresses, routes, inet rules → pods' ingress drops → the redirect of superframes → pods' devices
//
// What cannot be put back is tried again, and said once.
const (
	repairInterval = 200 * time.Millisecond // at most one look in this time, however much changes around us
	repairShare    = 20                     // looking takes a twentieth of the time,
	repairPause    = 5 * time.Second        // but nobody who has lost something waits longer than this between two looks
	repairRetry    = time.Second            // after a look that has failed
	repairTick     = time.Minute            // a look in any case: no message is worth more than what it is about
	repairForward  = 10 * time.Second
	repairPatience = 10 * time.Second // that looks at the host may fail one after another before the daemon is not ready
)

// watchHost keeps what is ours in the host's stack, and the pods' records.
func (d *Daemon) watchHost(ctx context.Context) error {
	moved := func() { look(d.kick) }
	var g errgroup.Group
	g.Go(func() error {
		return d.again(ctx, "routes are not watched", func() error { return d.machine.WatchRoutes(ctx, moved) })
	})
	g.Go(func() error {
		return d.again(ctx, "nft rules are not watched, and looked at every "+repairTick.String(), func() error { return d.machine.WatchRules(ctx, moved) })
	})
	for after := time.After(beat.Next(d.repairTick())); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
			continue
		case <-d.kick:
		case <-after:
		}
		began := time.Now()
		wait := repairRetry
		if d.repair(ctx) == nil {
			wait = beat.Next(d.repairTick())
		}
		after = time.After(wait)
		select {
		case <-ctx.Done():
		case <-time.After(pauseAfter(time.Since(began))):
		}
	}
	return g.Wait()
}

// pauseAfter is how long not to look after a look that took so long.
func pauseAfter(took time.Duration) time.Duration {
	return min(max(repairInterval, repairShare*took), repairPause)
}

// repairTick is when to look in any case. iptables says nothing of its chains.
func (d *Daemon) repairTick() time.Duration {
	if d.state.Load().cfg.Host.Forward {
		return repairForward
	}
	return repairTick
}

// repair looks at everything once.
func (d *Daemon) repair(ctx context.Context) error {
	hostErr := d.repairHost(ctx)
	err := errors.Join(hostErr, d.repairDrops())
	if d.uplinks != nil {
		d.uplinks.Recheck()
	}
	err = errors.Join(err, d.repairPods(ctx))
	if ctx.Err() != nil {
		return nil // cut short because the daemon stops
	}
	d.judgeHost(hostErr, time.Now())
	switch news, over := d.unrepaired.news(err); {
	case over:
		d.log.Info("what is ours on the host is complete again")
	case news:
		d.log.Error("what is ours on the host cannot be kept; trying again", "error", err)
	}
	// Last, as a disk may hang: it then holds up the next look. It tells by itself, and is not tried again every second: a disk stays full for long.
	d.keepState(ctx)
	return err
}

// judgeHost has the daemon not ready while something is missing on the host without which it would not start. Who waits for iptables'
// lock or fights with somebody else for a moment is ready meanwhile, and what ails a single pod is that pod's.
func (d *Daemon) judgeHost(err error, now time.Time) {
	switch {
	case err == nil:
		d.lacking = time.Time{}
		d.health.set(hostLacks, "")
	case d.lacking.IsZero():
		d.lacking = now
	case now.Sub(d.lacking) >= repairPatience:
		d.health.set(hostLacks, "what is ours on the host cannot be kept: "+strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

func (d *Daemon) repairHost(ctx context.Context) error {
	d.change.Lock()
	defer d.change.Unlock()
	d.plane.ReopenNative()
	made, err := d.plane.RestoreDevices()
	if len(made) > 0 {
		d.log.Warn("somebody had deleted devices that are ours; they were made anew", "devices", made)
	}
	report, applyErr := d.host.Apply(ctx)
	if report.Changed() {
		d.log.Warn("somebody had changed the host's routes or rules that are ours; they are back")
	}
	if s := d.state.Load(); slices.Contains(made, s.cfg.Host.Device) {
		// What answers probes is bound to the device that was; the new one has its addresses by now.
		err = errors.Join(err, d.prober.Close())
		d.answerPeers(s)
	}
	return errors.Join(err, applyErr)
}

// repairPods looks after pods' devices: one that was made anew under its name, or has come back to it from elsewhere, becomes the
// pod's port again, one that has gone or was renamed is said once, and is in penstockctl pods until that is mended or the pod deleted.
// A pod that has lost its network namespace as well, and still has at the look that follows, is gone: its DEL was lost, as happens when
// a runtime is killed or forgets, and nobody will give its addresses back.
func (d *Daemon) repairPods(ctx context.Context) error {
	links, err := d.machine.Links()
	if err != nil {
		return err
	}
	byName, byIndex := map[string]link{}, map[int]link{}
	for _, l := range links {
		byName[l.Name], byIndex[l.Index] = l, l
	}
	lost := d.lostPorts()
	drops := sync.OnceValue(d.drops) // asked for only now, behind the devices: see reopen
	var errs []error
	gone := map[control.PodKey]bool{}
	defer func() { d.gone = gone }()
	for _, p := range d.pods.list() {
		l, there := byName[p.rec.Device]
		same := there && p.open && l.Index == p.index
		switch k := p.rec.Key(); {
		case p.rec.Phase != control.PhaseAttached:
		case p.lostTUN(lost) && p.problem == "":
			errs = append(errs, d.tell(ctx, k, tunDeleted))
		case p.rec.Attach == control.AttachVeth && same && p.problem == "" && l.Group == control.DeviceGroup && l.MTU < p.rec.MTU:
			errs = append(errs, d.restoreMTU(k, l, p.rec.MTU))
		case p.rec.Attach != control.AttachVeth || same && p.problem == "":
		case same && strings.Contains(p.problem, renamed): // its socket never noticed
			errs = append(errs, d.namedBack(ctx, k))
		case there:
			errs = append(errs, d.reopen(ctx, k, l.Index, drops))
		case byIndex[p.index].Name == "" && d.netnsGone(p.rec): // a DEL may be on its way
			if gone[k] = true; d.gone[k] {
				errs = append(errs, d.collectLost(ctx, k))
			}
		case !p.open || p.problem != "": // it is said
		case byIndex[p.index].Name != "":
			errs = append(errs, d.tell(ctx, k, fmt.Sprintf("its device %s %s %s: name it back", p.rec.Device, renamed, byIndex[p.index].Name)))
		default:
			errs = append(errs, d.tell(ctx, k, fmt.Sprintf("its device %s has gone: delete the pod", p.rec.Device)))
		}
	}
	return few(errs)
}

// maxTold is how many pods one line of the log names: with hundreds it is longer than journald's lines.
const maxTold = 3

// few joins the first errors, of a pod each, and counts the others.
func few(errs []error) error {
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if n := len(errs) - maxTold; n > 0 {
		errs = append(errs[:maxTold:maxTold], fmt.Errorf("and so with %d more pods: penstockctl pods", n))
	}
	return errors.Join(errs...)
}

// tunDeleted is the problem of a pod whose TUN has gone. No message tells of what happens in a pod's namespace, so until a look in any
// case comes by, it is the forwarder that is asked.
const tunDeleted = "its TUN was deleted inside the pod: delete the pod"

func (p *pod) lostTUN(lost map[control.PodKey]bool) bool {
	return p.rec.Attach == control.AttachTUN && p.open && lost[p.rec.Key()]
}

// lostPorts are the pods whose device has gone under the forwarder's hands.
func (d *Daemon) lostPorts() map[control.PodKey]bool {
	lost := map[control.PodKey]bool{}
	for _, p := range d.plane.Ports() {
		if p.Lost {
			lost[control.PodKey{Container: p.PortSpec.Container, Interface: p.PortSpec.Interface}] = true
		}
	}
	return lost
}

// restoreMTU makes the node's end of a veth that the plugin has made as large as the pod's again: the kernel drops what is larger, in
// front of us and without a word.
func (d *Daemon) restoreMTU(k control.PodKey, l link, mtu int) error {
	switch err := d.machine.SetMTU(l.Index, mtu); {
	case errors.Is(err, errNoLink): // the next look finds out
	case err != nil:
		return fmt.Errorf("the MTU %d of %s, the device of %s, is smaller than the pod's and cannot be set to %d: %w", l.MTU, l.Name, k, mtu, err)
	default:
		d.log.Warn("somebody had lowered the MTU of a pod's device, so that larger packets of the pod were lost; it is back", "pod", k, "device", l.Name, "was", l.MTU, "mtu", mtu)
	}
	return nil
}

// collectLost takes away a veth pod that has neither device nor network namespace.
func (d *Daemon) collectLost(ctx context.Context, k control.PodKey) error {
	ctx, cancel := context.WithTimeout(ctx, podWait)
	defer cancel()
	removed, err := d.collect(ctx, k, func(p *pod) bool {
		if p.rec.Phase != control.PhaseAttached || p.rec.Attach != control.AttachVeth || !d.netnsGone(p.rec) {
			return false
		}
		_, err := d.machine.Link(p.rec.Device)
		return errors.Is(err, errNoLink)
	})
	if removed && err == nil {
		d.log.Info("collected a pod that is gone", "pod", k, "why", "its device and its network namespace are gone")
	}
	if ctx.Err() != nil {
		return nil // somebody is busy with it; the next look comes
	}
	return err
}

// renamed is in the problem of a pod whose device has another name.
const renamed = "was renamed to"

// namedBack takes back what was said of a pod whose device has its name again.
func (d *Daemon) namedBack(ctx context.Context, k control.PodKey) error {
	return d.withPod(ctx, k, func(p *pod) error {
		l, err := d.machine.Link(p.rec.Device)
		if err != nil || !p.open || l.Index != p.index || !strings.Contains(p.problem, renamed) {
			return nil // the next look finds out
		}
		p.problem = ""
		d.pods.put(p)
		d.log.Info("a pod's device has its name back", "pod", k, "device", p.rec.Device)
		return nil
	})
}

// podWait is how long a look waits for a pod that a request is busy with; the next look comes soon.
const podWait = 200 * time.Millisecond

// tell notes what is wrong with a pod, and says it.
func (d *Daemon) tell(ctx context.Context, k control.PodKey, problem string) error {
	return d.withPod(ctx, k, func(p *pod) error {
		p.problem = problem
		d.pods.put(p)
		d.log.Warn("a pod has no network: "+problem, "pod", k)
		return nil
	})
}

// reopen makes the device that now stands under a pod's name its port. seen is the device's index before the drops were listed: of the
// same device its drop is not made again, as each change of nftables has us look again, at a pod that cannot be attached for ever.
func (d *Daemon) reopen(ctx context.Context, k control.PodKey, seen int, drops func() []string) error {
	return d.withPod(ctx, k, func(p *pod) error {
		l, err := d.machine.Link(p.rec.Device)
		if err != nil || p.open && l.Index == p.index && p.problem == "" {
			return nil // it has gone, or somebody was quicker
		}
		if strings.HasPrefix(p.problem, sharedAddress) {
			return nil // no device mends that
		}
		moved := p.open || l.Index != p.index
		if !p.open { // what follows may write nftables
			if err := d.plane.CanAttach(specOf(p.rec)); err != nil {
				p.problem = err.Error()
				d.pods.put(p)
				return fmt.Errorf("%s, a pod on record, cannot be attached: %w", k, err)
			}
		}
		if err := d.shutPort(p); err != nil {
			return err
		}
		p.index = l.Index
		open := d.openPort
		if _, drop := slices.BinarySearch(drops(), l.Name); drop && l.Index == seen {
			open = d.openDropped
		}
		if err := open(p, func() error { _, err := d.plane.Attach(specOf(p.rec)); return err }); err != nil {
			p.problem = err.Error()
			d.pods.put(p)
			if moved {
				return fmt.Errorf("the device of %s was made anew and cannot be attached: %w", k, err)
			}
			return fmt.Errorf("%s, a pod on record, cannot be attached: %w", k, err)
		}
		if moved {
			d.log.Warn("a pod's device was made anew or has come back; it is attached again", "pod", k, "device", p.rec.Device)
		} else {
			d.log.Info("a pod that could not be brought back is attached again", "pod", k, "device", p.rec.Device)
		}
		return nil
	})
}

// withPod runs fn on an attached pod that nobody else is busy with.
func (d *Daemon) withPod(ctx context.Context, k control.PodKey, fn func(*pod) error) error {
	ctx, cancel := context.WithTimeout(ctx, podWait)
	defer cancel()
	done, err := d.pods.keys.lock(ctx, k)
	if err != nil {
		return nil // busy: whoever is at it changes what we would look at
	}
	defer done()
	p := d.pods.get(k)
	if p == nil || p.rec.Phase != control.PhaseAttached {
		return nil
	}
	return fn(p)
}
