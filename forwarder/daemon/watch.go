package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/table/feed"
)

const watchRetry = time.Second // after netlink failed

// watchUnderlay follows the node's address: its device, MTU and state.
func (d *Daemon) watchUnderlay(ctx context.Context) error {
	cfg := d.state.Load().cfg // neither changes without a restart
	return d.again(ctx, "the underlay is not watched", func() error {
		return d.machine.WatchUnderlay(ctx, cfg.Node.Address, cfg.Native.Carrier != "off", func(u hostnet.Underlay, err error) error { return d.setUnderlay(ctx, u, err) })
	})
}

// setUnderlay takes over what the underlay is now. With an error it was not taken over, and is to be tried again.
func (d *Daemon) setUnderlay(ctx context.Context, u hostnet.Underlay, err error) error {
	d.change.Lock()
	defer d.change.Unlock()
	old := d.state.Load()
	unusable, remedy := u.Unusable()
	switch {
	case err != nil && !errors.Is(err, hostnet.ErrNoAddress):
		d.log.Warn("the underlay cannot be looked at, and is taken for what it was; trying again", "error", err)
		return nil
	case err != nil:
		if d.health.set(underlayGone, "the underlay address is gone: "+err.Error()) {
			d.log.Error("the underlay address is gone; packets to other nodes will be dropped until it is back", "address", old.cfg.Node.Address, "error", err)
		}
		return nil
	case !u.Up:
		if d.health.set(underlayGone, fmt.Sprintf("the underlay device %s is down", u.Device)) {
			d.log.Error("the underlay device is down; packets to other nodes will be dropped until it is up", "device", u.Device)
		}
	case unusable != "":
		if d.health.set(underlayGone, fmt.Sprintf("the underlay address %s cannot be used, as %s: %s", u.Address, unusable, remedy)) {
			d.log.Error("the underlay address cannot be used; packets to other nodes will be lost until it can", "address", u.Address, "device", u.Device, "because", unusable, "remedy", remedy)
		}
	default:
		if d.health.set(underlayGone, "") {
			d.log.Info("the underlay is back", "device", u.Device, "address", u.Address)
		}
	}
	if u == old.underlay {
		d.unfollowed.news(nil)
		return nil
	}
	next, err := newState(old.cfg, u, old.peers)
	if err == nil {
		err = d.swap(ctx, next)
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		if news, _ := d.unfollowed.news(err); news {
			d.log.Error("the underlay's change cannot be followed; trying again", "error", err)
		}
		return err
	}
	d.unfollowed.news(nil)
	if u.Device != old.underlay.Device {
		d.log.Info("the underlay address has moved", "from", old.underlay.Device, "to", u.Device)
	}
	if u.MTU != old.underlay.MTU {
		d.log.Warn("the underlay's MTU has changed; pods that are attached keep theirs and learn the new one by path MTU discovery",
			"device", u.Device, "from", old.underlay.MTU, "to", u.MTU, "podMTU", next.podMTU)
	}
	if err := next.checkMTU(); err != nil {
		d.log.Error("the pods' MTU no longer fits the underlay", "error", err)
	}
	return nil
}

// setPeers is where a feed hands over its peers. The list that holds already is no news.
func (d *Daemon) setPeers(peers []feed.Peer) error {
	d.change.Lock()
	defer d.change.Unlock()
	old := d.state.Load()
	if samePeers(old.peers, peers) {
		return nil
	}
	next, err := newState(old.cfg, old.underlay, peers)
	if err != nil {
		return err
	}
	if err := d.swap(context.Background(), next); err != nil {
		return err
	}
	d.log.Info("peers changed", "peers", len(peers), "before", len(old.peers), "mtu", next.podMTU)
	return nil
}

// watchFlows forgets the flows that conntrack has forgotten.
func (d *Daemon) watchFlows(ctx context.Context) error {
	return d.again(ctx, "conntrack is not followed", func() error { return d.flows.Run(ctx) })
}

// again runs something that watches until ctx ends, once more after each failure: what it watches is worth less than the
// packets that go on meanwhile.
func (d *Daemon) again(ctx context.Context, what string, run func() error) error {
	for {
		err := run()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		d.log.Error(what+"; trying again", "error", err, "in", watchRetry.String())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchRetry):
		}
	}
}

// look has whoever waits on kick look soon.
func look(kick chan<- struct{}) {
	select {
	case kick <- struct{}{}:
	default: // one is waiting already
	}
}
