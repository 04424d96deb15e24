package daemon

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
)

// Pods lists what is on record, by container and interface.
func (d *Daemon) Pods(ctx context.Context) ([]control.Pod, error) {
	if err := d.await(ctx); err != nil {
		return nil, err
	}
	var list []control.Pod
	for _, p := range d.pods.list() {
		r := p.rec
		o := control.Pod{Container: r.Container, Interface: r.Interface, Network: r.Network, Owner: r.Owner, Netns: r.Netns, NetnsID: r.NetnsID, Attach: r.Attach,
			Device: r.Device, MAC: r.MAC, Addresses: r.Addresses, MTU: r.MTU, Bandwidth: r.Bandwidth, Source: r.Source, Phase: p.phase(), Created: r.Created, Problem: p.problem}
		if o.Problem == "" && o.Phase == control.PhaseWaiting {
			o.Problem = control.WaitsForAdopt
		}
		list = append(list, o)
	}
	return list, nil
}

// IPAM counts and lists addresses.
func (d *Daemon) IPAM(ctx context.Context) (control.IPAM, error) {
	if err := d.await(ctx); err != nil {
		return control.IPAM{}, err
	}
	s := d.state.Load()
	i := control.IPAM{CIDRs: []control.IPAMCIDR{}, Addresses: []control.IPAMAddress{}}
	owned, waiting := d.pods.alloc.Snapshot()
	pods := d.pods.list()
	reported := 0
	for _, p := range pods {
		r := p.rec
		for _, a := range r.Addresses {
			if owned[a] != r.Key().String() {
				continue
			}
			i.Addresses = append(i.Addresses, control.IPAMAddress{Address: a, State: control.AddressAllocated, Container: r.Container, Interface: r.Interface,
				Network: r.Network, Owner: r.Owner, Since: r.Created})
			delete(owned, a)
			reported++
		}
	}
	damaged := map[string]control.IPAMAddress{}
	for _, dm := range d.pods.damagedFiles() {
		damaged[damagedOwner(dm.Name)] = control.IPAMAddress{State: control.AddressLeaked, Network: dm.Network, Since: dm.Since, Reason: fmt.Sprintf("%s: %s", dm.Path, dm.Reason)}
	}
	for a, owner := range owned {
		o, ok := damaged[owner]
		if !ok {
			continue // came or went while we looked
		}
		o.Address = a
		i.Addresses = append(i.Addresses, o)
	}
	for _, w := range waiting {
		i.Addresses = append(i.Addresses, control.IPAMAddress{Address: w.Address, State: control.AddressWaiting, Since: w.Since.UTC()})
	}
	slices.SortFunc(i.Addresses, func(a, b control.IPAMAddress) int { return a.Address.Compare(b.Address) })
	for _, c := range s.cfg.Node.PodCIDRs {
		u := d.pods.alloc.Usage(c)
		o := control.IPAMCIDR{Prefix: c, Size: u.Size, Allocated: u.Owned, Waiting: u.Waiting, Free: u.Free}
		for _, a := range i.Addresses {
			if a.State == control.AddressLeaked && c.Contains(a.Address) {
				o.Leaked++
			}
		}
		o.Allocated -= min(o.Leaked, o.Allocated)
		d.pods.mu.Lock()
		o.Source, _ = d.pods.sourceOf(c)
		d.pods.mu.Unlock()
		i.CIDRs = append(i.CIDRs, o)
	}
	return i, nil
}

// Check says whether a pod is attached as it should be, and names all that is not.
func (d *Daemon) Check(ctx context.Context, r control.CheckRequest) (control.Port, error) {
	if err := checkKey(r.Container, r.Interface); err != nil {
		return control.Port{}, err
	}
	k := control.PodKey{Container: r.Container, Interface: r.Interface}
	done, err := d.begin(ctx, k)
	if err != nil {
		return control.Port{}, err
	}
	defer done()
	p := d.pods.get(k)
	if p == nil {
		return control.Port{}, control.Errorf(control.NotFound, "there is no pod %s", k)
	}
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	rec := p.rec
	for _, c := range []struct{ what, want, have string }{
		{"network", r.Network, rec.Network}, {"attach", r.Attach, rec.Attach}, {"device", r.Device, rec.Device},
		{"network namespace", r.NetnsID, rec.NetnsID}, {"MAC", strings.ToLower(r.MAC), rec.MAC},
	} {
		if c.want != "" && c.have != "" && c.want != c.have && !(c.what == "device" && rec.Attach == control.AttachRouted) {
			say("its %s is %s and not %s", c.what, c.have, c.want)
		}
	}
	if len(r.Addresses) > 0 && !sameAddresses(r.Addresses, rec.Addresses) {
		say("it has the addresses %v and not %v", rec.Addresses, r.Addresses)
	}
	if r.MTU != 0 && r.MTU != rec.MTU {
		say("its MTU is %d and not %d", rec.MTU, r.MTU)
	}
	switch {
	case p.problem != "":
		say("%s", p.problem)
	case p.phase() == control.PhaseWaiting:
		say("its TUN waits for penstock adopt")
	case rec.Phase != control.PhaseAttached:
		say("it is not attached but %s", rec.Phase)
	case rec.Attach == control.AttachVeth:
		if l, err := d.machine.Link(rec.Device); err != nil {
			say("its device %s: %v", rec.Device, err)
		} else if l.Index != p.index {
			say("its device %s was made anew since it was attached", rec.Device)
		}
		if have, err := d.host.Blocked(); err == nil && !slices.Contains(have, rec.Device) {
			say("the drop on its device %s is missing, so the host processes its packets as well", rec.Device)
		}
	}
	if len(wrong) > 0 {
		return control.Port{}, control.Errorf(control.Conflict, "%s is not as it should be: %s", k, strings.Join(wrong, "; "))
	}
	a, err := d.attached(k)
	return a.Port, err
}

// describePort adds to what the forwarder knows of a port what only its record says.
func (d *Daemon) describePort(p forwarder.PortInfo) control.Port {
	o := describePort(p)
	if pod := d.pods.get(control.PodKey{Container: o.Container, Interface: o.Interface}); pod != nil {
		o.Network, o.Owner, o.Bandwidth, o.Phase = pod.rec.Network, pod.rec.Owner, pod.rec.Bandwidth, control.PhaseAttached
	}
	return o
}
