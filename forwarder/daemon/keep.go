package daemon

import (
	"context"
	"time"
)

// keepSocket puts the control socket back if somebody has removed it, and says whether it did: its directory may then be another
// one. It waits a moment before: whoever removes the directory is not done when the socket has gone.
func (d *Daemon) keepSocket(ctx context.Context) (back bool) {
	if d.listener.Stands() {
		d.unheard = ""
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
	switch said := d.unheard; {
	case err == nil:
		d.unheard = ""
		d.log.Warn("somebody had removed the control socket, its lock or their directory; they are back", "socket", socket)
	case err.Error() != said:
		d.unheard = err.Error()
		d.log.Error("somebody has removed the control socket, so that nobody can talk to this daemon, and it cannot be put back; trying again (under systemd a restart makes its directory anew, and breaks no connection)",
			"socket", socket, "error", err)
	}
	return err == nil
}

// look has whoever waits on kick look soon.
func look(kick chan<- struct{}) {
	select {
	case kick <- struct{}{}:
	default: // one is waiting already
	}
}
