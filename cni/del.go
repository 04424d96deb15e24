package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/forwarder/control"
)

// detachTimeout is for a daemon that hangs; what it does not do now is queued for it. Tests shorten it.
var detachTimeout = 5 * time.Second

// del is DEL. It needs nothing but container, interface and the socket, and it goes on to the end whatever fails on the way. Only
// what would leak for good is an error, for the runtime to come again: a request that could not even be queued, a device that
// cannot be removed, an ipam plugin that fails.
func del(args *skel.CmdArgs) error {
	args.NetnsOverride = "1" // skel would end in an error where CNI_NETNS has become the host's own
	conf, err := readConf(args)
	if err != nil { // whatever ADD made of it, it is not what it was called with
		conf.salvage(args.StdinData)
		fmt.Fprintf(os.Stderr, "penstock: DEL goes on with the socket %s: %v\n", conf.Socket, err)
	}
	if err := checkKeys(args.StdinData); err != nil { // "socket" misspelt, and another daemon is asked than the pod's
		fmt.Fprintln(os.Stderr, "penstock: DEL goes on though the configuration is misspelt:", err)
	}
	var errs []error
	if err := detach(control.New(conf.Socket), conf, args, detachTimeout); err != nil {
		errs = append(errs, err)
	}
	if err := removeDevices(args); err != nil {
		errs = append(errs, err)
	}
	if ipam := conf.delegated(); ipam != "" && conf.Attach != control.AttachRouted {
		ctx, cancel := context.WithTimeout(context.Background(), 2*detachTimeout)
		defer cancel()
		if _, err := delegate(ctx, ipam, "DEL", args.StdinData); err != nil {
			errs = append(errs, fmt.Errorf("ipam %s: %w", ipam, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fail(types.ErrInternal, "the pod is not wholly taken off the network: %v", err)
	}
	return nil
}

// salvage reads each key by itself: some values end the reading of all that stands behind them.
func (c *netConf) salvage(stdin []byte) {
	var keys map[string]json.RawMessage
	json.Unmarshal(stdin, &keys)
	for key, v := range keys {
		if one, err := json.Marshal(map[string]json.RawMessage{key: v}); err == nil {
			json.Unmarshal(one, c)
		}
	}
	if !filepath.IsAbs(c.Socket) {
		c.Socket = control.DefaultSocket
	}
}

// detach tells the daemon, or queues it.
func detach(daemon *control.Client, conf *netConf, args *skel.CmdArgs, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	q := control.DetachRequest{Container: args.ContainerID, Interface: args.IfName, Network: conf.Name}
	err := daemon.Detach(ctx, q)
	if err == nil {
		return nil
	}
	if e := control.WritePending(conf.Socket, q); e != nil {
		return fmt.Errorf("%w; and it could not be queued: %w", err, e)
	}
	fmt.Fprintln(os.Stderr, "penstock: what is to be undone is queued for penstockd, in "+control.PendingDir(conf.Socket)+":", err)
	return nil
}

// removeDevices removes what ADD may have made, as far as it is there: the veth's host end (its peer goes with it), a TUN
// in the pod, or on the node where the daemon has made it for who attaches by hand, the pod's rules. A routed pod has none of them.
func removeDevices(args *skel.CmdArgs) error {
	device := control.DeviceName(args.ContainerID, args.IfName)
	host, err := hostNetns()
	if err != nil {
		return err
	}
	defer host.close()
	var errs []error
	if _, err := removeVeth(host, device); err != nil {
		errs = append(errs, err)
	}
	if err := removeTUN(host, device, device); err != nil {
		errs = append(errs, err)
	}
	pod, err := openNetns(args.Netns)
	if err != nil { // gone, and everything in it
		return errors.Join(errs...)
	}
	defer pod.close()
	if !pod.same(host) {
		errs = append(errs, removeTUN(pod, device, args.IfName))
	}
	if pod.lacks(args.IfName) { // or the rules are those of another container's interface, as the device is
		errs = append(errs, pod.removeRules(args.IfName))
	}
	return errors.Join(errs...)
}
