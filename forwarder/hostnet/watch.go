package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// settle is how long we wait after a change for the ones that come with it: a device that goes down loses its addresses
// and its routes one message each.
const settle = 50 * time.Millisecond

// lookAgain is when to look again, without any change, at what could not be looked at or not be followed. What cannot be followed is
// tried ever seldomer, down to once in lookAtMost: each try takes back what it has done, which costs the peers' streams, and causes
// changes by itself.
const (
	lookAgain  = time.Second
	lookAtMost = time.Minute
)

// The same bits as 1<<(RTNLGRP_…-1) for links, addresses and routes of both families (linux/rtnetlink.h, RTMGRP_*), for what routers
// announce of a link (RTMGRP_IPV6_IFINFO, since Linux 5.15 also a new MTU), and for the sysctls of forwarding and of reverse paths
// (RTNLGRP_IPV4_NETCONF is 24, RTNLGRP_IPV6_NETCONF 25).
const watchGroups = 1 | 0x10 | 0x40 | 0x100 | 0x400 | 0x800 | 1<<(24-1) | 1<<(25-1)

// WatchUnderlay calls fn once at the start, and then whenever what find(addr), FindUnderlay or FindUplink, says is not what it said
// before: a new MTU, up or down, on another device, or gone (the error is ErrNoAddress then). With any other error nothing is known
// but that it cannot be looked at, which is told once. What could not be looked at, and what fn has returned an error for, is looked
// at again lookAgain later, the latter after ever more time up to lookAtMost while it stays as it is. It blocks until ctx is done
// (nil) or netlink fails. fn runs on the calling goroutine.
func WatchUnderlay(ctx context.Context, addr netip.Addr, find func(netip.Addr) (Underlay, error), fn func(Underlay, error) error) error {
	return watchUnderlay(ctx, addr, lookAgain, find, fn)
}

// watchUnderlay is WatchUnderlay with another time for lookAgain.
func watchUnderlay(ctx context.Context, addr netip.Addr, again time.Duration, find func(netip.Addr) (Underlay, error), fn func(Underlay, error) error) error {
	var last Underlay
	gone, blind := false, false               // the last was no device; it cannot be looked at
	refused := errors.New("fn was not asked") // why the last was not taken
	var rest time.Duration                    // until fn is asked again
	var due time.Time
	look := func() error {
		u, err := find(addr)
		none := errors.Is(err, ErrNoAddress)
		if err != nil && !none {
			if !blind {
				fn(u, err)
			}
			blind = true
			return err
		}
		blind = false
		same := u == last && none == gone
		switch {
		case same && (refused == nil || time.Now().Before(due)):
			return refused
		case !same:
			rest = 0
		}
		last, gone = u, none
		refused = fn(u, err)
		rest = min(max(2*rest, again), lookAtMost)
		due = time.Now().Add(rest)
		return refused
	}
	return watch(ctx, routeChanges, again, look, look)
}

// WatchRoutes calls fn after each change of links, addresses or routes, whoever made it; changes close together make
// one call. It blocks like WatchUnderlay.
func WatchRoutes(ctx context.Context, fn func()) error {
	return watch(ctx, routeChanges, lookAgain, nothing, always(fn))
}

func nothing() error { return nil }

// always is fn where nothing can go wrong.
func always(fn func()) func() error { return func() error { fn(); return nil } }

// WatchRules calls fn after each change of a table of ours in nftables, by us or by somebody else: `nft flush ruleset`, or
// a restart of nftables.service, takes it away. It blocks like WatchUnderlay.
func WatchRules(ctx context.Context, fn func()) error {
	return watch(ctx, ruleChanges, lookAgain, nothing, always(fn))
}

// changes is what watch subscribes to.
type changes struct {
	what   string
	family int
	groups uint32
	ours   func(netlink.Message) bool // nil: every message
}

var (
	routeChanges = changes{what: "links, addresses and routes", family: unix.NETLINK_ROUTE, groups: watchGroups}
	// NFNLGRP_NFTABLES is 7 (linux/netfilter/nfnetlink.h).
	ruleChanges = changes{what: "nft rules", family: unix.NETLINK_NETFILTER, groups: 1 << (7 - 1), ours: namesOurTable}
)

// namesOurTable reports whether a message of nf_tables is about a table of ours: in all of them, of tables, chains, rules,
// sets and their elements, the first kind of attribute is the table's name. What cannot be read may be.
func namesOurTable(m netlink.Message) bool {
	if len(m.Data) < 4 {
		return true
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:]) // behind struct nfgenmsg
	if err != nil {
		return true
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_TABLE_NAME {
			name := ad.Bytes()
			return string(name) == TableName+"\x00"
		}
	}
	return ad.Err() != nil
}

// watch subscribes, calls start, and calls fn after each burst of changes, and again later after either has returned an error. A message
// says only that something happened: who wants to know what, asks. So one that was lost for want of space (ENOBUFS) says all it
// could say.
func watch(ctx context.Context, c changes, again time.Duration, start, fn func() error) error {
	conn, err := netlink.Dial(c.family, &netlink.Config{Groups: c.groups})
	if err != nil {
		return fmt.Errorf("cannot watch %s: %w", c.what, err)
	}
	changed := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		for {
			messages, err := conn.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				ended <- err
				return
			}
			if err == nil && c.ours != nil && !slices.ContainsFunc(messages, c.ours) {
				continue
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	var failure error
	defer func() {
		conn.Close()
		if failure == nil {
			<-ended // no goroutine outlives the call
		}
	}()
	var next <-chan time.Time
	call := func(f func() error) {
		next = nil
		if f() != nil {
			next = time.After(again)
		}
	}
	call(start) // after the subscription: nothing falls between
	for {
		select {
		case <-ctx.Done():
			return nil
		case failure = <-ended:
			return fmt.Errorf("cannot watch %s any more: %w", c.what, failure)
		case <-changed:
		case <-next:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		select {
		case <-changed:
		default:
		}
		call(fn)
	}
}
