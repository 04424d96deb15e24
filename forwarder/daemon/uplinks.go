package daemon

import (
	"context"
	"net/netip"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/uplink"
	"github.com/penstock-net/penstock/table/feed"
)

// uplinks follows the ways on which superframes leave whole: *uplink.Watcher.
type uplinks interface {
	SetPeers([]netip.Addr)
	Paths() []uplink.Path
	Run(context.Context) error
	Recheck()
}

// startUplinks prepares the watcher if the forwarder can send superframes whole, or the native stream by its tcp carrier; d.uplinks
// stays nil if not.
func (d *Daemon) startUplinks(s *state) {
	c := uplink.Config{Local: s.cfg.Node.Address, Log: d.log, Used: d.plane.UplinkUsed, Notify: d.setUplink}
	if d.plane.SendsWhole() {
		c.TAP = forwarder.GSODevice
	}
	if s.native().TCP {
		c.Direct = d.setDirect
	}
	if c.TAP == "" && c.Direct == nil {
		return
	}
	d.uplinks = d.machine.NewUplinks(c)
	d.setUplinkPeers(s.peers)
}

// setUplink tells the forwarder of a peer's way, and the log of each change.
func (d *Daemon) setUplink(peer netip.Addr, l *uplink.Link, why string) {
	if l == nil {
		d.plane.SetUplinkPath(peer, nil)
		d.log.Debug("superframes to a peer are cut before they leave", "peer", peer, "because", why)
		return
	}
	d.plane.SetUplinkPath(peer, &forwarder.UplinkPath{Source: encap.MAC(l.Source), NextHop: encap.MAC(l.NextHop), MTU: l.MTU})
	d.log.Debug("superframes to a peer leave whole", "peer", peer, "by", l.Device)
}

// setDirect tells the forwarder of a peer's way for packet sockets.
func (d *Daemon) setDirect(peer netip.Addr, l *uplink.Link) {
	if l == nil {
		d.plane.SetDirectPath(peer, nil)
		return
	}
	d.plane.SetDirectPath(peer, &forwarder.UplinkPath{Source: encap.MAC(l.Source), NextHop: encap.MAC(l.NextHop), MTU: l.MTU, Index: l.Index})
}

func (d *Daemon) setUplinkPeers(peers []feed.Peer) {
	if d.uplinks == nil {
		return
	}
	var addresses []netip.Addr
	for _, p := range peers {
		addresses = append(addresses, p.Address)
	}
	d.uplinks.SetPeers(addresses)
}

func (d *Daemon) watchUplinks(ctx context.Context) error {
	return d.again(ctx, "the ways to the peers are not followed", func() error { return d.uplinks.Run(ctx) })
}
