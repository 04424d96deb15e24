package daemon

import (
	"context"
	"net/netip"
	"slices"
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
		i := slices.IndexFunc(d.state.Load().peers, func(p feed.Peer) bool { return control.NamesPeer(r.Peer, p.Name, p.Address) })
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
