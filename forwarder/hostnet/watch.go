package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// settle is how long we wait after a change for the ones that come with it: a device that goes down loses its addresses
// and its routes one message each.
const settle = 50 * time.Millisecond

// The same bits as 1<<(RTNLGRP_…-1) for links, addresses and routes of both families (linux/rtnetlink.h, RTMGRP_*).
const watchGroups = 1 | 0x10 | 0x40 | 0x100 | 0x400

// WatchUnderlay calls fn once at the start, and then whenever what FindUnderlay(addr) says is not what it said before: a
// new MTU, up or down, on another device, or gone (the error is ErrNoAddress then). It blocks until ctx is done (nil) or
// netlink fails. fn runs on the calling goroutine.
func WatchUnderlay(ctx context.Context, addr netip.Addr, fn func(Underlay, error)) error {
	var last Underlay
	var lastErr error
	look := func(first bool) {
		u, err := FindUnderlay(addr)
		if !first && u == last && (err == nil) == (lastErr == nil) && errors.Is(err, ErrNoAddress) == errors.Is(lastErr, ErrNoAddress) {
			return
		}
		last, lastErr = u, err
		fn(u, err)
	}
	return watch(ctx, func() { look(true) }, func() { look(false) })
}

// WatchRoutes calls fn after each change of links, addresses or routes, whoever made it; changes close together make
// one call. It blocks like WatchUnderlay.
func WatchRoutes(ctx context.Context, fn func()) error {
	return watch(ctx, func() {}, fn)
}

// watch subscribes, calls start, and calls fn after each burst of changes. A message says only that something happened:
// who wants to know what, asks. So one that was lost for want of space (ENOBUFS) says all it could say.
func watch(ctx context.Context, start, fn func()) error {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: watchGroups})
	if err != nil {
		return fmt.Errorf("hostnet: cannot watch links, addresses and routes: %w", err)
	}
	changed := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		for {
			_, err := conn.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				ended <- err
				return
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
	start() // after the subscription: nothing falls between
	for {
		select {
		case <-ctx.Done():
			return nil
		case failure = <-ended:
			return fmt.Errorf("hostnet: cannot watch links, addresses and routes any more: %w", failure)
		case <-changed:
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
		fn()
	}
}
