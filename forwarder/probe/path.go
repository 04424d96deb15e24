package probe

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"time"
)

// A Target is a peer, as a probe needs to know it.
type Target struct {
	Node     netip.Addr // on the underlay
	NodeFrom netip.Addr // our own there
	Host     netip.Addr // the first address of one of its pod CIDRs
	HostFrom netip.Addr // our own, of the same family
	MTU      int        // the largest packet that is meant to reach it in one piece
}

// Answerers of a Path.
const (
	ByPenstock = "penstock" // the responder of the peer's daemon
	ByHost     = "icmp"     // the kernel of the peer's host
)

// A Path is what probes found out about the way to a peer.
type Path struct {
	Node    bool          // its underlay address answers ICMP echoes
	By      string        // who answered through the overlay; "" for nobody
	Refused bool          // its host answers through the overlay, but no responder does
	RTT     time.Duration // of a small packet
	Clock   time.Duration // the peer's clock less ours; ByPenstock only
	Passes  int           // the largest packet to it that was answered; up to Target.MTU
	Back    int           // the largest from it; ByPenstock only, 0 if it was not measured, and never more than what could be asked for
}

const (
	smallProbe = 96                     // bytes of the smallest IP packet that is sent: it reaches everybody who is there
	patience   = 400 * time.Millisecond // for an answer
	tries      = 3                      // until silence is believed
	quick      = 150 * time.Millisecond // the least that a search for a size waits for an answer, of which it wants many
)

// Path probes the way to a peer: is its node there, does anybody answer through the overlay, and how large may packets be?
// Every packet has DF set. It takes a few milliseconds where all is well, and up to ten seconds else.
//
// An answer is never longer than its question, so where the way there is the narrower one, the question that measures the way back
// goes in fragments, which the peer's kernel puts together.
func (p *Prober) Path(ctx context.Context, t Target) (Path, error) {
	var found Path
	node, err := ping(ctx, t.NodeFrom, t.Node, "")
	if err != nil {
		return found, err
	}
	defer node.conn.Close()
	defer closeWith(ctx, node.conn)()
	found.Node = repeat(ctx, func() error { _, err := node.echo(smallProbe, patience); return err }) == nil

	ask, err := p.ask(ctx, t.HostFrom, t.Host)
	if err != nil {
		return found, err
	}
	defer ask.Close()
	defer closeWith(ctx, ask.conn)()
	err = repeat(ctx, func() (err error) {
		found.RTT, found.Clock, err = ask.echo(smallProbe, smallProbe, patience)
		return err
	})
	if err == nil {
		found.By = ByPenstock
		wait := min(max(10*found.RTT, quick), patience)
		found.Passes = largest(ctx, t.MTU, 0, func(n int) error { _, _, err := ask.echo(n, smallProbe, wait); return err })
		top := t.MTU
		if found.Passes < top && p.cutAt(ctx, ask, t, found.Passes) != nil {
			top = found.Passes // no larger answer can be asked for
		}
		found.Back = largest(ctx, top, found.Passes, func(n int) error { _, _, err := ask.echo(top, n, wait); return err })
		return found, ctx.Err()
	}
	found.Refused = errors.Is(err, errRefused)
	host, err := ping(ctx, t.HostFrom, t.Host, p.device)
	if err != nil {
		return found, err
	}
	defer host.conn.Close()
	defer closeWith(ctx, host.conn)()
	if repeat(ctx, func() (err error) { found.RTT, err = host.echo(smallProbe, patience); return err }) == nil {
		found.By = ByHost
		found.Passes = largest(ctx, t.MTU, 0, func(n int) error { _, err := host.echo(n, patience); return err })
	}
	return found, ctx.Err()
}

// closeWith closes a socket when ctx ends, so that nobody goes on waiting for it.
func closeWith(ctx context.Context, c io.Closer) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.Close() })
}

// repeat tries until there is an answer; a refusal is one.
func repeat(ctx context.Context, try func() error) (err error) {
	for range tries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err = try(); err == nil || errors.Is(err, errRefused) {
			return err
		}
	}
	return err
}

const near = 8 // bytes

// largest finds the largest size that gets an answer, if smallProbe does: by halves, and at once if all of top does. A size
// gets two tries, and top three, as a packet that is lost is taken for one that is too big. It looks first around a guess: that of the way back is
// the way there, which is the same or a VLAN tag off. A guess of 0 is none.
func largest(ctx context.Context, top, guess int, try func(size int) error) int {
	passes := func(n int) bool {
		for range 2 {
			if ctx.Err() == nil && try(n) == nil {
				return true
			}
		}
		return false
	}
	if passes(top) || ctx.Err() == nil && try(top) == nil {
		return top
	}
	low, high := smallProbe, top // low passes, high does not
	for _, n := range []int{guess, guess + near, guess - near} {
		switch {
		case guess == 0 || n <= low || n >= high:
		case passes(n):
			low = n
		default:
			high = n
		}
	}
	for high-low > 1 && ctx.Err() == nil {
		mid := (low + high) / 2
		if high-low > 64 {
			mid = mid &^ 3 // MTUs are even numbers
		}
		if passes(mid) {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}
