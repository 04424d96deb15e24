package daemon

import (
	"errors"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// removeOldDevice removes the node's TUN that had another name before host.device was changed, with the addresses on it. What is no TUN,
// or a pod's by now, is somebody else's.
func removeOldDevice(m machine, cfg *config.Config, claims func(string) bool) (removed string, err error) {
	old := podstate.Device(cfg.State)
	if old == "" || old == cfg.Host.Device || claims(old) {
		return "", nil
	}
	l, err := m.Link(old)
	if err == nil && l.Type != "tun" && l.Type != "tuntap" {
		return "", nil
	}
	if err == nil {
		err = m.RemoveLink(old)
	}
	switch {
	case errors.Is(err, errNoLink):
		return "", nil
	case err != nil:
		return "", err
	}
	return old, nil
}

// keepOneDevice has no device left but the configured one, and notes that for the next start.
func (d *Daemon) keepOneDevice(cfg *config.Config) {
	old, err := removeOldDevice(d.machine, cfg, d.pods.claims)
	switch {
	case err != nil: // it is tried again by the next start, as its name stays noted
		d.log.Warn("the node's device from before host.device was changed stays", "error", err)
		return
	case old != "":
		d.log.Info("removed the node's device from before host.device was changed", "device", old, "now", cfg.Host.Device)
	}
	if err := d.pods.store.NoteDevice(cfg.Host.Device); err != nil {
		d.log.Warn("the device's name cannot be kept for the next start, which would not remove it if host.device is changed", "error", err)
	}
}
