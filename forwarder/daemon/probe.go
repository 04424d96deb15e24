package daemon

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/probe"
	"github.com/penstock-net/penstock/table/feed"
)

// prober asks other nodes through the overlay and answers them: *probe.Prober.
type prober interface {
	Set(own, peers []netip.Addr) error
	Path(context.Context, probe.Target) (probe.Path, error)
	Bench(context.Context, probe.Target, time.Duration) (probe.Bench, error)
	Close() error
}

// answerPeers has the prober answer the peers of a state. That it cannot is worth a line and no more: only doctor and bench of
// other nodes miss it.
func (d *Daemon) answerPeers(s *state) {
	var own, peers []netip.Addr
	for _, c := range s.cfg.Node.PodCIDRs {
		own = append(own, hostnet.FirstAddress(c))
	}
	for _, p := range s.peers {
		for _, c := range p.PodCIDRs {
			peers = append(peers, hostnet.FirstAddress(c))
		}
	}
	if err := d.prober.Set(own, peers); err != nil {
		d.log.Warn("probes of other nodes are not all answered", "error", err)
	}
}

// target finds a peer by name or address, and how to reach its host through the overlay.
func (s *state) target(name string) (feed.Peer, probe.Target, error) {
	for _, p := range s.peers {
		if !control.NamesPeer(name, p.Name, p.Address) {
			continue
		}
		k, _ := encap.ParseKind(s.resolve(p).Encap)
		t := probe.Target{Node: p.Address, NodeFrom: s.cfg.Node.Address, MTU: min(s.podMTU, encap.PodMTU(s.underlay.MTU, k, s.cfg.Node.Address.Is6()))}
		for _, theirs := range p.PodCIDRs {
			for _, ours := range s.cfg.Node.PodCIDRs {
				if a, b := hostnet.FirstAddress(theirs), hostnet.FirstAddress(ours); !t.Host.IsValid() && a.Is4() == b.Is4() {
					t.Host, t.HostFrom = a, b
				}
			}
		}
		if !t.Host.IsValid() {
			return p, t, control.Errorf(control.Unsupported, "%s has no pod CIDR of a family that this node has, so no packet can go there", p.Name)
		}
		return p, t, nil
	}
	return feed.Peer{}, probe.Target{}, control.Errorf(control.NotFound, "there is no peer %q: penstockctl peers lists them by name and address", name)
}

// Probe sends real packets to a peer through the normal data path.
func (d *Daemon) Probe(ctx context.Context, r control.ProbeRequest) (control.Probe, error) {
	s := d.state.Load()
	p, t, err := s.target(r.Peer)
	if err != nil {
		return control.Probe{}, err
	}
	path, err := d.prober.Path(ctx, t)
	if err != nil {
		return control.Probe{}, err
	}
	a := control.Probe{Peer: p.Name, Address: p.Address, Host: t.Host, Node: path.Node, AnsweredBy: path.By, Refused: path.Refused, RTT: path.RTT.Microseconds(),
		Clock: path.Clock.Milliseconds(), MTU: t.MTU, Passes: path.Passes, Back: path.Back}
	if d.uplinks != nil {
		for _, u := range d.uplinks.Paths() {
			if u.Peer != p.Address {
				continue
			}
			a.NoUplink = u.Why
			if u.Link != nil {
				a.Uplink = u.Link.Device
			}
		}
	}
	return a, nil
}

// Bench measures the way to a peer.
func (d *Daemon) Bench(ctx context.Context, r control.BenchRequest) (control.Bench, error) {
	switch {
	case r.Milliseconds == 0:
		r.Milliseconds = 3000
	case r.Milliseconds < 100 || r.Milliseconds > control.MaxBench:
		return control.Bench{}, control.Errorf(control.BadRequest, "a bench takes 100 ms to %d s, not %d ms", control.MaxBench/1000, r.Milliseconds)
	}
	s := d.state.Load()
	p, t, err := s.target(r.Peer)
	if err != nil {
		return control.Bench{}, err
	}
	b, err := d.prober.Bench(ctx, t, time.Duration(r.Milliseconds)*time.Millisecond)
	switch {
	case errors.Is(err, probe.ErrBusy):
		return control.Bench{}, control.Errorf(control.Conflict, "%v", err)
	case err != nil:
		return control.Bench{}, control.Errorf(control.Unsupported, "%s cannot be measured by %s: %v; penstockctl doctor looks for the cause", p.Name, t.Host, err)
	}
	l := b.Latency
	return control.Bench{Peer: p.Name, Host: t.Host,
		Latency:   control.Latency{Size: l.Size, Sent: l.Sent, Lost: l.Lost, P50: l.P50.Microseconds(), P99: l.P99.Microseconds(), Max: l.Max.Microseconds()},
		Datagrams: benchFlow(b.Datagrams), Bulk: benchFlow(b.Bulk)}, nil
}

func benchFlow(f probe.Flow) control.BenchFlow {
	o := control.BenchFlow{Size: f.Size, Sent: f.Sent, Delivered: f.Delivered, Seconds: f.Took.Seconds()}
	if f.Took > 0 {
		o.PerSecond = float64(f.Delivered) / f.Took.Seconds()
		o.BitsSecond = o.PerSecond * float64(f.Size) * 8
	}
	return o
}
