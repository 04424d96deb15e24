package hostflow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/beat"
)

// ErrNoConntrack says that this kernel has no conntrack, or none that can be asked. It translates no flows then, so
// there is nothing to remember.
var ErrNoConntrack = errors.New("the kernel has no conntrack netlink (modules nf_conntrack and nf_conntrack_netlink), so it translates no flows and none are remembered")

// A Sink is the memory of flows that belong to the host; the forwarder's. It is called by one goroutine at a time,
// while workers write to it. Workers remember a flow anew with every packet that they read from the host, so a Forget that
// crossed a packet heals with the next one.
type Sink interface {
	// Preload remembers a flow if reply.Dst is, or may become, a local pod that is not `routed`. Idempotent.
	Preload(reply Tuple)
	// Has reports whether it is remembered. Asked for each entry that the host's conntrack destroys, so it should be cheap.
	Has(reply Tuple) bool
	// Forget removes it wherever it is.
	Forget(reply Tuple)
	// Known yields what is remembered. A flow that comes or goes meanwhile may be missing.
	Known(yield func(Tuple) bool)
}

// Config is what a Tracker needs.
type Config struct {
	Sink       Sink
	Log        *slog.Logger  // nil: slog.Default()
	ReadBuffer int           // bytes for events that wait; 0: 8 MiB
	Audit      time.Duration // how often all that is remembered is checked; 0: 30 s
}

// Stats counts since Open.
type Stats struct {
	Preloaded uint64 // flows of the dump handed to the Sink
	Destroyed uint64 // events about flows that the Sink had
	Forgotten uint64 // flows that were gone
	Kept      uint64 // flows with an event that were there all the same: their tuple had been used again
	Overruns  uint64 // times that events were lost
	Audits    uint64
	Malformed uint64 // messages that could not be read
}

// A Tracker connects conntrack with a Sink: Open, then Load, then Run.
type Tracker struct {
	sink   Sink
	log    *slog.Logger
	audit  time.Duration
	events *netlink.Conn

	mu     sync.Mutex // Load and Run act on the Sink in turn
	query  *netlink.Conn
	broken bool // an answer is missing or half read: query must be opened anew

	preloaded, destroyed, forgotten, kept, overruns, audits, malformed atomic.Uint64
}

// groupDestroy is NFNLGRP_CONNTRACK_DESTROY.
const groupDestroy = 3

// Open subscribes to the ends of flows, in the network namespace of the calling thread: before the dump, so that none
// falls between.
func Open(cfg Config) (*Tracker, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.ReadBuffer == 0 {
		cfg.ReadBuffer = 8 << 20
	}
	if cfg.Audit == 0 {
		cfg.Audit = 30 * time.Second
	}
	t := &Tracker{sink: cfg.Sink, log: cfg.Log, audit: cfg.Audit}
	var err error
	// An event is about 300 bytes. Answers to a dump come in pieces as large as the buffer, up to 32 KiB.
	if t.events, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 8 << 10}); err != nil {
		return nil, openError(err)
	}
	if err = t.events.SetReadBuffer(cfg.ReadBuffer); err == nil {
		err = t.events.JoinGroup(groupDestroy)
	}
	if err == nil {
		t.query, err = dialQuery()
	}
	if err != nil {
		t.Close()
		return nil, openError(err)
	}
	if err := t.probe(); err != nil {
		t.Close()
		return nil, openError(err)
	}
	return t, nil
}

func dialQuery() (*netlink.Conn, error) {
	return netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{MessageBufferSize: 64 << 10})
}

// ready gives a socket on which no answer is on its way, good for one question: whoever has read all answers says so by
// clearing broken.
func (t *Tracker) ready() error {
	if t.broken {
		conn, err := dialQuery()
		if err != nil {
			return err
		}
		t.query.Close()
		t.query = conn
	}
	t.broken = true
	return t.query.SetDeadline(time.Now().Add(patience))
}

func openError(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("cannot ask conntrack: %w; the daemon needs CAP_NET_ADMIN", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		// nfnetlink answers EINVAL for a part that is not there (net/netfilter/nfnetlink.c).
		return fmt.Errorf("%w (%v)", ErrNoConntrack, err)
	}
	return fmt.Errorf("cannot ask conntrack: %w", err)
}

// Close ends a Run as well.
func (t *Tracker) Close() error {
	err := t.events.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.query != nil {
		err = errors.Join(err, t.query.Close())
	}
	return err
}

// Stats may be called at any time.
func (t *Tracker) Stats() Stats {
	return Stats{Preloaded: t.preloaded.Load(), Destroyed: t.destroyed.Load(), Forgotten: t.forgotten.Load(), Kept: t.kept.Load(),
		Overruns: t.overruns.Load(), Audits: t.audits.Load(), Malformed: t.malformed.Load()}
}

// Load hands every translated flow to the Sink. Call it when the Sink knows which addresses are local, and before
// forwarding starts: an answer that comes earlier would go to the pod, which answers it with a reset.
func (t *Tracker) Load(ctx context.Context) (n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.dump(ctx, func(e *entry) {
		if e.translated() {
			t.sink.Preload(e.reply.tuple())
			n++
		}
	})
	t.preloaded.Add(uint64(n))
	if err != nil {
		return n, fmt.Errorf("cannot read the host's flows: %w", err)
	}
	return n, nil
}

// report is what the reader has for Run.
type report struct {
	entry   entry
	overrun bool
	err     error // the last report
}

// batch is how many flows are asked for at once.
const batch = 64

// quiet is how long no event must come for the socket to count as read empty.
const quiet = 10 * time.Millisecond

// Run listens and checks until ctx is done (nil) or conntrack cannot be asked any more.
func (t *Tracker) Run(ctx context.Context) error {
	reports := make(chan report, 1024)
	stop := make(chan struct{})
	read := make(chan struct{})
	go func() {
		defer close(read)
		t.read(reports, stop)
	}()
	defer func() {
		close(stop)
		t.events.SetReadDeadline(time.Unix(1, 0))
		<-read
		t.events.SetReadDeadline(time.Time{})
	}()

	audit := time.NewTimer(beat.Next(t.audit))
	defer audit.Stop()
	overrun := false
	overrunSince := time.Time{}
	for {
		var idle <-chan time.Time
		if overrun {
			idle = time.After(quiet)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-audit.C:
			took, err := t.check(ctx)
			if err != nil {
				return err
			}
			// At most a hundredth of the time goes into audits, however many flows there are.
			audit.Reset(max(beat.Next(t.audit), 100*took))
		case <-idle:
			overrun = false
			if _, err := t.check(ctx); err != nil {
				return err
			}
		case r := <-reports:
			lost, err := t.take(r, reports)
			if err != nil {
				return err
			}
			if lost {
				if !overrun {
					overrunSince = time.Now()
				}
				overrun = true
			}
			if overrun && time.Since(overrunSince) > time.Second {
				// Events come without a pause. Check now, and once more when they pause or a second later.
				overrunSince = time.Now()
				if _, err := t.check(ctx); err != nil {
					return err
				}
			}
		}
	}
}

// read turns messages into reports, until stop is closed or the socket fails.
func (t *Tracker) read(to chan<- report, stop <-chan struct{}) {
	for {
		r := report{}
		msgs, err := t.events.Receive()
		switch {
		case err == nil:
			for _, m := range msgs {
				if !decode(m.Data, &r.entry) {
					t.malformed.Add(1)
					continue
				}
				select {
				case to <- r:
				case <-stop:
					return
				}
			}
			continue
		case errors.Is(err, unix.ENOBUFS):
			t.overruns.Add(1)
			r.overrun = true
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			r.err = fmt.Errorf("cannot listen to conntrack any more: %w", err)
		}
		select {
		case to <- r:
		case <-stop:
			return
		}
		if r.err != nil {
			return
		}
	}
}

// take settles one report and those that wait behind it, up to a batch.
func (t *Tracker) take(r report, more <-chan report) (lost bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ask []question
	for {
		switch {
		case r.err != nil:
			return lost, r.err
		case r.overrun:
			lost = true
		default:
			if q := (question{r.entry.reply.tuple(), r.entry.replyZone()}); t.sink.Has(q.tuple) {
				t.destroyed.Add(1)
				ask = append(ask, q)
			}
		}
		if len(ask) == batch {
			break
		}
		select {
		case r = <-more:
			continue
		default:
		}
		break
	}
	return lost, t.settle(ask)
}
