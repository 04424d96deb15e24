package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// portKey is what a pod is known by.
type portKey struct{ container, iface string }

func (k portKey) String() string { return k.container + "/" + k.iface }

// port is what the daemon remembers of an attached pod besides what the forwarder knows.
type port struct {
	spec  forwarder.PortSpec
	index int // of the device: it tells a device made anew under the same name
}

// sameSpec is whether a request asks for what is there already. A MAC that was left open says nothing.
func sameSpec(a, b forwarder.PortSpec) bool {
	return a.Attach == b.Attach && a.Device == b.Device && a.MTU == b.MTU && (a.MAC == b.MAC || b.MAC == "") && slices.Equal(a.Addresses, b.Addresses)
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

// Attach makes a pod a port. Asking for the same again is answered with what is there; on an error nothing has changed.
func (d *Daemon) Attach(ctx context.Context, r control.AttachRequest) (control.Port, error) {
	d.change.Lock()
	defer d.change.Unlock()
	if ok, why := d.health.running(); !ok {
		return control.Port{}, control.Errorf(control.NotReady, "%s", why)
	}
	s := d.state.Load()
	spec, err := s.portSpec(r)
	if err != nil {
		return control.Port{}, err
	}
	key := portKey{spec.Container, spec.Interface}
	for _, a := range spec.Addresses {
		if other, taken := d.inUse[a]; taken && other != key {
			return control.Port{}, control.Errorf(control.Conflict, "address %s is in use by %s", a, other)
		}
	}
	for other, p := range d.ports {
		if p.spec.Device == spec.Device && other != key {
			return control.Port{}, control.Errorf(control.Conflict, "device %s is in use by %s", spec.Device, other)
		}
	}
	index, err := d.deviceFor(s, spec, d.ports[key].spec.Device == spec.Device)
	if err != nil {
		return control.Port{}, err
	}
	if old, ok := d.ports[key]; ok {
		if !sameSpec(old.spec, spec) {
			return control.Port{}, control.Errorf(control.Conflict, "%s is attached already with another device, address, MAC or MTU: detach it first", key)
		}
		if old.spec.Attach != control.AttachVeth || old.index == index {
			return d.port(key)
		}
		// The same pod with a new device of the old name: what we had open belongs to a device that has gone.
		if err := d.detach(key); err != nil {
			return control.Port{}, err
		}
	}
	if err := d.attach(key, port{spec, index}); err != nil {
		return control.Port{}, err
	}
	d.log.Info("attached", "pod", key.container, "interface", key.iface, "attach", spec.Attach, "device", spec.Device, "addresses", spec.Addresses)
	return d.port(key)
}

// attach does what Attach has found to be right, or nothing.
func (d *Daemon) attach(key portKey, p port) (err error) {
	var undo undoList
	defer func() {
		if err != nil {
			err = undo.because(fmt.Errorf("%s cannot be attached: %w", key, err))
		}
	}()
	if p.spec.Attach == control.AttachVeth {
		// The drop comes first: a packet that comes before the socket is bound is lost, it never reaches the host's stack.
		undo.add(func() error { return d.host.UnblockIngress(p.spec.Device) })
		if err := d.host.BlockIngress(p.spec.Device); err != nil {
			return err
		}
	}
	if _, err := d.plane.Attach(p.spec); err != nil {
		return err
	}
	d.ports[key] = p
	for _, a := range p.spec.Addresses {
		d.inUse[a] = key
	}
	return nil
}

// Detach undoes Attach. What is not attached is detached.
func (d *Daemon) Detach(_ context.Context, r control.DetachRequest) error {
	key := portKey{r.Container, r.Interface}
	if key.container == "" || key.iface == "" {
		return control.Errorf(control.BadRequest, "container and interface say which pod to detach, and one is empty")
	}
	d.change.Lock()
	defer d.change.Unlock()
	if _, ok := d.ports[key]; !ok {
		return nil
	}
	if err := d.detach(key); err != nil {
		return err
	}
	d.log.Info("detached", "pod", key.container, "interface", key.iface)
	return nil
}

func (d *Daemon) detach(key portKey) error {
	p := d.ports[key]
	if err := d.plane.Detach(key.container, key.iface); err != nil {
		return fmt.Errorf("%s cannot be detached: %w", key, err)
	}
	delete(d.ports, key)
	maps.DeleteFunc(d.inUse, func(_ netip.Addr, k portKey) bool { return k == key })
	if p.spec.Attach != control.AttachVeth {
		return nil
	}
	// The pod is not ours any more, whatever happens to its chain; with the chain left its packets are dropped, which is safe.
	if err := d.host.UnblockIngress(p.spec.Device); err != nil {
		return fmt.Errorf("%s is detached, but the drop on its device stays: %w", key, err)
	}
	return nil
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
	if spec.Device == "" {
		spec.Device = control.DeviceName(r.Container, r.Interface)
	}
	if spec.MTU == 0 {
		spec.MTU = s.podMTU
	}
	switch {
	case !containerName.MatchString(r.Container):
		return bad("container %q is not a container id: letters, digits, dot, dash and underscore, at most 253", r.Container)
	case !validDevice(r.Interface):
		return bad("interface %q is not a device name: at most %d characters without slash, colon or space", r.Interface, maxDevice)
	case spec.Attach == "routed":
		return bad("a routed pod is not attached: the routes to %s are all it needs", s.cfg.Host.Device)
	case spec.Attach != control.AttachVeth && spec.Attach != control.AttachTUN:
		return bad("attach %q is neither %s nor %s", spec.Attach, control.AttachVeth, control.AttachTUN)
	case !validDevice(spec.Device):
		return bad("device %q is not a device name: at most %d characters without slash, colon or space", spec.Device, maxDevice)
	case slices.Contains([]string{"lo", s.cfg.Host.Device, s.underlay.Device, hostnet.GSODevice}, spec.Device):
		return bad("device %s belongs to the node and is not a pod's", spec.Device)
	case len(spec.Addresses) == 0:
		return bad("addresses is empty: a pod needs at least one")
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
	least := minMTU4
	for i, a := range spec.Addresses {
		switch {
		case !a.IsValid() || a.Zone() != "" || a.Is4In6():
			return bad("address %q is not a plain IPv4 or IPv6 address", a)
		case slices.Contains(spec.Addresses[:i], a):
			return bad("address %s is given twice", a)
		case !slices.ContainsFunc(s.cfg.Node.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }):
			return bad("address %s lies in none of this node's podCIDRs %v", a, s.cfg.Node.PodCIDRs)
		case firstAddress(s.cfg.Node.PodCIDRs, a):
			return bad("address %s is the first of its pod CIDR, which is the host's own on %s", a, s.cfg.Host.Device)
		}
		if a.Is6() {
			least = minMTU6
		}
	}
	if spec.MTU < least || spec.MTU > 65535 {
		return bad("mtu %d is not between %d and 65535", spec.MTU, least)
	}
	return spec, nil
}

// deviceFor checks the device that a spec names: a veth's host end must be there, a TUN to be made must not, unless it is ours.
func (d *Daemon) deviceFor(s *state, spec forwarder.PortSpec, ours bool) (index int, err error) {
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

// port describes one attached pod.
func (d *Daemon) port(key portKey) (control.Port, error) {
	for _, p := range d.plane.Ports() {
		if p.PortSpec.Container == key.container && p.PortSpec.Interface == key.iface {
			return describePort(p), nil
		}
	}
	return control.Port{}, fmt.Errorf("%s is attached, but the forwarder does not know it: this is a bug", key)
}
