package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control/server"
	"github.com/penstock-net/penstock/forwarder/hostflow"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/podstate"
	"github.com/penstock-net/penstock/table/feed/static"
)

// start opens everything in order. On an error it takes back what it did, but leaves alone what a predecessor had made: that
// still works.
func (d *Daemon) start(ctx context.Context) (err error) {
	var undo undoList
	defer func() {
		if err != nil {
			err = undo.because(err)
		}
	}()
	if err := d.machine.Privileged(); err != nil {
		return err
	}

	cfg, err := d.reader.read(context.WithoutCancel(ctx)) // it has a bound of its own
	if err != nil {
		return err
	}
	next, err := d.complete(cfg, netip.Addr{})
	if err != nil {
		return err
	}
	d.workers = workersFor(cfg.Workers)
	runtime.GOMAXPROCS(d.workers + 1) // the workers hold a thread each; one is left for everything else
	if os.Getenv("GOGC") == "" {
		// Packets make no garbage, only requests, scrapes and reloads do, and a node's memory is worth more than their time:
		// with 100 pods and 1,000 peers 57 MiB instead of 82.
		debug.SetGCPercent(25)
	}
	d.log.Info("configuration read", "config", d.path, "node", cfg.Node.Name, "address", cfg.Node.Address, "underlay", next.underlay.Device, "underlayMTU", next.underlay.MTU,
		"podCIDRs", cfg.Node.PodCIDRs, "encap", next.kind.String(), "mtu", next.podMTU)

	if was := podstate.Address(cfg.State); was.IsValid() && was != cfg.Node.Address {
		d.log.Warn("this node's address is not the one that the daemon before this one had; to its peers it is a stranger until they have it", "was", was, "address", cfg.Node.Address)
	}
	if d.listener, err = server.Listen(ctx, cfg.Control.Socket); err != nil {
		return err
	}
	undo.add(d.listener.Release)
	if d.disclaim, err = d.machine.Claim(); err != nil {
		return err
	}
	undo.add(d.disclaim)
	if err = d.openState(cfg.State); err != nil {
		return err
	}
	undo.add(d.pods.store.Discard)

	fresh, err := d.machine.PrepareTUN(cfg.Host.Device, d.workers)
	if err != nil {
		return err
	}
	if fresh { // else a predecessor's device, routes and rules still stand and are left to the next one
		undo.add(func() error {
			_, err := d.machine.Cleanup(context.WithoutCancel(ctx), cfg.Host.Device)
			return err
		})
	}
	if d.plane, err = d.machine.NewForwarder(next.settings(d.workers, d.log)); err != nil {
		return next.held(err)
	}
	undo.add(func() error { return d.plane.Stop(context.WithoutCancel(ctx)) })
	if err = d.plane.SetPeers(next.peers); err != nil {
		return next.held(err)
	}
	d.peers = static.New(next.peers)
	d.logChosen()
	d.startUplinks(next)

	if err = d.startHost(ctx, next); err != nil {
		return err
	}
	d.state.Store(next)
	d.prober = d.machine.NewProber(cfg.Host.Device)
	undo.add(d.prober.Close)
	d.answerPeers(next)
	if err = d.restorePods(ctx, next); err != nil {
		return err
	}
	if err := d.pods.store.NoteAddress(cfg.Node.Address); err != nil {
		d.log.Warn("the node's address cannot be kept for the next start, which goes by the default route unless node.address is set", "error", err)
	}
	d.keepOneDevice(cfg)
	if err = d.startFlows(ctx, &undo); err != nil {
		return err
	}
	d.timed = newTimed(d)
	if err = d.listenDebug(cfg, &undo); err != nil {
		return err
	}
	d.server = server.New(d.timed, d.log)
	return ctx.Err() // asked to stop meanwhile
}

// complete works out what a configuration means on this machine. If it leaves the node's address out, known is that in force, invalid
// at the start.
func (d *Daemon) complete(cfg *config.Config, known netip.Addr) (*state, error) {
	if err := cfg.Complete(func() (netip.Addr, error) {
		if !known.IsValid() {
			known = podstate.Address(cfg.State)
		}
		return d.address(known)
	}); err != nil {
		return nil, err
	}
	u, err := d.machine.FindUnderlay(cfg.Node.Address, cfg.Native.Carrier != "off")
	if err != nil {
		return nil, fmt.Errorf("node.address: %w", err)
	}
	if why, remedy := u.Unusable(); why != "" {
		return nil, fmt.Errorf("node.address: %s on %s cannot be used, as %s: %s", u.Address, u.Device, why, remedy)
	}
	s, err := newState(cfg, u, cfg.Peers)
	if err != nil {
		return nil, err
	}
	return s, s.checkMTU()
}

// address is the node's where the file leaves it out: the known one as long as the node has it, for by that one its peers know it and
// take nothing from another. Where the default route leads says only what a new node is likely to be known by.
func (d *Daemon) address(known netip.Addr) (netip.Addr, error) {
	found, err := d.machine.DefaultAddress()
	var strays error
	if known.IsValid() && (err != nil || found != known) {
		if _, gone := d.machine.FindUnderlay(known, false); errors.Is(gone, hostnet.ErrNoAddress) {
			return found, err
		}
		if strays = err; strays == nil {
			strays = fmt.Errorf("the default route leads by %s", found)
		}
		found, err = known, nil
	}
	if news, _ := d.strays.news(strays); news {
		d.log.Warn("node.address is not set and would be another now; the one that peers know stays while this node has it: set node.address to it", "address", known, "why", strays)
	}
	return found, err
}

func (d *Daemon) startHost(ctx context.Context, s *state) (err error) {
	if d.host, err = d.machine.NewHost(s.hostConfig(d.log)); err != nil {
		return err
	}
	_, err = d.host.Apply(ctx) // what it changed and found, hostnet has logged
	return err
}

// startFlows remembers which flows the host translates before a worker could hand one of their answers to the wrong side.
func (d *Daemon) startFlows(ctx context.Context, undo *undoList) error {
	f, err := d.machine.OpenFlows(hostflow.Config{Sink: d.plane.HostFlows(), Log: d.log})
	if errors.Is(err, hostflow.ErrNoConntrack) {
		d.log.Warn("this kernel has no conntrack, so the host cannot translate addresses: Services and NodePorts will not work, everything else does")
		return nil
	}
	if err != nil {
		return err
	}
	d.flows = f
	undo.add(f.Close)
	d.plane.TrackFlows()
	n, err := f.Load(ctx)
	if err != nil {
		return err
	}
	d.log.Debug("flows that the host has translated were read from conntrack", "flows", n)
	return nil
}

// logChosen says once what the kernel offers and what is made of it.
func (d *Daemon) logChosen() {
	used, unused, missing := []string{}, []string{}, []string{} // "[]" in the log, not "null"
	for _, c := range d.capabilities() {
		switch {
		case c.Used:
			used = append(used, c.Name)
		case c.Found:
			unused = append(unused, c.Name)
		default:
			missing = append(missing, c.Name)
		}
	}
	d.log.Info("probed the kernel", "used", used, "foundButUnused", unused, "missing", missing)
}
