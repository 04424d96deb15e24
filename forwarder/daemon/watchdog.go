package daemon

import (
	"context"
	"fmt"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/penstock-net/penstock/forwarder/beat"
)

// The watchdog is tied to the workers: WATCHDOG=1 (sd_notify(3)) is sent only when every one of them has moved since the last
// look or waits for packets. If one is stuck, systemd hears nothing, and after WatchdogSec it ends the daemon with SIGABRT, by
// which Go prints where every goroutine stands, and starts another. Without systemd the log and /readyz say it all the same.

// gait is how the workers went at the last look.
type gait struct {
	turns []uint64
	moved []time.Time // when a worker was last seen to move or wait
}

// look compares with the last look and returns the workers that have neither moved nor waited since.
func (g *gait) look(turns []uint64, waiting []bool, now time.Time) (stuck []int) {
	first := len(g.turns) != len(turns)
	if first {
		g.turns, g.moved = make([]uint64, len(turns)), make([]time.Time, len(turns))
	}
	for i := range turns {
		if first || waiting[i] || turns[i] != g.turns[i] {
			g.moved[i] = now
		} else {
			stuck = append(stuck, i)
		}
		g.turns[i] = turns[i]
	}
	return stuck
}

// watchWorkers keeps the service manager up with the workers, and with what the daemon's state is in one line.
func (d *Daemon) watchWorkers(ctx context.Context) error {
	every := beat.Period // where no service manager asks for it oftener
	if w, err := sd.SdWatchdogEnabled(false); err != nil {
		d.log.Warn("systemd's watchdog cannot be understood and will not be fed", "error", err)
	} else if w > 0 {
		every = min(every, w/3)
	}
	var g gait
	said := ""
	for {
		if text := d.statusText(); text != said {
			notify(d.log, "STATUS="+text)
			said = text
		}
		turns, waiting := d.plane.Progress()
		now := time.Now()
		stuck := g.look(turns, waiting, now)
		if len(stuck) == 0 {
			notify(d.log, sd.SdNotifyWatchdog)
		}
		d.sayStuck(&g, stuck, now, every)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(beat.Next(every)):
		}
	}
}

// sayStuck tells of workers that were found stuck twice in a row: once may be a busy machine.
func (d *Daemon) sayStuck(g *gait, stuck []int, now time.Time, every time.Duration) {
	var who []string
	for _, i := range stuck {
		if now.Sub(g.moved[i]) > every+every/2 {
			who = append(who, fmt.Sprint(i))
		}
	}
	if len(who) == 0 {
		if d.health.set(workersStuck, "") {
			d.log.Info("all workers move again")
		}
		return
	}
	if d.health.set(workersStuck, "stuck in a packet or a system call: worker "+strings.Join(who, ", ")) {
		d.log.Error("a worker is stuck and forwards nothing; systemd will restart the daemon if it watches", "workers", who)
	}
}

// statusText is what `systemctl status` shows.
func (d *Daemon) statusText() string {
	s := d.state.Load()
	text := fmt.Sprintf("Forwarding: %s, MTU %d, %s, %s", s.kind, s.podMTU, plural(len(s.peers), "peer"), plural(d.plane.PortCount(), "pod"))
	if ok, why := d.health.ready(); !ok {
		text = "Not ready: " + why
	}
	if why := d.reloads.failure(); why != "" {
		text += "; the last reload was rejected: " + why
	}
	return strings.ReplaceAll(text, "\n", "; ")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
