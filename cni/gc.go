package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/forwarder/control"
)

const gcTimeout = 30 * time.Second

// gc is GC: what is not valid any more goes. Without a list nothing is valid, as with the reference plugins.
func gc(args *skel.CmdArgs) error {
	c, err := readConf(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), gcTimeout)
	defer cancel()
	q := control.GCRequest{Network: c.Name, Valid: []control.PodKey{}}
	said := map[control.PodKey]bool{}
	for _, v := range append(c.ValidAttachments, c.Attachments...) { // libcni gives one list under both names
		k := control.PodKey{Container: v.ContainerID, Interface: v.IfName}
		if !said[k] {
			q.Valid = append(q.Valid, k)
		}
		said[k] = true
	}
	var errs []error
	r, err := control.New(c.Socket).GC(ctx, q)
	for _, f := range r.Failed {
		errs = append(errs, fmt.Errorf("%s of container %s: %s", f.Interface, f.Container, f.Error))
	}
	if ipam := c.delegated(); ipam != "" && c.Attach != control.AttachRouted {
		if _, err := delegate(ctx, ipam, "GC", args.StdinData); err != nil {
			errs = append(errs, fmt.Errorf("ipam %s: %w", ipam, err))
		}
	}
	switch {
	case err != nil && len(errs) == 0:
		return fromDaemon(err)
	case err != nil:
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fail(types.ErrInternal, "not everything could be collected: %v", err)
	}
	return nil
}
