package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/ipam"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// sameSpec is whether a request asks for what is there already. A MAC that was left open says nothing.
func sameSpec(a, b forwarder.PortSpec) bool {
	return a.Attach == b.Attach && a.Device == b.Device && a.MTU == b.MTU && (a.MAC == b.MAC || b.MAC == "") && a.Bandwidth == b.Bandwidth && sameAddresses(a.Addresses, b.Addresses)
}

// The CNI specification's alphabets (section "Parameters").
var (
	containerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}$`)
	badInterface  = func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r >= 0x7f }
)

const maxDevice = 15 // IFNAMSIZ less the final zero

func validDevice(name string) bool {
	return name != "" && len(name) <= maxDevice && name != "." && name != ".." && strings.IndexFunc(name, badInterface) < 0
}

func badAttach(attach string) error {
	return control.Errorf(control.BadRequest, "attach %q is none of %s, %s and %s", attach, control.AttachVeth, control.AttachTUN, control.AttachRouted)
}

// Attach makes a pod a port. Asking for the same again is answered with what is there; on an error nothing has changed.
//
// A pod without a reservation is attached by hand: its addresses are whatever was asked for and nobody else has.
func (d *Daemon) Attach(ctx context.Context, r control.AttachRequest) (control.Port, error) {
	p, err := d.attachPod(ctx, r, nil)
	return p.Port, err
}

// AttachQueue is Attach of a pod whose TUN the caller has made in the pod's network namespace, by its queue. It owns fd.
func (d *Daemon) AttachQueue(ctx context.Context, r control.AttachRequest, fd int) (control.Attached, error) {
	q := &queue{fd}
	defer q.close()
	return d.attachPod(ctx, r, q)
}

func (d *Daemon) attachPod(ctx context.Context, r control.AttachRequest, q *queue) (control.Attached, error) {
	if err := checkKey(r.Container, r.Interface); err != nil {
		return control.Attached{}, err
	}
	k := control.PodKey{Container: r.Container, Interface: r.Interface}
	defer d.gate.leave(k)
	done, err := d.begin(ctx, k)
	if err != nil {
		return control.Attached{}, err
	}
	defer done()
	s := d.state.Load()
	old := d.pods.get(k)
	if old != nil && old.rec.Phase == control.PhaseDetaching {
		return control.Attached{}, control.Errorf(control.Conflict, "a delete of %s has begun and was not finished: delete it again first", k)
	}
	if old == nil && r.Network != "" {
		// By hand there is no network. A plugin has a reservation, or a DEL has come between.
		return control.Attached{}, control.Errorf(control.Conflict, "%s of network %s has no addresses reserved, or they were given back meanwhile: allocate them first", k, r.Network)
	}
	if old != nil {
		if err := fromReservation(&r, old.rec); err != nil {
			return control.Attached{}, err
		}
	}
	spec, err := s.portSpec(r)
	if err != nil {
		return control.Attached{}, err
	}
	if q != nil && spec.Attach != control.AttachTUN {
		return control.Attached{}, control.Errorf(control.BadRequest, "a queue came with the request, but attach %s has none", spec.Attach)
	}
	if other, taken := d.pods.deviceOwner(spec.Device, k); taken {
		return control.Attached{}, control.Errorf(control.Conflict, "device %s is in use by %s", spec.Device, other)
	}
	attached := old != nil && old.rec.Phase == control.PhaseAttached
	if attached && !sameSpec(specOf(old.rec), spec) {
		if old.open || old.rec.Source != control.SourceManual {
			return control.Attached{}, control.Errorf(control.Conflict, "%s is attached already with another device, address, MAC, MTU or bandwidth: detach it first", k)
		}
		// By hand, and a restart has lost the port: the new wish counts.
		if err := d.remove(old, false); err != nil {
			return control.Attached{}, err
		}
		old, attached = nil, false
	}
	index := 0
	if q == nil { // else the device is in the pod
		if index, err = d.deviceFor(spec, attached && old.open); err != nil {
			return control.Attached{}, err
		}
	}
	if attached && old.open {
		if spec.Attach != control.AttachVeth || old.index == index {
			return d.attached(k)
		}
		// The same pod with a new device of the old name: what we had open belongs to a device that has gone.
		if err := d.shutPort(old); err != nil {
			return control.Attached{}, err
		}
	}
	if err := d.routesFit(spec); err != nil {
		return control.Attached{}, err
	}
	return d.attach(s, k, old, r, spec, index, q)
}

// attach does what Attach has found to be right, or nothing: file, drop, port.
func (d *Daemon) attach(s *state, k control.PodKey, old *pod, r control.AttachRequest, spec forwarder.PortSpec, index int, q *queue) (_ control.Attached, err error) {
	var undo undoList
	defer func() {
		if err != nil {
			code := control.CodeOf(err)
			err = undo.because(fmt.Errorf("%s cannot be attached: %w", k, err))
			if code != control.Internal {
				err = control.Errorf(code, "%v", err)
			}
		}
	}()
	rec := &podstate.Record{Version: 1, BootID: d.pods.store.Boot(), Container: k.Container, Interface: k.Interface, Source: control.SourceManual, Created: time.Now().UTC()}
	if old != nil {
		c := *old.rec
		rec = &c
	} else {
		if dm, ok := d.pods.damagedFile(rec.Name()); ok {
			return control.Attached{}, control.Errorf(control.Conflict, "its state file is damaged and lies in %s: detach it first", dm.Path)
		}
		if err := d.pods.alloc.Take(k.String(), spec.Addresses); err != nil {
			return control.Attached{}, control.Errorf(control.Conflict, "%v", err)
		}
		undo.add(func() error { d.pods.alloc.Cancel(k.String()); return nil })
	}
	rec.Network, rec.Owner, rec.Netns, rec.NetnsID = r.Network, r.Owner, r.Netns, r.NetnsID
	rec.Attach, rec.Device, rec.MAC, rec.MTU, rec.Addresses, rec.Phase = spec.Attach, spec.Device, spec.MAC, spec.MTU, spec.Addresses, control.PhaseAttached
	rec.Bandwidth = nil
	if r.Bandwidth != nil && *r.Bandwidth != (control.Bandwidth{}) {
		rec.Bandwidth = r.Bandwidth
	}
	if err := d.pods.store.Save(rec); err != nil {
		return control.Attached{}, err
	}
	undo.add(func() error {
		if old != nil {
			return d.pods.store.Save(old.rec)
		}
		return d.pods.store.Remove(rec.Name())
	})
	p := &pod{rec: rec, index: index, opening: true}
	d.pods.put(p)
	undo.add(func() error {
		if old != nil {
			c := *old
			if c.open = false; c.rec.Phase == control.PhaseAttached {
				c.problem = err.Error()
			}
			d.pods.put(&c)
		} else {
			d.pods.drop(k)
		}
		d.countWaiting()
		return nil
	})
	var port forwarder.PortInfo
	open := func() (err error) { port, err = d.plane.Attach(spec); return err }
	if q != nil {
		open = func() (err error) { port, err = d.plane.AttachQueue(spec, q.take()); return err }
	}
	if spec.Attach == control.AttachVeth && (old == nil || old.rec.Phase != control.PhaseAttached) {
		// Its device goes, or was never a pod's. That of a pod on record keeps its drop.
		undo.add(func() error { return d.host.UnblockIngress(spec.Device) })
	}
	if err := d.openPort(p, open); err != nil {
		return control.Attached{}, err
	}
	d.log.Info("attached", "pod", k.Container, "interface", k.Interface, "attach", spec.Attach, "device", spec.Device, "addresses", spec.Addresses, "owner", rec.Owner)
	return control.Attached{Port: d.describePort(port), QueueLen: port.QueueLen}, nil
}

// openPort puts the drop on a veth and lets open make the port. The drop stays if it cannot: without a port only the drop keeps the
// pod's frames from the host's stack.
func (d *Daemon) openPort(p *pod, open func() error) error {
	if p.rec.Attach == control.AttachVeth {
		// The drop comes first: a packet that comes before the socket is bound is lost, it never reaches the host's stack.
		if err := d.host.BlockIngress(p.rec.Device); err != nil {
			return err
		}
	}
	return d.openDropped(p, open)
}

// openDropped is openPort for a pod whose device has its drop, if it needs one.
func (d *Daemon) openDropped(p *pod, open func() error) error {
	if err := open(); err != nil {
		return err
	}
	p.open, p.opening, p.problem = true, false, ""
	p.seen = p.rec.Attach == control.AttachTUN && d.netnsThere(p.rec)
	d.pods.put(p)
	if p.rec.Attach == control.AttachTUN {
		d.storeQueue(p.rec)
		d.countWaiting()
	}
	return nil
}

// shutPort takes a pod's port away. What keeps its frames from the host's stack stays.
func (d *Daemon) shutPort(p *pod) error {
	k := p.rec.Key()
	if err := d.plane.Detach(k.Container, k.Interface); err != nil {
		return fmt.Errorf("%s cannot be detached: %w", k, err)
	}
	p.open = false
	d.pods.put(p)
	return nil
}

// closePort undoes openPort.
func (d *Daemon) closePort(p *pod) error {
	if err := d.shutPort(p); err != nil {
		return err
	}
	k := p.rec.Key()
	switch p.rec.Attach {
	case control.AttachTUN:
		d.forgetQueue(p.rec)
	case control.AttachVeth:
		// The pod is not ours any more, whatever happens to its chain; with the chain left its packets are dropped, which is safe.
		if err := d.host.UnblockIngress(p.rec.Device); err != nil {
			return fmt.Errorf("%s is detached, but the drop on its device stays: %w", k, err)
		}
	}
	return nil
}

// fromReservation fills in what a request leaves to the pod's record.
func fromReservation(r *control.AttachRequest, rec *podstate.Record) error {
	fill := func(a *string, b string) {
		if *a == "" {
			*a = b
		}
	}
	fill(&r.Attach, rec.Attach)
	fill(&r.Network, rec.Network)
	fill(&r.Owner, rec.Owner)
	fill(&r.Netns, rec.Netns)
	fill(&r.NetnsID, rec.NetnsID)
	if r.MTU == 0 {
		r.MTU = rec.MTU
	}
	if len(r.Addresses) == 0 {
		r.Addresses = rec.Addresses
	}
	if rec.Source == control.SourceManual {
		return nil
	}
	switch {
	case r.Network != rec.Network:
		return control.Errorf(control.Conflict, "%s belongs to network %s, not %s", rec.Key(), rec.Network, r.Network)
	case r.Attach != rec.Attach:
		return control.Errorf(control.Conflict, "the addresses of %s are reserved for attach %s, not %s", rec.Key(), rec.Attach, r.Attach)
	case !sameAddresses(r.Addresses, rec.Addresses):
		return control.Errorf(control.Conflict, "%s has %v reserved and asks for %v", rec.Key(), rec.Addresses, r.Addresses)
	}
	return nil
}

// specOf is the forwarder's view of a record.
func specOf(rec *podstate.Record) forwarder.PortSpec {
	s := forwarder.PortSpec{Container: rec.Container, Interface: rec.Interface, Attach: rec.Attach, Device: rec.Device, MAC: rec.MAC, Addresses: rec.Addresses, MTU: rec.MTU}
	if rec.Bandwidth != nil {
		s.Bandwidth = forwarder.Bandwidth(*rec.Bandwidth)
	}
	return s
}

// portSpec checks a request against what this node may have, and fills in what it leaves open.
func (s *state) portSpec(r control.AttachRequest) (forwarder.PortSpec, error) {
	bad := func(format string, args ...any) (forwarder.PortSpec, error) {
		return forwarder.PortSpec{}, control.Errorf(control.BadRequest, format, args...)
	}
	spec := forwarder.PortSpec{Container: r.Container, Interface: r.Interface, Attach: r.Attach, Device: r.Device, MTU: r.MTU, Addresses: slices.Clone(r.Addresses)}
	if spec.Attach == "" {
		spec.Attach = control.AttachVeth
	}
	switch {
	case spec.Attach == control.AttachRouted:
		spec.Device, r.MAC = "", "" // both are another plugin's
	case spec.Device == "":
		spec.Device = control.DeviceName(r.Container, r.Interface)
	}
	if spec.MTU == 0 {
		spec.MTU = s.podMTU
	}
	switch {
	case !slices.Contains([]string{control.AttachVeth, control.AttachTUN, control.AttachRouted}, spec.Attach):
		return forwarder.PortSpec{}, badAttach(spec.Attach)
	case spec.Attach == control.AttachRouted:
	case !validDevice(spec.Device):
		return bad("device %q is not a device name: at most %d characters without slash, colon or space", spec.Device, maxDevice)
	case slices.Contains([]string{"lo", s.cfg.Host.Device, s.underlay.Device, hostnet.GSODevice}, spec.Device):
		return bad("device %s belongs to the node and is not a pod's", spec.Device)
	case r.MAC != "" && spec.Attach == control.AttachTUN:
		return bad("mac: a tun has none")
	}
	if r.MAC != "" {
		m, err := net.ParseMAC(r.MAC)
		if err != nil || len(m) != 6 || m[0]&1 != 0 || slices.Equal(m, make(net.HardwareAddr, 6)) {
			return bad("mac %q is not the address of one Ethernet device", r.MAC)
		}
		spec.MAC = m.String()
	}
	if b := r.Bandwidth; b != nil {
		if (b.IngressRate == 0) != (b.IngressBurst == 0) || (b.EgressRate == 0) != (b.EgressBurst == 0) {
			return bad("bandwidth: a rate needs its burst, and a burst its rate")
		}
		if spec.Attach == control.AttachRouted && *b != (control.Bandwidth{}) {
			return forwarder.PortSpec{}, control.Errorf(control.Unsupported, "bandwidth: the daemon reads no packet of a routed pod and cannot bound it: chain the plugin bandwidth behind bridge or ptp")
		}
		spec.Bandwidth = forwarder.Bandwidth(*b)
	}
	if len(spec.Addresses) == 0 {
		return bad("addresses is empty: a pod needs at least one")
	}
	if err := s.checkAddresses(spec.Addresses, control.BadRequest); err != nil {
		return forwarder.PortSpec{}, err
	}
	least := minMTU4
	if slices.ContainsFunc(spec.Addresses, netip.Addr.Is6) {
		least = minMTU6
	}
	if spec.MTU < least || spec.MTU > 65535 {
		return bad("mtu %d is not between %d and 65535", spec.MTU, least)
	}
	return spec, nil
}

// checkAddresses looks at what addresses of this node a pod may have.
func (s *state) checkAddresses(addresses []netip.Addr, where control.Code) error {
	for i, a := range addresses {
		switch {
		case !a.IsValid() || a.Zone() != "" || a.Is4In6():
			return control.Errorf(control.BadRequest, "address %q is not a plain IPv4 or IPv6 address", a)
		case slices.Contains(addresses[:i], a):
			return control.Errorf(control.BadRequest, "address %s is given twice", a)
		case !slices.ContainsFunc(s.cfg.Node.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }):
			return control.Errorf(where, "address %s lies in none of this node's podCIDRs %v", a, s.cfg.Node.PodCIDRs)
		case firstAddress(s.cfg.Node.PodCIDRs, a):
			return control.Errorf(where, "address %s is the first of its pod CIDR, which is the host's own on %s", a, s.cfg.Host.Device)
		case !slices.ContainsFunc(s.cfg.Node.PodCIDRs, func(c netip.Prefix) bool { return ipam.Usable(c, a) }):
			return control.Errorf(where, "address %s is the broadcast address of its pod CIDR", a)
		}
	}
	return nil
}

// routesFit refuses attachments that cannot reach each other: the host must reach a routed pod by a route of its own, and all
// others through our TUN. A bridge with the whole pod CIDR on it would swallow what is for a veth of the same CIDR.
func (d *Daemon) routesFit(spec forwarder.PortSpec) error {
	tun := d.state.Load().cfg.Host.Device
	wrong := func(a netip.Addr, routed bool) (string, bool) {
		device, err := d.machine.RouteDevice(a, netip.Addr{})
		return device, err == nil && device != "" && (device == tun) == routed // without a route there is nothing to contradict
	}
	routed := spec.Attach == control.AttachRouted
	for _, a := range spec.Addresses {
		device, bad := wrong(a, routed)
		switch {
		case bad && routed:
			return control.Errorf(control.Unsupported, "the host's route to %s leads to %s: a routed pod needs a route to its own device, as bridge and ptp make it", a, device)
		case bad:
			why := fmt.Sprintf("the host's route to %s leads to %s, which takes the pod CIDR for itself: attach all pods of this CIDR as routed, or give %[2]s a CIDR of its own", a, device)
			if u, err := d.machine.FindUnderlay(a, false); err == nil && device == "lo" { // where the route to an address of the node's own leads
				device, why = u.Device, fmt.Sprintf("%s of this node has %s, so no pod can have it: take the address from %[1]s, or the CIDR from node.podCIDRs", u.Device, a)
			}
			left := hostnet.LeftOver(device)
			if left != "" {
				left = "; " + left
			}
			return control.Errorf(control.Unsupported, "%s%s", why, left)
		}
	}
	if !routed {
		return nil
	}
	for _, p := range d.pods.list() {
		if !p.open || p.rec.Attach == control.AttachRouted {
			continue
		}
		for _, a := range p.rec.Addresses {
			if device, bad := wrong(a, false); bad {
				return control.Errorf(control.Unsupported, "%s takes %s of %s away from %s: attach all pods of this CIDR as routed, or none", device, a, p.rec.Key(), tun)
			}
		}
	}
	return nil
}

// deviceFor checks the device that a spec names: a veth's host end must be there, a TUN to be made must not, unless it is ours.
func (d *Daemon) deviceFor(spec forwarder.PortSpec, ours bool) (index int, err error) {
	if spec.Attach == control.AttachRouted {
		return 0, nil
	}
	l, err := d.machine.Link(spec.Device)
	switch {
	case errors.Is(err, errNoLink) && spec.Attach == control.AttachTUN:
		return 0, nil
	case errors.Is(err, errNoLink):
		return 0, control.Errorf(control.NotFound, "there is no device %s: make the veth first and leave its host end in the daemon's network namespace", spec.Device)
	case err != nil:
		return 0, err
	case spec.Attach == control.AttachTUN && !ours && l.Type != "tuntap" && l.Type != "tun":
		return 0, control.Errorf(control.Conflict, "there is a device %s already and it is a %s: a tun is made by the daemon", spec.Device, l.Type)
	case spec.Attach == control.AttachVeth && !l.Ethernet:
		return 0, control.Errorf(control.BadRequest, "device %s is a %s and not an Ethernet device", spec.Device, l.Type)
	}
	return l.Index, nil
}

// attached describes one attached pod.
func (d *Daemon) attached(k control.PodKey) (control.Attached, error) {
	for _, p := range d.plane.Ports() {
		if p.PortSpec.Container == k.Container && p.PortSpec.Interface == k.Interface {
			return control.Attached{Port: d.describePort(p), QueueLen: p.QueueLen}, nil
		}
	}
	return control.Attached{}, fmt.Errorf("%s is attached, but the forwarder does not know it: this is a bug", k)
}
