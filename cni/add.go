package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet/advertised"
)

// waitForDaemon is how long ADD waits for a daemon that starts. A runtime wants an answer within ten seconds. Tests shorten it.
var waitForDaemon = 8 * time.Second

const undoTimeout = time.Second // a daemon that has just let ADD down gets no long second chance: what it must undo is queued

// adding is one ADD under way.
type adding struct {
	*request
	daemon *control.Client
	host   *netns
	pod    *netns
	lease  control.Allocation
	ours   []netip.Addr // of the lease, what the pod gets
	link   netlink.Link // the pod's interface, once it was looked at
	queue  *os.File     // of the pod's TUN, once that was made

	foreignMTU int // of a routed pod's interface, as the plugin before has made it

	result *current.Result
	undo   undoList
}

// add is ADD. What it did before a step failed it takes back; what it did before it was killed the next DEL, GC or start of the
// daemon takes back.
func add(args *skel.CmdArgs) error {
	if err := checkEnvironment(args); err != nil {
		return err
	}
	r, err := read(args)
	if err != nil {
		return err
	}
	a := &adding{request: r, daemon: control.New(r.conf.Socket), result: r.previous}
	if a.host, err = hostNetns(); err != nil {
		return fail(types.ErrInternal, "the plugin's own network namespace cannot be opened: %v", err)
	}
	defer a.host.close()
	if err := a.openPod(); err != nil {
		return err
	}
	defer a.pod.close()
	defer a.closeQueue()

	ctx, cancel := context.WithTimeout(context.Background(), waitForDaemon)
	defer cancel()
	done := false
	defer func() {
		if !done { // a step has failed, or panicked
			a.undo.run()
		}
	}()
	steps := []func(context.Context) error{a.checkFree, a.reserve, a.prepareHost, a.makeVeth, a.configure, a.attachPort, a.waitUp}
	switch a.attach {
	case control.AttachTUN:
		steps = []func(context.Context) error{a.checkFree, a.reserve, a.prepareHost, a.makeTUN, a.configure, a.attachPort}
	case control.AttachRouted:
		steps = []func(context.Context) error{a.checkForeign, a.reserve, a.prepareHost, a.checkHostRoutes, a.checkNeighbours, a.setForeignMTU, a.attachPort}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	err = printResult(a.result, a.conf.CNIVersion)
	done = err == nil
	return err
}

// printResult: the MTU of an interface and all of a route but dst and gw came with CNI 1.1, and the library writes them into older
// results too.
func printResult(r *current.Result, v string) error {
	if v != "1.1.0" {
		for _, i := range r.Interfaces {
			i.Mtu = 0
		}
		for i, o := range r.Routes {
			r.Routes[i] = &types.Route{Dst: o.Dst, GW: o.GW}
		}
	}
	return types.PrintResult(r, v)
}

// checkEnvironment refuses what skel lets pass. The path stays on record, and the daemon, which looks there, has another working directory.
func checkEnvironment(args *skel.CmdArgs) error {
	switch {
	case !filepath.IsAbs(args.Netns):
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %s is not an absolute path", args.Netns)
	case strings.ContainsFunc(args.IfName, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_IFNAME %q is no device name: it has a space, a control character or one beyond ASCII in it", args.IfName)
	}
	return nil
}

// openPod opens CNI_NETNS. Skel compares it with the plugin's own only after ADD has done its work.
func (a *adding) openPod() (err error) {
	a.pod, err = openNetns(a.Netns)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %s does not exist", a.Netns)
	case errors.Is(err, errNotNetns):
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %s is not a network namespace", a.Netns)
	case err != nil:
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %s cannot be opened: %v", a.Netns, err)
	case a.pod.same(a.host) && !overridden(a.NetnsOverride):
		a.pod.close()
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %s is the host's own network namespace, not a pod's", a.Netns)
	}
	return nil
}

// overridden is CNI_NETNS_OVERRIDE as skel reads it.
func overridden(s string) bool { return s == "1" || strings.EqualFold(s, "true") }

// checkFree looks before anything is done, so that nothing of an interface that is in use gets taken back.
func (a *adding) checkFree(context.Context) error {
	if a.pod.lacks(a.IfName) {
		return nil
	}
	switch _, err := a.pod.route.LinkByName(a.IfName); {
	case err == nil:
		return invalid("CNI_IFNAME %s exists already in %s: DEL what made it, or ask for another name", a.IfName, a.Netns)
	case !isNotFound(err):
		return fail(types.ErrInternal, "the devices in %s cannot be read: %v", a.Netns, err)
	}
	return nil
}

// reserve gets the pod its addresses, from an ipam plugin or from the daemon. They are on the daemon's disk when it returns.
func (a *adding) reserve(ctx context.Context) error {
	foreign, err := a.foreign(ctx)
	if err != nil {
		return err
	}
	q := control.AllocateRequest{
		Container: a.ContainerID, Interface: a.IfName, Network: a.conf.Name, Netns: a.Netns, Attach: a.attach,
		Requested: a.requested, Addresses: foreign, Owner: a.owner, MTU: cmp.Or(a.mtu, a.foreignMTU),
	}
	if q.NetnsID, err = control.NetnsID(a.Netns); err != nil {
		return fail(types.ErrInvalidEnvironmentVariables, "CNI_NETNS %s: %v", a.Netns, err)
	}
	if !hasIPv6() {
		if i := slices.IndexFunc(a.requested, netip.Addr.Is6); i >= 0 {
			return invalid("%s cannot be given: this kernel has IPv6 off", a.requested[i])
		}
		if len(foreign) == 0 {
			q.Families = []int{4}
		}
	}
	// From here on something may be there. The daemon tells an ADD that was done before from one that is under way.
	release, heard := a.undo.add(a.release), false
	err = patiently(ctx, func(ctx context.Context) (err error) {
		a.lease, err = a.daemon.Allocate(ctx, q)
		heard = heard || !errors.Is(err, control.ErrUnreachable)
		return err
	})
	if err != nil {
		if answered(err) || !heard { // nothing was reserved, and what stands under the same key is somebody's
			a.undo.forget(release)
		}
		return fromDaemon(err)
	}
	if a.lease.Phase == control.PhaseAttached {
		a.undo.forgetAll()
		return invalid("%s of container %s is attached already: DEL it first", a.IfName, a.ContainerID)
	}
	a.ours = a.lease.Addresses
	if err := checkNodeMTU(a.mtu, a.lease.NodeMTU); err != nil {
		return err
	}
	if i := slices.IndexFunc(a.ours, netip.Addr.Is6); i >= 0 && a.lease.MTU < minMTU6 {
		return invalid("mtu %d is too small for IPv6, which needs %d, and %s is an address of the pod", a.lease.MTU, minMTU6, a.ours[i])
	}
	return nil
}

// minMTU6 is the least MTU of a link that carries IPv6 (RFC 8200, section 5).
const minMTU6 = 1280

// foreign are the addresses that another plugin has chosen; IPv6 is left out where the kernel has it off.
func (a *adding) foreign(ctx context.Context) ([]netip.Addr, error) {
	var from *current.Result
	switch {
	case a.previous != nil:
		from = a.previous
	case a.ipam != "":
		if _, err := findPlugin(a.ipam); err == nil {
			a.undo.add(a.releaseIPAM) // also if it fails, or is killed on the way (specification, section 4)
		}
		answer, err := delegate(ctx, a.ipam, "ADD", a.StdinData)
		if err != nil {
			return nil, delegateError(a.ipam, err)
		}
		if from, err = decodeResult(a.StdinData, answer); err != nil {
			return nil, fail(types.ErrDecodingFailure, "the answer of ipam %s cannot be read: %v", a.ipam, err)
		}
		a.result = from // its routes and DNS are wanted later
	default:
		return nil, nil
	}
	var list []netip.Addr
	for _, ip := range from.IPs {
		if a.previous != nil && !a.isOurs(ip) {
			continue
		}
		if x := prefixOf(ip.Address); x.IsValid() {
			addr, _ := netip.AddrFromSlice(ip.Address.IP)
			if addr = addr.Unmap(); addr.Is4() || hasIPv6() {
				list = append(list, addr)
			}
		}
	}
	if len(list) == 0 && a.previous != nil {
		return nil, invalid("the plugin before penstock has given %s no address: attach routed needs one", a.IfName)
	}
	if len(list) == 0 {
		return nil, invalid("ipam %s has given no address that this kernel can use", a.ipam)
	}
	return list, nil
}

// isOurs is whether an address of prevResult is on the interface that is asked for. Old results do not say.
func (a *adding) isOurs(ip *current.IPConfig) bool {
	if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(a.previous.Interfaces) {
		return true
	}
	i := a.previous.Interfaces[*ip.Interface]
	return i.Sandbox != "" && i.Name == a.IfName
}

// delegateError keeps the code of the plugin that failed.
func delegateError(plugin string, err error) error {
	var e *types.Error
	if errors.As(err, &e) && e.Code != 0 {
		return types.NewError(e.Code, fmt.Sprintf("ipam %s: %s", plugin, e.Msg), e.Details)
	}
	return fail(types.ErrInternal, "ipam %s: %v", plugin, err)
}

// prepareHost sets what the node's stack needs to forward for pods.
func (a *adding) prepareHost(context.Context) error {
	return a.host.do(func() error {
		if err := writeSysctl("ipv4/ip_forward", "1"); err != nil {
			return fail(types.ErrIOFailure, "%v", err)
		}
		if !slices.ContainsFunc(a.lease.Addresses, netip.Addr.Is6) || readSysctl("ipv6/conf/all/forwarding") == "1" {
			return nil
		}
		devices, err := advertised.Devices("") // as the daemon does it, which may have no leave to
		if err != nil {
			return fail(types.ErrIOFailure, "the devices that live by router advertisements cannot be found: %v", err)
		}
		for _, d := range devices {
			if err := writeSysctl("ipv6/conf/"+d+"/accept_ra", "2"); err != nil {
				return fail(types.ErrIOFailure, "%v: the node would lose what %s has from router advertisements when it forwards IPv6, so set it first", err, d)
			}
		}
		if err := writeSysctl("ipv6/conf/all/forwarding", "1"); err != nil {
			return fail(types.ErrIOFailure, "%v", err)
		}
		return nil
	})
}

// attachPort makes the pod a port of the daemon.
func (a *adding) attachPort(ctx context.Context) error {
	q := control.AttachRequest{
		Container: a.ContainerID, Interface: a.IfName, Attach: a.attach, Device: a.lease.Device,
		Addresses: a.lease.Addresses, MTU: a.lease.MTU, Network: a.conf.Name, Owner: a.owner, Netns: a.Netns,
		Bandwidth: a.conf.RuntimeConfig.Bandwidth,
	}
	if a.attach == control.AttachVeth {
		q.MAC = a.result.Interfaces[1].Mac
	}
	var port control.Attached
	err := patiently(ctx, func(ctx context.Context) (err error) {
		if a.queue != nil {
			port, err = a.daemon.AttachQueue(ctx, q, a.queue)
		} else {
			port.Port, err = a.daemon.Attach(ctx, q)
		}
		return err
	})
	if err != nil {
		return fromDaemon(err)
	}
	if port.QueueLen > 0 {
		if err := a.pod.route.LinkSetTxQLen(a.link, port.QueueLen); err != nil {
			return fail(types.ErrInternal, "the queue of %s in the pod cannot be bounded to %d packets, as its bandwidth wants: %v", a.IfName, port.QueueLen, err)
		}
	}
	return nil
}

// release undoes reserve and attachPort. A daemon that is away does it later.
func (a *adding) release() error { return detach(a.daemon, a.conf, a.CmdArgs, undoTimeout) }

// releaseIPAM undoes foreign, once what the daemon had reserved is given back: a record that is there all the same is that of a pod which
// was added before, and has its addresses from the ipam plugin under the same container and interface.
func (a *adding) releaseIPAM() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	asking, enough := context.WithTimeout(ctx, undoTimeout/2) // a daemon that hangs leaves time for the plugin
	defer enough()
	pods, _ := a.daemon.Pods(asking)
	if slices.ContainsFunc(pods, func(p control.Pod) bool { return p.Container == a.ContainerID && p.Interface == a.IfName }) {
		return nil
	}
	_, err := delegate(ctx, a.ipam, "DEL", a.StdinData)
	return err
}

// answered is whether it was the daemon who said no.
func answered(err error) bool {
	var e *control.Error
	return errors.As(err, &e) && e.Code != control.NotReady && e.Code != control.Internal
}
