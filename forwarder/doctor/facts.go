package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/podstate"
	"golang.org/x/sys/unix"
)

const patience = 5 * time.Second

// facts are what the checks stand on.
type facts struct {
	client *control.Client
	up     bool // the daemon answers
	silent error
	runs   bool   // in this network namespace, whether it answers or not
	pid    int    // of the daemon, also of one that does not answer; 0 if it cannot be told
	away   string // why what this process sees of the network is not what the daemon sees; "" if it is

	status control.Status
	peers  []control.Peer
	pods   []control.Pod
	ports  []control.Port
	ipam   control.IPAM

	path       string // of the configuration
	cfg        *config.Config
	badConfig  error
	address    netip.Addr     // this node's
	byRoute    string         // why node.address, which the file leaves out, would be another by the default route alone; "" if not
	device     string         // the node's TUN
	podCIDRs   []netip.Prefix // this node's
	cluster    []netip.Prefix // all pods'
	tunnels    []tunnel
	ipv4, ipv6 bool // of pods
	underlay   hostnet.Underlay
	noUnderlay error
}

// tunnel is one that this node listens for, with an address that sends there.
type tunnel struct {
	hostnet.Tunnel
	from netip.Addr
}

func (f *facts) gather(ctx context.Context, c *control.Client, path string) {
	ctx, cancel := context.WithTimeout(ctx, patience) // a daemon that hangs is one that cannot be asked
	defer cancel()
	f.client, f.path = c, cmp.Or(path, config.DefaultPath)
	f.pid, _ = c.Process(ctx)
	if f.status, f.silent = c.Status(ctx); f.silent == nil {
		f.up, f.runs, f.path = true, true, f.status.Config
		f.peers, _ = c.Peers(ctx)
		f.pods, _ = c.Pods(ctx)
		f.ports, _ = c.Ports(ctx)
		f.ipam, _ = c.IPAM(ctx)
		f.address, f.device = f.status.Address, f.status.Device
		f.podCIDRs, f.cluster = f.status.PodCIDRs, f.status.ClusterCIDRs
	} else {
		pid := 0
		if pid, f.runs = findDaemon(); f.pid == 0 {
			f.pid = pid
		}
	}
	f.cfg, f.badConfig = config.LoadRegular(f.path)
	if f.badConfig == nil {
		f.badConfig = f.cfg.Complete(f.ownAddress)
	}
	switch {
	case f.up:
	case f.badConfig == nil:
		f.address, f.device = f.cfg.Node.Address, f.cfg.Host.Device
		f.podCIDRs, f.cluster = f.cfg.Node.PodCIDRs, f.cfg.Network.CIDRs
		f.status.Encap, f.status.Port, f.status.Node = f.cfg.Encap.Type, f.cfg.Encap.Port, f.cfg.Node.Name
		for _, p := range f.cfg.Peers {
			o := control.Peer{Name: p.Name, Address: p.Address, PodCIDRs: p.PodCIDRs, Encap: p.Encap, Port: p.Port}
			if o.Encap == "" {
				o.Encap, o.Port = f.cfg.Encap.Type, f.cfg.Encap.Port
			}
			f.peers = append(f.peers, o)
		}
	default:
		f.address, _ = hostnet.DefaultAddress()
		f.device = config.DefaultHostDevice
		f.ipv4 = true
	}
	f.families(f.podCIDRs)
	f.listTunnels()
	if f.address.IsValid() {
		f.underlay, f.noUnderlay = hostnet.FindUplink(f.address)
	}
	f.away = f.elsewhere()
}

// ownAddress is what the daemon goes by where the file leaves node.address out: the known one as long as the node has it.
func (f *facts) ownAddress() (netip.Addr, error) {
	known := f.status.Address
	if !f.up {
		known = podstate.Address(f.cfg.State)
	}
	found, err := hostnet.DefaultAddress()
	if !known.IsValid() || err == nil && found == known {
		return found, err
	}
	if _, gone := hostnet.FindUnderlay(known); errors.Is(gone, hostnet.ErrNoAddress) {
		return found, err
	}
	f.byRoute = otherwise(found, err)
	return known, nil
}

// otherwise is where the default route leads, in a sentence whose remedy is to set node.address.
func otherwise(found netip.Addr, err error) string {
	switch {
	case errors.Is(err, hostnet.ErrNoDefaultRoute):
		return "there is no default route"
	case err != nil:
		return err.Error()
	}
	return "the default route leads by " + found.String()
}

func (f *facts) families(cidrs []netip.Prefix) {
	for _, p := range cidrs {
		f.ipv4 = f.ipv4 || p.Addr().Is4()
		f.ipv6 = f.ipv6 || p.Addr().Is6()
	}
}

func (f *facts) listTunnels() {
	add := func(encap string, port uint16, from netip.Addr) {
		t := tunnel{hostnet.Tunnel{Proto: unix.IPPROTO_UDP, Port: port}, from}
		if encap == "ipip" {
			t.Tunnel = hostnet.Tunnel{Proto: unix.IPPROTO_IPIP}
		}
		if from.Is4() == f.address.Is4() && !slices.ContainsFunc(f.tunnels, func(o tunnel) bool { return o.Tunnel == t.Tunnel }) {
			f.tunnels = append(f.tunnels, t)
		}
	}
	for _, p := range f.peers {
		add(p.Encap, p.Port, p.Address)
	}
}

// elsewhere says why the network of this process is not the daemon's: a container has one of its own.
func (f *facts) elsewhere() string {
	if f.pid == 0 {
		return ""
	}
	ours, err1 := os.Readlink("/proc/self/ns/net")
	theirs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", f.pid))
	switch {
	case err1 != nil || err2 != nil:
		return fmt.Sprintf("whether penstockctl and the daemon (process %d) share a network namespace cannot be seen: run it as root on the node", f.pid)
	case ours != theirs:
		return fmt.Sprintf("penstockctl runs in another network namespace than the daemon: run it as nsenter -t %d -n penstockctl doctor", f.pid)
	}
	return ""
}
