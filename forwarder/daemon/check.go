package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder/control"
)

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
	case p.lostTUN(d.lostPorts()):
		say(tunDeleted)
	case rec.Attach == control.AttachRouted:
		for _, a := range rec.Addresses {
			if device, err := d.machine.RouteDevice(a, netip.Addr{}); err == nil && (device == "" || device == d.state.Load().cfg.Host.Device) {
				say("the host has lost its route to %s, which the plugin before penstock has made", a)
			}
		}
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
