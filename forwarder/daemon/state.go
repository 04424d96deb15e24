package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"reflect"
	"slices"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/table/feed"
)

// state is everything that may change while the daemon runs, at one moment. It is immutable once published.
type state struct {
	cfg      *config.Config
	kind     encap.Kind
	underlay hostnet.Underlay
	peers    []feed.Peer
	fits     int // the largest pod packet that reaches every peer in one piece
	podMTU   int // what pods get: encap.mtu if it is set, else fits
}

// newState works out what follows from a configuration, the underlay and the peers.
func newState(cfg *config.Config, u hostnet.Underlay, peers []feed.Peer) (*state, error) {
	kind, err := encap.ParseKind(cfg.Encap.Type)
	if err != nil {
		return nil, fmt.Errorf("encap.type: %w", err)
	}
	s := &state{cfg: cfg, kind: kind, underlay: u, peers: peers}
	if s.fits, err = s.largest(); err != nil {
		return nil, err
	}
	if s.podMTU = cfg.Encap.MTU; s.podMTU == 0 {
		s.podMTU = s.fits
	}
	return s, nil
}

// largest is the largest packet of a pod that reaches every peer in one piece: the smallest of (underlay MTU − overhead) over
// all peers, with our own encapsulation as long as there are none.
func (s *state) largest() (int, error) {
	outer6 := s.cfg.Node.Address.Is6()
	if len(s.peers) == 0 {
		return encap.PodMTU(s.underlay.MTU, s.kind, outer6), nil
	}
	least := math.MaxInt
	for _, p := range s.peers {
		kind := s.kind
		if p.Encap != "" {
			k, err := encap.ParseKind(p.Encap)
			if err != nil {
				return 0, fmt.Errorf("peer %s: %w", p.Name, err)
			}
			kind = k
		}
		least = min(least, encap.PodMTU(s.underlay.MTU, kind, outer6))
	}
	return least, nil
}

// checkMTU says what is wrong with the pods' MTU. The outer DF bit is always set, so packets of a larger one never arrive. It
// is an error in a configuration; when the underlay's MTU shrinks under a running daemon it can only be told.
func (s *state) checkMTU() error {
	switch {
	case s.podMTU > s.fits:
		return fmt.Errorf("encap.mtu: %d does not fit, as %s has an MTU of %d and encapsulation leaves %d: set at most that, or 0 to have it computed", s.podMTU, s.underlay.Device, s.underlay.MTU, s.fits)
	case s.six() && s.podMTU < minMTU6:
		return fmt.Errorf("the pods' MTU of %d is under the %d that IPv6 needs (RFC 8200 section 5): raise the MTU %d of %s, or take the IPv6 prefixes out of node.podCIDRs", s.podMTU, minMTU6, s.underlay.MTU, s.underlay.Device)
	case s.podMTU < minMTU4:
		return fmt.Errorf("the pods' MTU of %d is under the %d that IPv4 needs: raise the MTU %d of %s", s.podMTU, minMTU4, s.underlay.MTU, s.underlay.Device)
	}
	return nil
}

// six reports whether pods have IPv6.
func (s *state) six() bool {
	return slices.ContainsFunc(s.cfg.Node.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// hostMTU is that of the node's TUN. The kernel takes a device under 1280 out of IPv6, with its addresses and routes: what the underlay
// does not carry any more is then the forwarder's to tell.
func (s *state) hostMTU() int {
	if s.six() {
		return max(s.podMTU, minMTU6)
	}
	return s.podMTU
}

const (
	minMTU4 = 576 // what every host must be able to receive (RFC 1122 section 3.3.2); less than that is a mistake
	minMTU6 = 1280
)

// settings are what the forwarder needs to know.
func (s *state) settings(workers int, log *slog.Logger) forwarder.Settings {
	c := s.cfg
	return forwarder.Settings{
		Address: c.Node.Address, PodCIDRs: c.Node.PodCIDRs, Cluster: c.Network.CIDRs,
		Encap: s.kind, Port: c.Encap.Port, VNI: c.Encap.VNI, PodMTU: s.podMTU, UnderlayMTU: s.underlay.MTU,
		SourcePorts: c.Encap.SourcePorts, CopyDSCP: c.Encap.CopyDSCP, ClampMSS: c.Encap.ClampMSS,
		Uplink:  s.uplink(),
		Workers: workers, Priority: c.Priority, Polling: c.Polling, HostDevice: c.Host.Device, Native: s.native(),
		Offload: forwarder.Offload{TunnelGSO: c.Offload.TunnelGSO, UDPSegment: c.Offload.UDPSegment, UDPGRO: c.Offload.UDPGRO,
			TUNOffload: c.Offload.TUNOffload, TUNBatch: c.Offload.TUNBatch, MergeWrites: c.Offload.MergeWrites, PacketRing: c.Offload.PacketRing},
		PodBuffer: c.Limits.PodBuffer, TotalBuffer: c.Limits.TotalBuffer, Log: log,
	}
}

// native is how the native stream is used: with auto by either carrier.
func (s *state) native() forwarder.Native {
	n := s.cfg.Native
	return forwarder.Native{TCP: n.Carrier == "auto" || n.Carrier == "tcp", UDP: n.Carrier == "auto" || n.Carrier == "udp", Port: n.Port}
}

// uplink is the underlay's device, if packet sockets can use it.
func (s *state) uplink() forwarder.Uplink {
	u := s.underlay
	if !u.Ethernet {
		return forwarder.Uplink{}
	}
	return forwarder.Uplink{Device: u.Device, Index: u.Index, TSO: u.TSO, USO: u.USO}
}

// carrier is what the host's own TCP must not see.
func (s *state) carrier() hostnet.Carrier {
	if n := s.native(); n.TCP && s.underlay.Ethernet {
		return hostnet.Carrier{Device: s.underlay.Device, Port: n.Port}
	}
	return hostnet.Carrier{}
}

// hostConfig is what the host's stack must look like.
func (s *state) hostConfig(log *slog.Logger) hostnet.Config {
	c := s.cfg
	peers := make([]netip.Addr, len(s.peers))
	for i, p := range s.peers {
		peers[i] = p.Address
	}
	return hostnet.Config{
		Device: c.Host.Device, MTU: s.hostMTU(), Address: c.Node.Address, PodCIDRs: c.Node.PodCIDRs, Cluster: c.Network.CIDRs,
		Tunnels: s.tunnels(), Peers: peers, Masquerade: c.Host.Masquerade, Forward: c.Host.Forward, Carrier: s.carrier(), Log: log,
	}
}

// tunnels are the protocols and ports that we speak on the underlay, each once, in a fixed order.
func (s *state) tunnels() []hostnet.Tunnel {
	var ts []hostnet.Tunnel
	add := func(k encap.Kind, port uint16) {
		if k == encap.KindIPIP {
			ts = append(ts, hostnet.Tunnel{Proto: encap.ProtoIPIP}, hostnet.Tunnel{Proto: encap.ProtoIPv6})
			return
		}
		ts = append(ts, hostnet.Tunnel{Proto: encap.ProtoUDP, Port: port})
	}
	add(s.kind, s.cfg.Encap.Port)
	add(encap.KindUDP, s.cfg.Native.Port) // also while it is off here: nothing that the host translates may answer a peer's hello
	for _, p := range s.peers {
		r := s.resolve(p)
		k, _ := encap.ParseKind(r.Encap) // largest has looked at it
		add(k, r.Port)
	}
	slices.SortFunc(ts, func(a, b hostnet.Tunnel) int {
		return int(a.Proto)<<16 + int(a.Port) - int(b.Proto)<<16 - int(b.Port)
	})
	return slices.Compact(ts)
}

// resolve fills in what a peer leaves to our own settings, as the forwarder does; what is wrong with one the forwarder has said.
func (s *state) resolve(p feed.Peer) feed.Peer {
	settings := s.settings(0, nil)
	p, _, _ = settings.Resolve(p)
	return p
}

func samePeers(a, b []feed.Peer) bool { return slices.EqualFunc(a, b, feed.Peer.Equal) }

// swap makes next what holds: in the forwarder, then in the host's stack, then for everybody who asks. If a step fails, those
// before it are taken back and nothing has changed. Daemon.change is held.
func (d *Daemon) swap(ctx context.Context, next *state) (err error) {
	old := d.state.Load()
	var undo undoList
	defer func() {
		if err != nil {
			err = undo.because(err)
		}
	}()
	if err := d.swapPlane(old, next); err != nil {
		return err
	}
	undo.add(func() error { return d.swapPlane(next, old) })
	hostWas, hostIs := old.hostConfig(d.log), next.hostConfig(d.log)
	if !reflect.DeepEqual(hostWas, hostIs) {
		if _, err := d.host.Reconfigure(ctx, hostIs); err != nil {
			undo.add(func() error { _, err := d.host.Reconfigure(context.WithoutCancel(ctx), hostWas); return err })
			return err
		}
	}
	d.state.Store(next)
	d.setUplinkPeers(next.peers)
	d.answerPeers(next)
	return nil
}

// swapPlane takes the forwarder from one state to another, in one step: a CIDR may move from a peer to this node, or to the cluster's
// network together with a peer, and back.
func (d *Daemon) swapPlane(from, to *state) error {
	was, is := from.settings(d.workers, d.log), to.settings(d.workers, d.log)
	switch peers, settings := !samePeers(from.peers, to.peers), !reflect.DeepEqual(was, is); {
	case peers && settings:
		return to.held(d.plane.Replace(is, to.peers))
	case peers:
		return to.held(d.plane.SetPeers(to.peers))
	case settings:
		return d.plane.Reconfigure(is)
	}
	return nil
}

// undoList takes back what was done, last first.
type undoList []func() error

var errUndo = errors.New("taking back what was done failed too")

func (u *undoList) add(f func() error) { *u = append(*u, f) }

// because takes everything back because of err, and returns it with what went wrong meanwhile.
func (u *undoList) because(err error) error {
	for _, f := range slices.Backward(*u) {
		if e := f(); e != nil {
			err = fmt.Errorf("%w; %w: %w", err, errUndo, e)
		}
	}
	*u = nil
	return err
}

// firstAddress says whether a is the address of penstock0 in one of the pod CIDRs.
func firstAddress(cidrs []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(cidrs, func(c netip.Prefix) bool { return hostnet.FirstAddress(c) == a })
}
