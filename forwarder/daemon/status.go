package daemon

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/server"
	"github.com/penstock-net/penstock/forwarder/hostnet"
)

var _ server.Backend = (*Daemon)(nil)

// Status says what the daemon is and how it fares.
func (d *Daemon) Status(context.Context) (control.Status, error) {
	s := d.state.Load()
	c := s.cfg
	ready, reason := d.health.ready()
	return control.Status{
		Traffic: d.totalTraffic(),
		Node:    c.Node.Name, Address: c.Node.Address, VTEPMAC: encap.VTEPMAC(c.Node.Address, c.Encap.VNI).String(),
		Encap: s.kind.String(), Port: c.Encap.Port, VNI: c.Encap.VNI, MTU: s.podMTU, UnderlayMTU: s.underlay.MTU, Underlay: s.underlay.Device,
		Device: c.Host.Device, Ready: ready, Reason: reason, Capabilities: d.capabilities(),
		Version: control.Version(), Started: d.started.UTC(), UptimeSeconds: int64(time.Since(d.started).Seconds()), Workers: d.workers,
		PodCIDRs: c.Node.PodCIDRs, ClusterCIDRs: c.Network.CIDRs, Peers: len(s.peers), Ports: d.plane.PortCount(), Waiting: d.pods.waiting(), Failed: d.pods.failed(), State: d.pods.store.Writable(), Unopened: d.unopened(),
		Config: d.path, Rejected: d.reloads.failure(), LogLevel: d.LogLevel(),
	}, nil
}

// unopened is what is not listened on although the configuration wants it.
func (d *Daemon) unopened() (list []string) {
	for _, l := range d.debug {
		if why := l.trouble(); why != "" {
			list = append(list, why)
		}
	}
	if why := d.plane.NativeUnopened(); why != "" {
		list = append(list, why)
	}
	return list
}

func (d *Daemon) capabilities() []control.Capability {
	list := []control.Capability{}
	for _, c := range d.plane.Capabilities() {
		list = append(list, control.Capability{Name: c.Name, Found: c.Found, Used: c.Used, Detail: c.Detail, Needs: c.Needs})
	}
	return list
}

// Ports lists the attached pods, by container and interface.
func (d *Daemon) Ports(context.Context) ([]control.Port, error) {
	var list []control.Port
	for _, p := range d.plane.Ports() {
		list = append(list, d.describePort(p))
	}
	slices.SortFunc(list, func(a, b control.Port) int {
		return cmp.Or(cmp.Compare(a.Container, b.Container), cmp.Compare(a.Interface, b.Interface))
	})
	return list, nil
}

func describePort(p forwarder.PortInfo) control.Port {
	return control.Port{
		Container: p.PortSpec.Container, Interface: p.PortSpec.Interface, Attach: p.Attach, Device: p.PortSpec.Device, MAC: p.MAC,
		Addresses: p.Addresses, MTU: p.MTU, Worker: p.Worker,
		Received: traffic(p.Sent), Sent: traffic(p.Got), Dropped: p.Dropped, RingDrops: p.RingDrops, LastSeen: seen(p.LastSeen),
	}
}

// seen is a moment in Unix seconds, nil for never.
func seen(unix int64) *time.Time {
	if unix == 0 {
		return nil
	}
	t := time.Unix(unix, 0).UTC()
	return &t
}

func traffic(v forwarder.Volume) control.Traffic {
	return control.Traffic{Packets: v.Packets, Bytes: v.Bytes}
}

// Peers lists the other nodes, by name.
func (d *Daemon) Peers(context.Context) ([]control.Peer, error) {
	s := d.state.Load()
	counters := map[string]forwarder.PeerCounters{}
	for _, c := range d.plane.Counters().Peers {
		counters[c.Address] = c
	}
	var list []control.Peer
	for _, p := range s.peers {
		p = s.resolve(p)
		k, _ := encap.ParseKind(p.Encap)
		o := control.Peer{Name: p.Name, Address: p.Address, PodCIDRs: p.PodCIDRs, Encap: p.Encap, Port: p.Port}
		if k == encap.KindVXLAN {
			o.VNI, o.MAC = p.VNI, encap.MAC(p.MAC).String()
		}
		c := counters[p.Address.String()]
		o.Received, o.Sent, o.Dropped = traffic(c.Got), traffic(c.Sent), c.Dropped
		o.MTU = cmp.Or(c.MTU, encap.PodMTU(s.underlay.MTU, k, s.cfg.Node.Address.Is6()))
		o.LastSeen, o.NobodyListens = seen(c.LastSeen), seen(c.NobodyListens)
		if last := seen(c.LastRejected); last != nil {
			r := c.RejectedAs
			o.Rejected = &control.Rejected{Packets: c.Rejected, Last: *last, Reason: r.String(), Meaning: r.Meaning(), Remedy: r.Remedy()}
		}
		if n := c.Native; n != nil {
			o.Native = &control.Native{Carrier: n.Carrier, Version: n.Version, Why: n.Why, Bursts: n.Bursts, Frames: n.Frames, Saved: n.Saved,
				GotPieces: n.GotPieces, GotFrames: n.GotFrames, Lost: n.LostBytes, Parts: n.Parts, Refused: n.Refused}
		}
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b control.Peer) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.Address.Compare(b.Address)) })
	return list, nil
}

// Routes lists where packets go, as it follows from the peers, the ports and the configuration. Whatever no route covers goes
// to the host.
func (d *Daemon) Routes(context.Context) ([]control.Route, error) {
	s := d.state.Load()
	var list []control.Route
	for _, c := range s.cfg.Network.CIDRs {
		list = append(list, control.Route{Prefix: c, Kind: control.RouteNone, Via: "no peer has it: net unreachable"})
	}
	for _, c := range s.cfg.Node.PodCIDRs {
		a := hostnet.FirstAddress(c)
		list = append(list, control.Route{Prefix: c, Kind: control.RouteNone, Via: "no pod has it: host unreachable"},
			control.Route{Prefix: netip.PrefixFrom(a, a.BitLen()), Kind: control.RouteHost, Via: s.cfg.Host.Device})
	}
	for _, p := range s.peers {
		for _, c := range p.PodCIDRs {
			list = append(list, control.Route{Prefix: c, Kind: control.RoutePeer, Via: p.Name + " " + p.Address.String()})
		}
	}
	for _, p := range d.plane.Ports() {
		for _, a := range p.Addresses {
			r := control.Route{Prefix: netip.PrefixFrom(a, a.BitLen()), Kind: control.RoutePort, Via: p.PortSpec.Container + "/" + p.PortSpec.Interface}
			if p.Attach == control.AttachRouted {
				r.Kind, r.Via = control.RouteHost, r.Via+" by the host's own route"
			}
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b control.Route) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return list, nil
}

// Drops lists the reasons that frames were dropped for, most frequent first.
func (d *Daemon) Drops(context.Context) ([]control.Drop, error) {
	dropped := d.plane.Counters().Dropped
	var list []control.Drop
	for _, r := range forwarder.Reasons() {
		if n := dropped[r.String()]; n > 0 {
			list = append(list, control.Drop{Reason: r.String(), Packets: n, Meaning: r.Meaning(), Remedy: r.Remedy()})
		}
	}
	slices.SortStableFunc(list, func(a, b control.Drop) int { return cmp.Compare(b.Packets, a.Packets) })
	return list, nil
}

// totalTraffic sums the node's counters.
func (d *Daemon) totalTraffic() (t control.TotalTraffic) {
	c := d.plane.Counters()
	for _, n := range c.Received {
		t.Received += n
	}
	for _, n := range c.Generated {
		t.Generated += n
	}
	for _, v := range c.Forwarded {
		t.Forwarded.Packets += v.Packets
		t.Forwarded.Bytes += v.Bytes
	}
	for _, n := range c.Dropped {
		t.Dropped += n
	}
	return t
}

// FDB lists the VTEPs of vxlan peers, by peer.
func (d *Daemon) FDB(ctx context.Context) ([]control.FDBEntry, error) {
	peers, err := d.Peers(ctx)
	var list []control.FDBEntry
	for _, p := range peers {
		if p.MAC != "" {
			list = append(list, control.FDBEntry{MAC: p.MAC, VNI: p.VNI, Address: p.Address, Port: p.Port, Peer: p.Name})
		}
	}
	return list, err
}

// Reasons lists all reasons that a frame may be dropped for, and how many were, in the order in which a packet meets them.
func (d *Daemon) Reasons(context.Context) ([]control.Drop, error) {
	dropped := d.plane.Counters().Dropped
	var list []control.Drop
	for _, r := range forwarder.Reasons() {
		list = append(list, control.Drop{Reason: r.String(), Packets: dropped[r.String()], Meaning: r.Meaning(), Remedy: r.Remedy()})
	}
	return list, nil
}
