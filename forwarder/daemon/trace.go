package daemon

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/table/feed"
)

// Trace says what would happen to a packet, without sending it.
func (d *Daemon) Trace(ctx context.Context, r control.TraceRequest) (control.Trace, error) {
	if err := d.await(ctx); err != nil {
		return control.Trace{}, err
	}
	s := forwarder.TraceSpec{TracePacket: forwarder.TracePacket{Proto: cmp.Or(r.Proto, "icmp"), SrcPort: r.Sport, DstPort: r.Dport, Size: r.Size, TTL: r.TTL, DF: r.DF}}
	var err error
	if s.Src, s.Dst, err = d.traceEnds(r.Src, r.Dst); err != nil {
		return control.Trace{}, err
	}
	if err := d.traceFrom(&s, r.From); err != nil {
		return control.Trace{}, err
	}
	state := d.state.Load()
	if p := state.peerOf(s.Dst); p != nil {
		device, err := d.machine.RouteDevice(p.Address, state.cfg.Node.Address)
		s.Unroutable = err == nil && device == ""
	}
	t, err := d.plane.Trace(s)
	if err != nil {
		return control.Trace{}, control.Errorf(control.BadRequest, "%v", err)
	}
	a := control.Trace{Src: s.Src.String(), Dst: s.Dst.String(), Origin: t.Origin, Steps: []control.TraceStep{}, Outcome: t.Outcome}
	if t.Outcome == forwarder.Dropped.String() {
		a.Reason = t.Reason.String()
	}
	for _, step := range t.Steps {
		a.Steps = append(a.Steps, control.TraceStep(step))
	}
	if t.Origin == "host" {
		d.traceHost(&a, s.Dst)
	}
	if src, dst := state.peerOf(s.Src), state.peerOf(s.Dst); r.From == "" && a.Reason == forwarder.DropNotLocal.String() && src != nil && dst != nil {
		a.Steps = append(a.Steps, control.TraceStep{Name: "hint", Text: fmt.Sprintf("neither end is on this node: %s is of %s and %s of %s, so the packet never comes here; ask on %s", s.Src, src.Name, s.Dst, dst.Name, src.Name)})
	}
	return a, nil
}

// traceHost puts the kernel's answer in the place of a trace whose packet the host's stack does not send to us. It is asked by
// destination: a routing rule that looks at more than that may decide otherwise.
func (d *Daemon) traceHost(a *control.Trace, dst netip.Addr) {
	state := d.state.Load()
	ours := state.cfg.Host.Device
	device, err := d.machine.RouteDevice(dst, netip.Addr{})
	if err != nil || device == ours {
		return
	}
	a.Reason = ""
	if device != "" && !d.carries(state, dst) {
		a.Outcome, a.Steps = forwarder.ToHost.String(), []control.TraceStep{{Name: "from", Text: fmt.Sprintf("the host's stack routes it to %s, as it does by itself: it does not come to %s", device, ours)}}
		return
	}
	a.Outcome = control.OutcomeElsewhere
	text := fmt.Sprintf("the host's stack routes it to %s and not to %s, so it never comes here", device, ours)
	if device == "" {
		text = fmt.Sprintf("the host's stack has no route to %s, so it never comes here", dst)
	}
	a.Steps = []control.TraceStep{{Name: "from", Text: text}, {Name: "remedy", Text: "penstockctl doctor says by its check host-routes what to do; ip route get " + dst.String() + " shows the route"}}
}

// carries reports whether what the host sends to an address is ours to carry: that of another pod, but for those behind routes of their own.
func (d *Daemon) carries(s *state, a netip.Addr) bool {
	in := func(cidrs []netip.Prefix) bool {
		return slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return c.Contains(a) })
	}
	if !in(s.cfg.Network.CIDRs) && !in(s.cfg.Node.PodCIDRs) || firstAddress(s.cfg.Node.PodCIDRs, a) || s.cfg.Node.Address == a {
		return false
	}
	return !slices.ContainsFunc(d.pods.list(), func(p pod) bool {
		return p.rec.Attach == control.AttachRouted && slices.Contains(p.rec.Addresses, a)
	})
}

// peerOf is the peer whose pods an address is among, the most specific one; nil if it is no peer's.
func (s *state) peerOf(a netip.Addr) (peer *feed.Peer) {
	best := -1
	for i, p := range s.peers {
		for _, c := range p.PodCIDRs {
			if c.Contains(a) && c.Bits() > best {
				best, peer = c.Bits(), &s.peers[i]
			}
		}
	}
	return peer
}

// traceEnds makes addresses of one family of what may be the names of pods.
func (d *Daemon) traceEnds(src, dst string) (a, b netip.Addr, err error) {
	from, err := d.traceEnd(src)
	if err != nil {
		return a, b, err
	}
	to, err := d.traceEnd(dst)
	if err != nil {
		return a, b, err
	}
	for _, a := range from {
		for _, b := range to {
			if a.Is4() == b.Is4() {
				return a, b, nil
			}
		}
	}
	return a, b, control.Errorf(control.BadRequest, "%s and %s have no addresses of one family", src, dst)
}

func (d *Daemon) traceEnd(name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a.Unmap().WithZone("")}, nil
	}
	p, err := d.findPod(name)
	return p.Addresses, err
}

// traceFrom finds who sends the packet: who is named, or who has its source.
func (d *Daemon) traceFrom(s *forwarder.TraceSpec, from string) error {
	state := d.state.Load()
	if name, ok := strings.CutPrefix(from, "peer "); ok {
		i := slices.IndexFunc(state.peers, func(p feed.Peer) bool { return control.NamesPeer(name, p.Name, p.Address) })
		if i < 0 {
			return control.Errorf(control.NotFound, "there is no peer %q: penstockctl peers lists them", name)
		}
		s.Peer = state.peers[i].Address
		return nil
	}
	switch from {
	case "host":
		return nil
	case "":
	default:
		p, err := d.findPod(from)
		s.Container, s.Interface = p.Container, p.Interface
		return err
	}
	if p, err := d.findPod(s.Src.String()); err == nil {
		s.Container, s.Interface = p.Container, p.Interface
		return nil
	}
	if p := state.peerOf(s.Src); p != nil {
		s.Peer = p.Address
		return nil
	}
	for _, c := range state.cfg.Node.PodCIDRs {
		if c.Contains(s.Src) && s.Src != hostnet.FirstAddress(c) {
			return control.Errorf(control.NotFound, "%s is of this node's pods, but none has it: penstockctl ports lists them; say with --from who sends it", s.Src)
		}
	}
	return nil
}
