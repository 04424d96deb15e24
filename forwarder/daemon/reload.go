package daemon

import (
	"context"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/table/feed"
)

// Reload reads the configuration file again, for SIGHUP and POST /v1/reload. The file is validated whole before anything is
// touched; a file that is rejected changes nothing, nor does one that changes a key which only a restart can change. One reload is whole
// before the next begins: else the feed could be given an older list after a newer one.
func (d *Daemon) Reload(ctx context.Context) (control.Reloaded, error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	if ok, why := d.health.running(); !ok {
		return control.Reloaded{}, control.Errorf(control.NotReady, "%s", why)
	}
	if ctx.Err() != nil { // it has waited for another
		return control.Reloaded{}, control.Errorf(control.NotReady, "nobody waits for this reload any more")
	}
	notify(d.log, reloading())
	defer func() {
		if ok, _ := d.health.running(); ok { // else it is stopping, and has said so
			notify(d.log, sd.SdNotifyReady)
		}
	}()
	changed, peers, err := d.reload(ctx)
	if err != nil && ctx.Err() != nil {
		d.log.Info("a reload was broken off; what ran before goes on", "config", d.path, "error", err)
		return control.Reloaded{}, control.Errorf(control.NotReady, "the reload was broken off: %v", err)
	}
	d.reloads.note(err, time.Now())
	defer func() { notify(d.log, "STATUS="+d.statusText()) }()
	if err != nil {
		d.log.Error("the configuration was not reloaded; what ran before goes on", "config", d.path, "error", err)
		return control.Reloaded{}, err
	}
	// The feed learns what holds now; its sink finds it in force already.
	if err := d.peers.Set(peers); err != nil {
		return control.Reloaded{}, err
	}
	d.log.Info("configuration reloaded", "config", d.path, "changed", changed)
	return control.Reloaded{Changed: changed}, nil
}

// reloads counts them, and remembers how the last one went.
type reloads struct {
	mu           sync.Mutex
	ok, rejected uint64
	last         time.Time // one that succeeded, or the start
	why          string    // the last one was rejected; empty: it was not
}

func (r *reloads) note(err error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.rejected++
		r.why = err.Error()
		return
	}
	r.ok++
	r.last, r.why = now, ""
}

func (r *reloads) counts() (ok, rejected uint64, last time.Time, failed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ok, r.rejected, r.last, r.why != ""
}

func (r *reloads) failure() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.why
}

func (d *Daemon) reload(ctx context.Context) (changed []string, peers []feed.Peer, err error) {
	cfg, err := d.reader.read(ctx) // before change is held: a disk may hang
	if err != nil {
		return nil, nil, control.Errorf(control.InvalidConfig, "%v", err)
	}
	d.change.Lock()
	defer d.change.Unlock()
	old := d.state.Load()
	next, err := d.complete(cfg, old.cfg.Node.Address)
	if err != nil {
		return nil, nil, control.Errorf(control.InvalidConfig, "%v", err)
	}
	live, restart := config.Diff(old.cfg, next.cfg)
	if len(restart) > 0 {
		var all []string
		for _, c := range restart {
			all = append(all, c.String())
		}
		return nil, nil, control.Errorf(control.RestartRequired, "%s: %s", d.path, strings.Join(all, "; "))
	}
	if err := d.swap(ctx, next); err != nil {
		return nil, nil, err
	}
	return append([]string{}, live...), next.peers, nil // "[]" in the answer, not "null"
}

// LogLevel is the level of the log.
func (d *Daemon) LogLevel() string { return levelName(d.level.Level()) }

// SetLogLevel changes the level until the daemon ends.
func (d *Daemon) SetLogLevel(s string) error {
	l, err := parseLevel(s)
	if err != nil {
		return control.Errorf(control.BadRequest, "%v", err)
	}
	if before := d.level.Level(); before != l {
		d.level.Set(l)
		d.log.Log(context.Background(), max(l, before), "the log's level was changed", "from", levelName(before), "to", s)
	}
	return nil
}
