package daemon

import (
	"context"
	"fmt"
	"slices"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
)

// Pods lists what is on record, by container and interface.
func (d *Daemon) Pods(ctx context.Context) ([]control.Pod, error) {
	if err := d.await(ctx); err != nil {
		return nil, err
	}
	var list []control.Pod
	lost := d.lostPorts()
	for _, p := range d.pods.list() {
		r := p.rec
		o := control.Pod{Container: r.Container, Interface: r.Interface, Network: r.Network, Owner: r.Owner, Netns: r.Netns, NetnsID: r.NetnsID, Attach: r.Attach,
			Device: r.Device, MAC: r.MAC, Addresses: r.Addresses, MTU: r.MTU, Bandwidth: r.Bandwidth, Source: r.Source, Phase: p.phase(), Created: r.Created, Problem: p.problem}
		switch {
		case o.Problem != "":
		case o.Phase == control.PhaseWaiting:
			o.Problem = control.WaitsForAdopt
		case p.lostTUN(lost):
			o.Problem = tunDeleted
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
		i.Damaged = append(i.Damaged, dm.Path)
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

// describePort adds to what the forwarder knows of a port what only its record says.
func (d *Daemon) describePort(p forwarder.PortInfo) control.Port {
	o := describePort(p)
	if pod := d.pods.get(control.PodKey{Container: o.Container, Interface: o.Interface}); pod != nil {
		o.Network, o.Owner, o.Bandwidth, o.Phase = pod.rec.Network, pod.rec.Owner, pod.rec.Bandwidth, control.PhaseAttached
	}
	return o
}
