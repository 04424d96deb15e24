package daemon

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/ipam"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// Allocate reserves addresses for a pod. Asking for the same again is answered with what is there. An address may be held by a
// pod whose delete is queued, so what is queued is done before an address is refused.
func (d *Daemon) Allocate(ctx context.Context, r control.AllocateRequest) (control.Allocation, error) {
	k := control.PodKey{Container: r.Container, Interface: r.Interface}
	if r.Attach == "" {
		r.Attach = control.AttachVeth
	}
	if err := d.state.Load().checkAllocate(&r); err != nil {
		return control.Allocation{}, err
	}
	if err := d.await(ctx); err != nil {
		return control.Allocation{}, err
	}
	d.gate.enter(ctx, k)
	a, err := d.allocatePending(ctx, r)
	if err != nil || a.Phase == control.PhaseAttached { // nothing will be attached
		d.gate.leave(k)
	}
	return a, err
}

func (d *Daemon) allocatePending(ctx context.Context, r control.AllocateRequest) (control.Allocation, error) {
	a, err := d.allocate(ctx, r)
	if c := control.CodeOf(err); err == nil || c != control.Conflict && c != control.Exhausted {
		return a, err
	}
	if queued, e := control.Pending(d.state.Load().cfg.Control.Socket); e != nil || len(queued) == 0 {
		return a, err
	}
	if e := d.finishAllPending(ctx); e != nil {
		return a, err
	}
	return d.allocate(ctx, r)
}

func (d *Daemon) allocate(ctx context.Context, r control.AllocateRequest) (control.Allocation, error) {
	k := control.PodKey{Container: r.Container, Interface: r.Interface}
	done, err := d.begin(ctx, k)
	if err != nil {
		return control.Allocation{}, err
	}
	defer done()
	s := d.state.Load()
	if old := d.pods.get(k); old != nil {
		if old.rec.Phase != control.PhaseDetaching {
			if err := sameReservation(old.rec, r); err != nil {
				return control.Allocation{}, err
			}
			return s.allocation(old.rec), nil
		}
		if err := d.remove(old, true); err != nil { // a DEL that was cut short
			return control.Allocation{}, err
		}
	}
	rec := &podstate.Record{Version: 1, BootID: d.pods.store.Boot(), Container: r.Container, Interface: r.Interface, Network: r.Network, Owner: r.Owner,
		Netns: r.Netns, NetnsID: r.NetnsID, Attach: r.Attach, Source: control.SourceIPAM, MTU: cmp.Or(r.MTU, s.podMTU), Phase: control.PhaseReserved, Created: time.Now().UTC()}
	if r.Attach != control.AttachRouted {
		rec.Device = control.DeviceName(r.Container, r.Interface)
	}
	if len(r.Addresses) > 0 {
		rec.Source = control.SourceForeign
	}
	if err := d.reserve(s, rec, r); err != nil {
		return control.Allocation{}, err
	}
	if err := checkFamilies(rec); err != nil {
		d.unreserve(rec)
		return control.Allocation{}, err
	}
	if err := d.pods.store.Save(rec); err != nil {
		d.unreserve(rec)
		return control.Allocation{}, err
	}
	d.log.Debug("addresses reserved", "pod", k, "network", r.Network, "addresses", rec.Addresses, "source", rec.Source)
	return s.allocation(rec), nil
}

// reserve takes the addresses and puts the record in place, in one step, so that nobody else can come between.
func (d *Daemon) reserve(s *state, rec *podstate.Record, r control.AllocateRequest) (err error) {
	ps := d.pods
	ps.mu.Lock()
	defer ps.mu.Unlock()
	k := rec.Key()
	if dm, ok := ps.damaged[rec.Name()]; ok {
		return control.Errorf(control.Conflict, "the state file of %s is damaged and lies in %s: delete the pod first", k, dm.Path)
	}
	if other, ok := ps.names[rec.Name()]; ok && other != k {
		return control.Errorf(control.Conflict, "%s and %s would have the same device name %s", k, other, rec.Name())
	}
	cidrs := s.cfg.Node.PodCIDRs
	used := cidrs
	if rec.Source == control.SourceForeign {
		used = slices.DeleteFunc(slices.Clone(cidrs), func(c netip.Prefix) bool { return !slices.ContainsFunc(r.Addresses, c.Contains) })
	}
	var free []netip.Prefix
	for _, c := range used {
		source, example := ps.sourceOf(c)
		switch {
		case source == "" || source == rec.Source:
			free = append(free, c)
		case rec.Source == control.SourceForeign:
			return control.Errorf(control.Unsupported, "the daemon's own IPAM gives the addresses of %s, to %s for one, so no other IPAM can: use one of both for all pods of this node", c, example)
		}
	}
	if rec.Source == control.SourceForeign {
		rec.Addresses = slices.Clone(r.Addresses)
		err = ps.alloc.Take(k.String(), rec.Addresses)
	} else {
		for _, c := range used {
			source, example := ps.sourceOf(c)
			if source == control.SourceForeign && !slices.ContainsFunc(free, func(f netip.Prefix) bool { return f.Addr().Is4() == c.Addr().Is4() }) {
				return control.Errorf(control.Unsupported, "another IPAM gives the addresses of %s, to %s for one, so the daemon's own cannot: use one of both for all pods of this node", c, example)
			}
		}
		rec.Addresses, err = ps.alloc.Allocate(ipam.Request{Owner: k.String(), CIDRs: free, Families: r.Families, Requested: r.Requested})
	}
	var taken *ipam.TakenError
	switch {
	case errors.As(err, &taken):
		return control.Errorf(control.Conflict, "%v", err)
	case errors.Is(err, ipam.ErrFull):
		return control.Errorf(control.Exhausted, "%v", err)
	case err != nil:
		return control.Errorf(control.Unsupported, "%v", err)
	}
	ps.all[k], ps.names[rec.Name()] = &pod{rec: rec}, k
	return nil
}

// unreserve takes back what nobody has learned of.
func (d *Daemon) unreserve(rec *podstate.Record) {
	d.pods.drop(rec.Key())
	d.pods.alloc.Cancel(rec.Key().String())
}

func (s *state) allocation(rec *podstate.Record) control.Allocation {
	a := control.Allocation{Addresses: rec.Addresses, Foreign: rec.Source != control.SourceIPAM, GatewayMAC: forwarder.GatewayMAC.String(), MTU: rec.MTU, NodeMTU: s.podMTU,
		Device: rec.Device, Phase: rec.Phase, PodCIDRs: s.cfg.Node.PodCIDRs}
	for _, x := range rec.Addresses {
		if x.Is4() {
			a.Gateway4 = forwarder.Gateway4
		} else {
			a.Gateway6 = forwarder.Gateway6
		}
	}
	return a
}

// checkAllocate looks at what can be said without knowing other pods, and fills in the families.
func (s *state) checkAllocate(r *control.AllocateRequest) error {
	bad := func(format string, args ...any) error { return control.Errorf(control.BadRequest, format, args...) }
	if err := checkKey(r.Container, r.Interface); err != nil {
		return err
	}
	foreign := len(r.Addresses) > 0
	switch {
	case r.Network == "":
		return bad("network is empty: GC needs to know whose pod it is")
	case !slices.Contains([]string{control.AttachVeth, control.AttachTUN, control.AttachRouted}, r.Attach):
		return badAttach(r.Attach)
	case foreign && (len(r.Requested) > 0 || len(r.Families) > 0):
		return bad("addresses were given by another IPAM, so requested and families have no meaning beside them")
	case !foreign && r.Attach == control.AttachRouted:
		return control.Errorf(control.Unsupported, "a %s pod has its addresses from the plugin before this one, whose device it hangs on: they are missing", r.Attach)
	case r.MTU != 0 && (r.MTU < minMTU4 || r.MTU > 65535):
		return bad("mtu %d is not between %d and 65535", r.MTU, minMTU4)
	}
	for i, f := range r.Families {
		if f != 4 && f != 6 || slices.Contains(r.Families[:i], f) {
			return bad("families %v: each is 4 or 6, and once", r.Families)
		}
	}
	if !foreign && len(r.Families) == 0 {
		for _, c := range s.cfg.Node.PodCIDRs {
			f := 6
			if c.Addr().Is4() {
				f = 4
			}
			if !slices.Contains(r.Families, f) {
				r.Families = append(r.Families, f)
			}
		}
	}
	return s.checkAddresses(append(slices.Clone(r.Addresses), r.Requested...), control.Unsupported)
}

// checkFamilies refuses what RFC 8200 section 5 does not allow.
func checkFamilies(rec *podstate.Record) error {
	if rec.MTU < minMTU6 && slices.ContainsFunc(rec.Addresses, netip.Addr.Is6) {
		return control.Errorf(control.Unsupported, "mtu %d is under the %d that IPv6 needs: raise it, or leave IPv6 out", rec.MTU, minMTU6)
	}
	return nil
}

// sameReservation says what keeps a second request for a pod from being the first once more.
func sameReservation(rec *podstate.Record, r control.AllocateRequest) error {
	differs := ""
	families := func(as []netip.Addr, f int) bool {
		return slices.ContainsFunc(as, func(a netip.Addr) bool { return a.Is4() == (f == 4) })
	}
	switch {
	case rec.Network != r.Network:
		differs = "network " + rec.Network
	case rec.Attach != r.Attach:
		differs = "attach " + rec.Attach
	case rec.NetnsID != "" && r.NetnsID != "" && rec.NetnsID != r.NetnsID:
		differs = "another network namespace"
	case r.MTU != 0 && r.MTU != rec.MTU:
		differs = "another MTU"
	case (rec.Source == control.SourceIPAM) != (len(r.Addresses) == 0):
		differs = "another IPAM"
	case len(r.Addresses) > 0 && !sameAddresses(rec.Addresses, r.Addresses):
		differs = "other addresses"
	case slices.ContainsFunc(r.Requested, func(a netip.Addr) bool { return !slices.Contains(rec.Addresses, a) }):
		differs = "other addresses"
	case slices.ContainsFunc(r.Families, func(f int) bool { return !families(rec.Addresses, f) }):
		differs = "other address families"
	}
	if differs == "" {
		return nil
	}
	return control.Errorf(control.Conflict, "%s is there already with %s: delete it first", rec.Key(), differs)
}

func sameAddresses(a, b []netip.Addr) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}
