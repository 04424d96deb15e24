package daemon

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
	"github.com/penstock-net/penstock/table/feed"
)

// Capture begins to show frames.
func (d *Daemon) Capture(ctx context.Context, r capture.Request) (capture.Source, error) {
	if err := d.await(ctx); err != nil {
		return nil, err
	}
	f := forwarder.TapFilter{Reason: r.Reason, Snap: r.Snap}
	if r.Snap < 0 {
		return nil, control.Errorf(control.BadRequest, "a frame has no %d bytes", r.Snap)
	}
	if r.Port < 0 || r.Port > 65535 {
		return nil, control.Errorf(control.BadRequest, "there is no port %d: write one from 1 to 65535", r.Port)
	}
	f.Port = uint16(r.Port)
	if r.Protocol != "" {
		var err error
		if f.Protocol, err = capture.ParseProtocol(r.Protocol); err != nil {
			return nil, control.Errorf(control.BadRequest, "%v", err)
		}
	}
	if r.Pod != "" {
		p, err := d.findPod(r.Pod)
		a, bad := netip.ParseAddr(r.Pod)
		switch {
		case err == nil:
			f.Container, f.Interface, f.Addresses = p.Container, p.Interface, p.Addresses
		case bad == nil: // an address need not be a pod of this node
			f.Addresses = []netip.Addr{a.Unmap()}
		default:
			return nil, err
		}
	}
	if r.Peer != "" {
		i := slices.IndexFunc(d.state.Load().peers, func(p feed.Peer) bool { return p.Name == r.Peer || p.Address.String() == r.Peer })
		if i < 0 {
			return nil, control.Errorf(control.NotFound, "there is no peer %q: penstockctl peers lists them", r.Peer)
		}
		f.Peer = d.state.Load().peers[i].Address.Unmap()
	}
	t, err := d.plane.Tap(f)
	if err != nil {
		return nil, control.Errorf(control.BadRequest, "%v", err)
	}
	d.log.Info("a capture begins", "pod", r.Pod, "peer", r.Peer, "protocol", r.Protocol, "port", r.Port, "reason", r.Reason)
	return &tap{d, t}, nil
}

// leastPrefix is how much of a container's id names it: runtimes and doctor show twelve characters, people copy fewer.
const leastPrefix = 8

// findPod finds an attached pod by "container/interface", container, owner ("namespace/name"), device or address. The start of a
// container's id does for it, if it is the only one that starts so.
func (d *Daemon) findPod(name string) (control.Port, error) {
	ports, err := d.Ports(context.Background())
	if err != nil {
		return control.Port{}, err
	}
	var found, start []control.Port
	id, iface, one := strings.Cut(name, "/")
	for _, p := range ports {
		if name == p.Container+"/"+p.Interface || p.Device != "" && name == p.Device || slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return a.String() == name }) {
			return p, nil
		}
		if name == p.Container || name == p.Owner || name == p.Owner+"/"+p.Interface {
			found = append(found, p)
		}
		if len(id) >= leastPrefix && strings.HasPrefix(p.Container, id) && (!one || iface == p.Interface) {
			start = append(start, p)
		}
	}
	if len(found) == 0 {
		found = start
	}
	switch len(found) {
	case 0:
		return control.Port{}, control.Errorf(control.NotFound, "no pod %q is attached to this node: penstockctl ports lists them", name)
	case 1:
		return found[0], nil
	}
	var names []string
	several := false // containers
	for _, p := range found {
		names = append(names, p.Container+"/"+p.Interface)
		several = several || p.Container != found[0].Container
	}
	if several && len(start) == len(found) {
		return control.Port{}, control.Errorf(control.BadRequest, "%q is the start of several containers' ids, write more of the one you mean: %s", name, strings.Join(names, ", "))
	}
	return control.Port{}, control.Errorf(control.BadRequest, "%q has several interfaces, name one of them: %s", name, strings.Join(names, ", "))
}

// tap makes a forwarder's tap a source of the control API.
type tap struct {
	d *Daemon
	*forwarder.Tap
}

func (t *tap) Read(fn func(*capture.Frame)) int {
	var c capture.Frame
	return t.Tap.Read(func(r *forwarder.TapRecord) {
		c = capture.Frame{Time: time.Unix(0, r.Nanos), Worker: r.Worker, Stage: r.Stage.String(), Pod: r.Pod, Peer: r.Peer,
			Ethernet: r.Ethernet, Outer: r.Outer, Length: r.Length, Segment: r.Segment, Data: r.Data}
		if r.Stage == forwarder.Dropped {
			c.Reason = r.Reason.String()
		}
		fn(&c)
	})
}

func (t *tap) Close() {
	t.Tap.Close()
	t.d.log.Info("a capture ends", "lost", t.Lost())
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
