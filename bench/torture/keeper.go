package torture

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// keeper is what systemd is to the daemon, and its murderer.
type keeper struct {
	x     *torture
	rand  *rand.Rand
	epoch atomic.Int64 // counts daemons; odd while one is ready, even otherwise
}

// run keeps a daemon running and kills it again and again until the kills are done. When it returns a daemon is ready.
func (k *keeper) run() {
	for !k.x.enough() {
		k.live()
	}
	k.settle()
}

func (k *keeper) launch() (*lab.Daemon, error) {
	d, err := k.x.n.Launch()
	if err != nil {
		k.x.fatal("the daemon cannot be started: %v", err)
		return nil, err
	}
	k.x.mu.Lock()
	defer k.x.mu.Unlock()
	k.x.daemons = append(k.x.daemons, d)
	return d, nil
}

// live is one daemon's life from its readiness, or its start, to its end.
func (k *keeper) live() {
	d := k.x.n.Daemon
	if d.Process.Exited() {
		var err error
		if d, err = k.launch(); err != nil {
			return
		}
		began := time.Now()
		if k.rand.Float64() < 0.45 && k.x.mayKillDaemon() {
			// While it starts: adoption, queued deletes and collection happen now.
			k.kill(d, scale(k.rand, k.x.pace.usual("start")*110/100), "while starting")
			return
		}
		if !k.ready(d) {
			return
		}
		k.x.pace.note("start", time.Since(began))
	}
	if !k.ready(d) {
		return
	}
	k.epoch.Add(1)
	for !k.x.mayKillDaemon() && !k.x.enough() {
		if d.Process.Exited() {
			k.x.fatal("the daemon ended by itself:\n%s", tail(d.Process.Output()))
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	if k.x.enough() {
		return
	}
	if k.rand.Float64() < 0.4 {
		// When a pod's file changes, which is in the middle of ADD and DEL.
		k.awaitChange(d)
		k.kill(d, logUniform(k.rand, 20*time.Microsecond, 20*time.Millisecond), "at a change")
		return
	}
	k.kill(d, logUniform(k.rand, 5*time.Millisecond, time.Second), "at any time")
}

// ready waits until the daemon is, and does what ExecStartPost does: penstock adopt.
func (k *keeper) ready(d *lab.Daemon) bool {
	deadline := time.Now().Add(60 * time.Second)
	for {
		if d.Process.Exited() {
			k.x.fatal("the daemon does not start:\n%s", tail(d.Process.Output()))
			return false
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		s, err := d.Control().Status(ctx)
		cancel()
		switch {
		case err == nil && s.Ready:
			return true
		case err == nil && s.Waiting > 0:
			k.adopt(d)
		case time.Now().After(deadline):
			k.x.fatal("the daemon is not ready after a minute: %+v, %v\n%s", s, err, tail(d.Process.Output()))
			return false
		default:
			time.Sleep(3 * time.Millisecond)
		}
	}
}

func (k *keeper) adopt(d *lab.Daemon) {
	cmd := exec.Command(k.x.program, "adopt", "--socket", d.Socket)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	f := fuse{}
	if k.rand.Float64() < 0.1 && !k.x.enough() {
		f = fuse{on: true, after: scale(k.rand, 50*time.Millisecond)}
	}
	switch o := k.x.run(cmd, f); {
	case o.killed:
		k.x.killed("adopt", "")
		k.x.count.add("adopt", "killed")
	case o.failure != nil: // a pod may have gone meanwhile; what waits still is seen by ready
		k.x.count.add("adopt", "incomplete")
		for line := range strings.Lines(out.String()) {
			if _, why, ok := strings.Cut(line, "/"+ifname+": "); ok {
				k.x.note("adopt: %s", strings.TrimSpace(why))
			}
		}
		time.Sleep(20 * time.Millisecond)
	default:
		k.x.count.add("adopt", "ok")
	}
}

// kill ends the daemon after a while and looks at what it has left.
func (k *keeper) kill(d *lab.Daemon, after time.Duration, when string) {
	time.Sleep(after)
	if k.epoch.Load()%2 == 1 {
		k.epoch.Add(1)
	}
	if d.Process.Exited() {
		k.x.fatal("the daemon ended by itself:\n%s", tail(d.Process.Output()))
		return
	}
	d.Kill()
	k.x.killed("daemon", when)
	// What a successor will find.
	phases, twice := map[string]bool{}, map[string]string{}
	for name, r := range k.x.records() {
		if r.Phase != "attached" {
			phases[r.Phase] = true
		}
		for _, a := range r.Addresses {
			if o := twice[a]; o != "" {
				k.x.errorf("address %s is in the state files %s and %s", a, o, name)
			}
			twice[a] = name
		}
	}
	if files, _ := filepath.Glob(filepath.Join(k.x.stateDir(), ".new-*")); len(files) > 0 {
		phases["half-written"] = true
	}
	if files, _ := filepath.Glob(filepath.Join(control.PendingDir(d.Socket), "*")); len(files) > 0 {
		phases["pending"] = true
	}
	for p := range phases {
		k.x.count.add("found after a daemon's death", p)
	}
	if len(phases) == 0 {
		k.x.count.add("found after a daemon's death", "only attached pods")
	}
}

// awaitChange returns when the directory of state files changes, or after a second.
func (k *keeper) awaitChange(d *lab.Daemon) {
	stamp := func() time.Time {
		if fi, err := os.Stat(k.x.stateDir()); err == nil {
			return fi.ModTime()
		}
		return time.Time{}
	}
	for before, end := stamp(), time.Now().Add(time.Second); stamp().Equal(before) && time.Now().Before(end); {
		time.Sleep(100 * time.Microsecond)
	}
}

// settle leaves a daemon that is ready.
func (k *keeper) settle() {
	d := k.x.n.Daemon
	if d.Process.Exited() {
		var err error
		if d, err = k.launch(); err != nil {
			return
		}
	}
	if k.ready(d) && k.epoch.Load()%2 == 0 {
		k.epoch.Add(1)
	}
}

// steady is whether a daemon was ready all the time since an epoch was read.
func (k *keeper) steady(since int64) bool { return since%2 == 1 && k.epoch.Load() == since }

// awaitSteady waits for a daemon that is ready and returns its epoch.
func (k *keeper) awaitSteady() int64 {
	for {
		if e := k.epoch.Load(); e%2 == 1 || k.x.dead() {
			return e
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func tail(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
