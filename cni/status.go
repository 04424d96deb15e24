package cni

import (
	"context"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/forwarder/control"
)

// statusTimeout bounds STATUS also for a daemon that hangs: the answer is wanted in under a second.
const statusTimeout = 700 * time.Millisecond

// status is STATUS: can ADD succeed now, with this configuration? The daemon and a delegated ipam are asked at the same time.
func status(args *skel.CmdArgs) error {
	c, err := readConf(args)
	if err != nil {
		return err
	}
	if err := refuseList(args.StdinData); err != nil {
		return err
	}
	if err := checkKeys(args.StdinData); err != nil {
		return err
	}
	if err := c.checkStatic(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	ipam := make(chan error, 1)
	go func() {
		if c.delegated() == "" {
			ipam <- nil
			return
		}
		_, err := delegate(ctx, c.delegated(), "STATUS", args.StdinData)
		ipam <- err
	}()
	s, err := control.New(c.Socket).Status(ctx)
	switch {
	case err != nil:
		return fail(types.ErrPluginNotAvailable, "%v", err)
	case !s.Ready && s.Reason != "":
		return fail(types.ErrPluginNotAvailable, "penstockd is not ready: %s", s.Reason)
	case !s.Ready:
		return fail(types.ErrPluginNotAvailable, "penstockd is not ready")
	case s.State != nil:
		return fail(types.ErrPluginNotAvailable, "penstockd can add no pod: %s", s.State)
	}
	select {
	case err := <-ipam:
		if err != nil {
			return delegateError(c.delegated(), err)
		}
	case <-ctx.Done():
		return fail(types.ErrPluginNotAvailable, "ipam %s does not answer", c.delegated())
	}
	return nil
}
