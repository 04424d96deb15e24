package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostflow"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
	"github.com/penstock-net/penstock/forwarder/probe"
	"github.com/penstock-net/penstock/forwarder/uplink"
	"github.com/penstock-net/penstock/table/feed"
)

// plane is what moves packets: *forwarder.Forwarder.
type plane interface {
	Start()
	Stop(context.Context) error
	SetPeers([]feed.Peer) error
	Reconfigure(forwarder.Settings) error
	Replace(forwarder.Settings, []feed.Peer) error // both in one step
	Expect([]forwarder.PortSpec)                   // that will be attached; nil: they are
	CanAttach(forwarder.PortSpec) error            // what Attach would refuse before it opens the device
	Attach(forwarder.PortSpec) (forwarder.PortInfo, error)
	AttachQueue(forwarder.PortSpec, int) (forwarder.PortInfo, error) // owns the descriptor
	Adopt(forwarder.PortSpec, int) (forwarder.PortInfo, error)       // likewise
	Await([]netip.Addr) error                                        // of pods whose port is yet to come back
	Descriptors() []forwarder.Descriptor
	Detach(container, iface string) error
	Ports() []forwarder.PortInfo
	PortCount() int
	Counters() forwarder.Counters
	Progress() (turns []uint64, waiting []bool) // of the workers
	Trace(forwarder.TraceSpec) (*forwarder.Trace, error)
	Tap(forwarder.TapFilter) (*forwarder.Tap, error)
	Capabilities() []forwarder.Capability
	HostFlows() hostflow.Sink
	TrackFlows() // a tracker is at work
	SendsWhole() bool
	RestoreDevices() (made []string, err error)
	ReopenNative()          // its port, if somebody else had it
	NativeUnopened() string // why its port is not ours; empty if it is
	UplinkUsed(netip.Addr) bool
	SetUplinkPath(netip.Addr, *forwarder.UplinkPath)
	SetDirectPath(netip.Addr, *forwarder.UplinkPath)
}

// host is what the daemon owns in the host's stack: *hostnet.Host.
type host interface {
	Apply(context.Context) (hostnet.Report, error)
	Reconfigure(context.Context, hostnet.Config) (hostnet.Report, error)
	BlockIngress(device string) error
	UnblockIngress(device string) error
	Blocked() ([]string, error)
	KeepIngress(devices []string) (again []string, err error)
	ReconcileIngress(devices []string) (hostnet.Report, error)
}

// flows follows the flows that the host translates: *hostflow.Tracker.
type flows interface {
	Load(context.Context) (int, error)
	Run(context.Context) error
	Stats() hostflow.Stats
	Close() error
}

// machine is the node as the daemon finds it. All its methods act in the network namespace of the process.
type machine interface {
	Privileged() error                        // nil, or what is missing
	Claim() (release func() error, err error) // only one daemon works in a network namespace
	DefaultAddress() (netip.Addr, error)
	// With cuts set the two also find out what the device takes uncut.
	FindUnderlay(a netip.Addr, cuts bool) (hostnet.Underlay, error)
	WatchUnderlay(ctx context.Context, a netip.Addr, cuts bool, fn func(hostnet.Underlay, error) error) error
	WatchRoutes(context.Context, func()) error
	WatchRules(context.Context, func()) error
	// PrepareTUN sees to it that the forwarder can open the node's TUN, and the TAP beside it; fresh: there is no TUN of a
	// predecessor to take over.
	PrepareTUN(name string, queues int) (fresh bool, err error)
	NewForwarder(forwarder.Settings) (plane, error)
	NewHost(hostnet.Config) (host, error)
	OpenFlows(hostflow.Config) (flows, error)
	NewUplinks(uplink.Config) uplinks
	NewProber(device string) prober
	Link(name string) (link, error) // errNoLink if there is none
	Links() ([]link, error)
	RemoveLink(name string) error // errNoLink if there is none
	SetMTU(index, mtu int) error  // likewise
	// RouteDevice is where the host's stack sends packets for an address, of a sender bound to from if that is valid; "": nowhere.
	RouteDevice(a, from netip.Addr) (string, error)
	BootID() (string, error)              // changes with every boot
	NetnsID(path string) (string, error)  // as control.NetnsID
	StoreQueue(name string, fd int) error // has the service manager keep a copy
	ForgetQueue(name string)              // and throw it away
	StoredQueues() map[string]int         // what it has kept; the caller owns them
	Cleanup(ctx context.Context, device string) (hostnet.Report, error)
}

// link is a network device of this namespace.
type link struct {
	Name     string
	Index    int
	Group    uint32
	MTU      int
	Ethernet bool
	Type     string // as in rtnetlink: "veth", "tun", …
}

var errNoLink = errors.New("no such device")

// linux is the real machine.
type linux struct{}

func (linux) Privileged() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return fmt.Errorf("the capabilities of this process cannot be read: %w", err)
	}
	const need = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	if d[0].Effective&need != need {
		return errors.New("penstockd needs CAP_NET_ADMIN and CAP_NET_RAW: run it as root or by its systemd unit")
	}
	return nil
}

func (linux) DefaultAddress() (netip.Addr, error) { return hostnet.DefaultAddress() }
func finder(cuts bool) func(netip.Addr) (hostnet.Underlay, error) {
	if cuts {
		return hostnet.FindUplink
	}
	return hostnet.FindUnderlay
}

func (linux) FindUnderlay(a netip.Addr, cuts bool) (hostnet.Underlay, error) {
	return finder(cuts)(a)
}
func (linux) WatchUnderlay(ctx context.Context, a netip.Addr, cuts bool, fn func(hostnet.Underlay, error) error) error {
	return hostnet.WatchUnderlay(ctx, a, finder(cuts), fn)
}
func (linux) WatchRoutes(ctx context.Context, fn func()) error { return hostnet.WatchRoutes(ctx, fn) }
func (linux) WatchRules(ctx context.Context, fn func()) error  { return hostnet.WatchRules(ctx, fn) }
func (linux) Cleanup(ctx context.Context, device string) (hostnet.Report, error) {
	return hostnet.Cleanup(ctx, device)
}

func (linux) NewForwarder(s forwarder.Settings) (plane, error) {
	f, err := forwarder.New(s)
	if err != nil {
		return nil, err // not a nil *Forwarder in an interface
	}
	return f, nil
}

func (linux) NewHost(c hostnet.Config) (host, error) {
	h, err := hostnet.New(c)
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (linux) OpenFlows(c hostflow.Config) (flows, error) {
	t, err := hostflow.Open(c)
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (linux) NewUplinks(c uplink.Config) uplinks { return uplink.New(c) }

func (linux) NewProber(device string) prober { return probe.New(device) }

func (linux) Link(name string) (link, error) {
	l, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return link{}, errNoLink
	}
	if err != nil {
		return link{}, fmt.Errorf("device %s cannot be looked up: %w", name, err)
	}
	return describeLink(l), nil
}

func describeLink(l netlink.Link) link {
	a := l.Attrs()
	return link{Name: a.Name, Index: a.Index, Group: a.Group, MTU: a.MTU, Ethernet: a.EncapType == "ether", Type: l.Type()}
}

func (linux) Links() ([]link, error) {
	all, err := dump.All(netlink.LinkList)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("the devices of the node cannot be listed: %w", err)
	}
	var list []link
	for _, l := range all {
		list = append(list, describeLink(l))
	}
	return list, nil
}

func (linux) RemoveLink(name string) error {
	l, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return errNoLink
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EINVAL): // gone meanwhile
		return errNoLink
	case err != nil:
		return fmt.Errorf("device %s cannot be removed: %w", name, err)
	}
	return nil
}

func (linux) SetMTU(index, mtu int) error {
	err := netlink.LinkSetMTU(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, mtu)
	if errors.Is(err, unix.ENODEV) {
		return errNoLink
	}
	return err
}

func (linux) RouteDevice(a, from netip.Addr) (string, error) { return hostnet.RouteDevice(a, from) }

func (linux) BootID() (string, error)             { return bootID() }
func (linux) NetnsID(path string) (string, error) { return control.NetnsID(path) }

// PrepareTUN looks at what stands under the name of the node's TUN. A TUN of a predecessor is taken over by the forwarder as it
// is, unless it was made for another number of workers: the kernel attaches no multi-queue descriptor to a single-queue
// device and vice versa (tun_set_iff in drivers/net/tun.c), so that one is made anew.
func (linux) PrepareTUN(name string, queues int) (fresh bool, err error) {
	if fresh, err = prepareTUN(name, netlink.TUNTAP_MODE_TUN, queues); err != nil {
		return false, fmt.Errorf("host.device: %w, or set host.device to another name", err)
	}
	if _, err := prepareTUN(hostnet.GSODevice, netlink.TUNTAP_MODE_TAP, queues); err != nil {
		return false, fmt.Errorf("%w, or set offload.tunnelGSO to off", err)
	}
	return fresh, nil
}

func prepareTUN(name string, mode netlink.TuntapMode, queues int) (fresh bool, err error) {
	l, err := netlink.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("device %s cannot be looked up: %w: try again", name, err)
	}
	t, ok := l.(*netlink.Tuntap)
	if !ok || t.Mode != mode {
		is := l.Type()
		if ok {
			is = strings.ToUpper(t.Mode.String())
		}
		return false, fmt.Errorf("there is a device %s already and it is a %s, not a %s: remove it", name, is, strings.ToUpper(mode.String()))
	}
	if multi := t.Flags&netlink.TUNTAP_MULTI_QUEUE != 0; multi == (queues > 1) {
		return false, nil
	}
	if err := netlink.LinkDel(l); err != nil {
		return false, fmt.Errorf("device %s of a daemon with another number of workers is in the way: %w: remove it", name, err)
	}
	return true, nil
}
