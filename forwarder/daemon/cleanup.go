package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// cleanupPods removes what is left of pods: their devices on the node, and their state. A TUN in a pod goes with the pod.
func (d *Daemon) cleanupPods(m machine, cfg *config.Config) (removed []string, err error) {
	dir := filepath.Join(cfg.State, "pods")
	if _, err := os.Stat(dir); err == nil {
		store, err := podstate.Open(cfg.State, "")
		if err != nil {
			return nil, err
		}
		defer store.Close()
		records, _, err := store.Load()
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			if r.Attach == control.AttachRouted || r.Device != r.Name() {
				continue
			}
			switch e := m.RemoveLink(r.Device); {
			case e == nil:
				removed = append(removed, "device "+r.Device)
			case !errors.Is(e, errNoLink):
				return removed, e // its state stays with it
			}
		}
	}
	links, err := m.Links()
	if err != nil {
		return removed, err
	}
	for _, l := range links {
		if ourName(l.Name) && l.Group == control.DeviceGroup {
			if err := m.RemoveLink(l.Name); err != nil && !errors.Is(err, errNoLink) {
				return removed, err
			}
			removed = append(removed, "device "+l.Name)
		}
	}
	for _, path := range []string{dir, filepath.Join(cfg.State, "released"), filepath.Join(cfg.State, "address"), filepath.Join(cfg.State, "device"), control.PendingDir(cfg.Control.Socket)} {
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return removed, fmt.Errorf("the pods' state cannot be removed: %w", err)
		}
		removed = append(removed, path)
	}
	return removed, nil
}
