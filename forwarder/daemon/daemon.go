package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/penstock-net/penstock/forwarder/control/server"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/table/feed/static"
)

// stopTimeout bounds each half of stopping: requests under way, and what the workers still have in hand. Both fit the unit's
// TimeoutStopSec.
const stopTimeout = 5 * time.Second

// Options are what the command line says.
type Options struct {
	Config string    // path of the configuration file
	Level  string    // of the log: debug, info (if empty), warn or error
	Log    io.Writer // os.Stderr if nil
}

// Daemon is one running penstockd.
type Daemon struct {
	machine machine
	path    string // of the configuration file
	level   slog.LevelVar
	log     *slog.Logger
	started time.Time
	reader  configReader

	workers  int
	listener *server.Listener
	disclaim func() error // gives the network namespace up
	server   *server.Server
	debug    []*debugListener
	plane    plane
	host     host
	flows    flows   // nil without conntrack
	uplinks  uplinks // nil where superframes cannot leave whole and there is no tcp carrier
	prober   prober  // answers other nodes' doctor and bench, and asks for ours
	peers    *static.Feed

	state  atomic.Pointer[state]
	health health

	reloads    reloads
	timed      timed                   // ourselves, for the control socket
	unrepaired said                    // why watchHost could not put something back
	lacking    time.Time               // since when watchHost's looks at the host fail
	gone       map[control.PodKey]bool // veth pods that watchHost has found without device and network namespace
	strays     said                    // why node.address, which is not set, would be another now; change is held
	unheard    said                    // why the control socket could not be put back
	unkept     said                    // why pods' records could not be
	unfollowed said                    // why the underlay's change could not be followed; change is held

	kick      chan struct{} // watchHost is to look
	nudge     chan struct{} // watchPending is to look
	reloading sync.Mutex    // one reload at a time; the feed's lock and change are taken under it
	change    sync.Mutex    // one change at a time: reload, peers, underlay. The feed is not told under it: it holds its lock while it waits for change

	pods      *pods
	spared    map[string]bool // devices that are no orphans though no pod has them; fixed by start
	gate      *gate
	up        chan struct{} // closed when requests about pods may begin
	waitMu    sync.Mutex
	awaited   []netip.Addr // of pods that wait, as the forwarder knows them
	restored  bool         // restorePods knows of each what becomes of it
	impatient bool         // pods that wait for adoption keep us no longer from being ready
}

func newDaemon(m machine, o Options) (*Daemon, error) {
	path, err := filepath.Abs(o.Config) // others are told it, and stand elsewhere
	if err != nil {
		return nil, fmt.Errorf("the configuration's path %s cannot be made absolute: %w", o.Config, err)
	}
	d := &Daemon{machine: m, path: path, started: time.Now(), pods: newPods(), gate: newGate(gatePlaces), up: make(chan struct{}), kick: make(chan struct{}, 1), nudge: make(chan struct{}, 1)}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	d.log = newLogger(o.Log, &d.level)
	d.reader = newConfigReader(path)
	d.health.set(phase, "the daemon is starting")
	if o.Level != "" {
		l, err := parseLevel(o.Level)
		if err != nil {
			return nil, err
		}
		d.level.Set(l)
	}
	return d, nil
}

// Run is penstockd: it starts, runs until SIGTERM or SIGINT or the end of ctx, and stops. What it made in the kernel stays for
// its successor.
func Run(ctx context.Context, o Options) error {
	d, err := newDaemon(linux{}, o)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	return d.run(ctx, hangup)
}

func (d *Daemon) run(ctx context.Context, hangup <-chan os.Signal) error {
	notify(d.log, "STATUS=Starting")
	if err := d.start(ctx); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) && !errors.Is(err, errUndo) {
			d.log.Info("stopped before the start was complete; what it had done is undone")
			return nil
		}
		return err
	}
	defer d.listener.Release() // last of all: a successor may start now
	defer d.pods.store.Close()
	defer d.disclaim()

	// Everything that goes on in the background ends with ctx or with the first failure.
	background, cancel := context.WithCancel(ctx)
	defer cancel()
	g, background := errgroup.WithContext(background)
	g.Go(func() error { return d.server.Serve(d.listener) })
	for _, l := range d.debug {
		g.Go(func() error { return l.serve(background) })
	}
	g.Go(func() error { return d.watchUnderlay(background) })
	g.Go(func() error { return d.watchHost(background) })
	g.Go(func() error { return d.peers.Run(background, d.setPeers) })
	if d.flows != nil {
		g.Go(func() error { return d.watchFlows(background) })
	}
	if d.uplinks != nil {
		g.Go(func() error { return d.watchUplinks(background) })
	}
	g.Go(func() error { return d.watchPending(background) })
	g.Go(func() error { return d.waitForAdoption(background) })
	g.Go(func() error { return d.watchWorkers(background) })
	g.Go(func() error { return d.watchHangup(background, hangup) })
	d.plane.Start()
	d.health.set(phase, "")
	close(d.up)
	notify(d.log, sd.SdNotifyReady+"\nSTATUS="+d.statusText())
	s := d.state.Load()
	d.log.Info("forwarding", "node", s.cfg.Node.Name, "address", s.cfg.Node.Address, "encap", s.kind.String(), "mtu", s.podMTU, "workers", d.workers,
		"peers", len(s.peers), "socket", s.cfg.Control.Socket, "version", control.Version(), "took", time.Since(d.started).Round(time.Millisecond).String())

	<-background.Done()
	return d.stop(g, cancel)
}

// stop drains and closes. Routes, devices and rules stay: a successor carries on with them.
func (d *Daemon) stop(g *errgroup.Group, cancel context.CancelFunc) error {
	d.health.set(phase, "the daemon is stopping")
	notify(d.log, sd.SdNotifyStopping)
	requests, done := context.WithTimeout(context.Background(), stopTimeout)
	defer done()
	if err := d.server.Shutdown(requests); err != nil {
		d.log.Warn("requests were still under way on the control socket", "error", err)
	}
	cancel()
	for _, l := range d.debug {
		l.close()
	}
	err := g.Wait() // nil unless something failed by itself
	// Time of their own: a request that would not end must not cost what the workers have in hand.
	workers, done := context.WithTimeout(context.Background(), stopTimeout)
	defer done()
	if e := d.plane.Stop(workers); e != nil {
		err = errors.Join(err, fmt.Errorf("the workers did not stop cleanly: %w", e))
	}
	d.closeQuietly()
	if err == nil {
		d.log.Info("stopped; routes, devices and rules stay (penstockd --cleanup removes them)")
	}
	return err
}

func (d *Daemon) closeQuietly() {
	if d.prober != nil {
		d.prober.Close()
	}
	if d.flows != nil {
		d.flows.Close()
	}
}

// Check is penstockd check: it says what is wrong with a configuration file, as far as the file alone can tell.
func Check(path string) error {
	_, err := config.Load(path)
	return err
}

// Cleanup is penstockd --cleanup: it removes everything that a daemon with this configuration has made in the kernel. No such
// daemon may be running. It works without a configuration file too, with the default names.
func Cleanup(ctx context.Context, o Options) error { return cleanup(ctx, linux{}, o) }

func cleanup(ctx context.Context, m machine, o Options) error {
	d, err := newDaemon(m, o)
	if err != nil {
		return err
	}
	cfg, err := config.LoadRegular(o.Config)
	if errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("there is no configuration file; cleaning up by the default names", "config", o.Config)
		cfg, err = config.Default(), nil
	}
	if err != nil {
		return err
	}
	l, err := server.Listen(ctx, cfg.Control.Socket) // also takes a dead daemon's socket away
	if err != nil {
		return err
	}
	defer l.Release()
	release, err := m.Claim() // a daemon with another socket would lose its devices
	if err != nil {
		return err
	}
	defer release()
	old, oldErr := removeOldDevice(m, cfg, func(string) bool { return false })
	podsGone, podsErr := d.cleanupPods(m, cfg)
	if old != "" {
		podsGone = append(podsGone, "device "+old)
	}
	report, err := m.Cleanup(ctx, cfg.Host.Device)
	report.Removed = append(podsGone, report.Removed...)
	err = errors.Join(oldErr, podsErr, err)
	for _, what := range report.Removed {
		d.log.Info("removed", "what", what)
	}
	if err != nil {
		return err
	}
	d.log.Info("clean", "device", cfg.Host.Device)
	return nil
}

// workersFor is how many workers a configuration asks for. 0 is one for two of the cores that this process may use (Go's
// default for GOMAXPROCS knows the affinity mask and the cgroup's limit): a worker takes the work off others' hands that the
// kernel's tunnel would do on theirs, and the pods need the rest. On two cores a second worker costs a third of the rate.
func workersFor(configured int) int {
	if configured > 0 {
		return configured
	}
	return max(1, runtime.GOMAXPROCS(0)/2)
}
