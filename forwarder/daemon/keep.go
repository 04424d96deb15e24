package daemon

import (
	"context"
	"time"
)

// What is ours in the file system somebody may take away as well, while all that it stands for goes on: the control socket, by which
// plugins reach us, and the state directory, without which a successor would not know the pods.

// keepSocket puts the control socket back if somebody has removed it, and says whether it did: its directory may then be another
// one. It waits a moment before: whoever removes the directory is not done when the socket has gone.
func (d *Daemon) keepSocket(ctx context.Context) (back bool) {
	if d.listener.Stands() {
		d.unheard.news(nil)
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(repairInterval):
	}
	err := d.listener.Restore(ctx)
	if ctx.Err() != nil {
		return false
	}
	socket := d.state.Load().cfg.Control.Socket
	switch news, _ := d.unheard.news(err); {
	case err == nil:
		d.log.Warn("somebody had removed the control socket, its lock or their directory; they are back", "socket", socket)
	case news:
		d.log.Error("somebody has removed the control socket, so that nobody can talk to this daemon, and it cannot be put back; trying again (under systemd a restart makes its directory anew, and breaks no connection)",
			"socket", socket, "error", err)
	}
	return err == nil
}

// keepState puts records of pods back that somebody has removed from the state directory, or the directory with them, and the node's address.
func (d *Daemon) keepState(ctx context.Context) {
	back, err := d.writeMissing(ctx)
	if ctx.Err() != nil {
		return
	}
	cfg := d.state.Load().cfg
	state := cfg.State
	if err == nil {
		err = d.pods.store.NoteAddress(cfg.Node.Address)
	}
	if len(back) > 0 {
		d.log.Warn("somebody had removed pods' records from the state directory; they were written again", "state", state, "pods", back)
	}
	switch news, over := d.unkept.news(err); {
	case news:
		d.log.Error("the state directory cannot be kept: no pod can be added, and a restart may not know those that run; trying again", "state", state, "error", err)
	case over:
		d.log.Info("the state directory is complete again", "state", state)
	}
}

// writeMissing writes the records that have no file. What stands there is never written over: it may be somebody's who has put another
// directory in the place.
func (d *Daemon) writeMissing(ctx context.Context) (back []string, err error) {
	store := d.pods.store
	files, err := store.Files()
	if err != nil {
		return nil, err
	}
	for _, p := range d.pods.list() {
		if files[p.rec.Name()] {
			continue
		}
		k := p.rec.Key()
		wait, cancel := context.WithTimeout(ctx, podWait)
		done, err := d.pods.keys.lock(wait, k)
		cancel()
		if err != nil {
			continue // whoever is busy with it writes or removes its file
		}
		if p := d.pods.get(k); p != nil && !store.Has(p.rec.Name()) {
			if err = store.Save(p.rec); err == nil {
				back = append(back, k.String())
			}
		}
		done()
		if err != nil {
			return back, err
		}
	}
	return back, nil
}
