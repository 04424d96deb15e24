package lab

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/penstock-net/penstock/cni/ethtool"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/vishvananda/netlink"
)

// Attach is how a pod hangs on its node.
type Attach string

const (
	Veth  Attach = "veth"  // the CNI plugin's default: a veth pair whose host end the daemon reads
	TUN   Attach = "tun"   // a TUN made by the daemon, moved into the pod
	Plain Attach = "plain" // a routed veth, on nodes that run no daemon
)

// Gateways that every pod of Penstock routes to; the daemon answers for them, and so does nobody else.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
	hostMAC  = net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}
)

// maxSuperframe keeps a superframe and the largest encapsulation (VXLAN in IPv6, 70 bytes) within an IP packet.
const maxSuperframe = 65535 - 70

// Pod is a pod of one node; its Device is always eth0.
type Pod struct {
	Host
	Node       *Node
	Attach     Attach
	Container  string
	Interface  string
	HostDevice string // the device's name on the node: the veth's host end, or the TUN before it was moved
	MTU        int
	MAC        net.HardwareAddr   // of eth0; nil on a TUN
	Bandwidth  *control.Bandwidth // asked for at the next attachment

	attached bool
	plugged  *plugged // by the CNI plugin; nil: by hand
}

// AddPod adds a pod with the node's next free addresses. On a node whose daemon does not run yet it is
// attached by [Node.Start].
func (n *Node) AddPod(t TB, a Attach) *Pod {
	t.Helper()
	i := n.nextPod
	n.nextPod++
	b4, b6 := n.PodCIDR4.Addr().As4(), n.PodCIDR6.Addr().As16()
	b4[3] = byte(i)
	b6[15] = byte(i)
	b6[14] = byte(i >> 8)
	return n.AddPodWith(t, a, netip.AddrFrom4(b4), netip.AddrFrom16(b6))
}

// AddPodWith adds a pod with the given addresses.
func (n *Node) AddPodWith(t TB, a Attach, addresses ...netip.Addr) *Pod {
	t.Helper()
	p, err := n.addPod(a, addresses)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return p
}

func (n *Node) addPod(a Attach, addresses []netip.Addr) (*Pod, error) {
	switch n.Role {
	case Penstock:
	case BareRelay:
		a = TUN
	default:
		a = Plain
	}
	name := fmt.Sprintf("%s/pod-%d", n.Name, len(n.Pods)+1)
	p, err := n.bare(name, a)
	if err != nil {
		return nil, err
	}
	for _, x := range addresses {
		if x.Is4() {
			p.IP4 = x
		} else {
			p.IP6 = x
		}
	}
	n.Pods = append(n.Pods, p)
	switch a {
	case Veth:
		err = p.makeVeth()
	case Plain:
		p.HostDevice = fmt.Sprintf("pl%d", len(n.Pods))
		err = p.makePlain()
	case TUN:
		if n.Role == BareRelay {
			err = p.startRelay()
		}
	default:
		err = fmt.Errorf("lab: %q is no way to attach a pod", a)
	}
	if err == nil && n.Daemon != nil && !n.Daemon.Process.Exited() {
		err = p.attach()
	}
	return p, err
}

// bare is a pod's namespace, and nothing in it.
func (n *Node) bare(name string, a Attach) (*Pod, error) {
	ns, err := newNS(name)
	if err != nil {
		return nil, fmt.Errorf("lab: namespace of %s: %w", name, err)
	}
	p := &Pod{
		Host: Host{NS: ns, Device: "eth0"}, Node: n, Attach: a,
		Container: fmt.Sprintf("%x", sha256.Sum256([]byte(name))), Interface: "eth0", MTU: n.PodMTU(),
	}
	p.HostDevice = control.DeviceName(p.Container, p.Interface)
	return p, nil
}

func (p *Pod) addresses() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{p.IP4, p.IP6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// makePair makes a veth whose one end is the pod's eth0.
func (p *Pod) makePair() (host, pod netlink.Link, err error) {
	node := p.Node.NS
	if err := vethPair(node, p.HostDevice, p.NS, "eth0", p.MTU); err != nil {
		return nil, nil, err
	}
	if host, err = node.link(p.HostDevice); err != nil {
		return nil, nil, err
	}
	if pod, err = p.link("eth0"); err != nil {
		return nil, nil, err
	}
	p.MAC = pod.Attrs().HardwareAddr
	if err := node.route.LinkSetHardwareAddr(host, hostMAC); err != nil {
		return nil, nil, fmt.Errorf("lab: MAC of %s in %s: %w", p.HostDevice, node.Name, err)
	}
	return host, pod, nil
}

// makeVeth makes the pair as the plugin does (package cni).
func (p *Pod) makeVeth() error {
	node := p.Node.NS
	host, pod, err := p.makePair()
	if err != nil {
		return err
	}
	// Before it comes up, or the node speaks neighbour discovery to its pod.
	if err := node.sysctl("net/ipv6/conf/"+p.HostDevice+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := ethtool.TurnOff(p.NS.fd, "eth0", ethtool.PodFeatures...); err != nil {
		return fmt.Errorf("lab: in %s: %w", p.NS.Name, err)
	}
	for _, end := range []struct {
		ns   *NS
		link netlink.Link
	}{{node, host}, {p.NS, pod}} {
		name := end.link.Attrs().Name
		err := end.ns.route.LinkSetGSOMaxSize(end.link, maxSuperframe)
		if err == nil {
			err = end.ns.route.LinkSetGSOIPv4MaxSize(end.link, maxSuperframe)
		}
		if err != nil {
			return fmt.Errorf("lab: largest superframe of %s in %s: %w", name, end.ns.Name, err)
		}
		if err := end.ns.up(name); err != nil {
			return err
		}
	}
	return p.addressPod()
}

// addressPod gives eth0 its addresses, the permanent neighbour entries of the gateway and the default routes.
func (p *Pod) addressPod() error {
	for _, a := range p.addresses() {
		if err := p.address("eth0", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
		gateway, all := gateway4, netip.MustParsePrefix("0.0.0.0/0")
		if a.Is6() {
			gateway, all = gateway6, netip.MustParsePrefix("::/0")
		}
		if p.Attach == TUN {
			gateway = netip.Addr{}
		} else if err := p.neighbour("eth0", gateway, hostMAC); err != nil {
			return err
		}
		if err := p.addRoute("eth0", all, gateway); err != nil {
			return err
		}
	}
	return nil
}

// makePlain hangs the pod on a kernel router.
func (p *Pod) makePlain() error {
	node := p.Node.NS
	if _, _, err := p.makePair(); err != nil {
		return err
	}
	if err := node.up(p.HostDevice); err != nil {
		return err
	}
	if err := p.up("eth0"); err != nil {
		return err
	}
	for _, a := range p.addresses() {
		if err := node.neighbour(p.HostDevice, a, p.MAC); err != nil {
			return err
		}
		if err := node.addRoute(p.HostDevice, netip.PrefixFrom(a, a.BitLen()), netip.Addr{}); err != nil {
			return err
		}
	}
	return p.addressPod()
}

// attach makes the pod a port of the daemon; a TUN that the daemon made is then moved into the pod.
func (p *Pod) attach() error {
	d := p.Node.Daemon
	if d == nil || p.Attach == Plain || p.plugged != nil { // what the plugin attached the daemon remembers
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r := control.AttachRequest{
		Container: p.Container, Interface: p.Interface, Attach: string(p.Attach), Device: p.HostDevice,
		Addresses: p.addresses(), MTU: p.MTU, Bandwidth: p.Bandwidth,
	}
	if p.MAC != nil {
		r.MAC = p.MAC.String()
	}
	if p.Attach == TUN {
		// A TUN of an earlier daemon has queues that nobody reads.
		if old, err := p.route.LinkByName("eth0"); err == nil {
			if err := p.route.LinkDel(old); err != nil {
				return fmt.Errorf("lab: old TUN of %s: %w", p.Name, err)
			}
		}
	}
	if _, err := d.Control().Attach(ctx, r); err != nil {
		return fmt.Errorf("lab: attach %s as %s: %w", p.Name, p.Attach, err)
	}
	p.attached = true
	if p.Attach != TUN {
		return nil
	}
	return p.takeTUN()
}

// takeTUN makes a TUN of the node's namespace the pod's eth0.
func (p *Pod) takeTUN() error {
	link, err := p.Node.link(p.HostDevice)
	if err != nil {
		return fmt.Errorf("lab: the TUN of %s is missing: %w", p.Name, err)
	}
	if err := p.Node.route.LinkSetNsFd(link, p.fd); err != nil {
		return fmt.Errorf("lab: move %s into %s: %w", p.HostDevice, p.Name, err)
	}
	if link, err = p.link(p.HostDevice); err != nil {
		return err
	}
	if err := p.route.LinkSetDown(link); err != nil {
		return fmt.Errorf("lab: %s in %s down: %w", p.HostDevice, p.Name, err)
	}
	if err := p.route.LinkSetName(link, "eth0"); err != nil {
		return fmt.Errorf("lab: rename %s in %s: %w", p.HostDevice, p.Name, err)
	}
	if err := p.setMTU("eth0", p.MTU); err != nil {
		return err
	}
	err = p.route.LinkSetGSOMaxSize(link, maxSuperframe)
	if err == nil {
		err = p.route.LinkSetGSOIPv4MaxSize(link, maxSuperframe)
	}
	if err != nil {
		return fmt.Errorf("lab: largest superframe of eth0 in %s: %w", p.Name, err)
	}
	if err := p.up("eth0"); err != nil {
		return err
	}
	return p.addressPod()
}

// NewVeth deletes the pod's veth pair, and makes it anew under the old names and addresses. Nobody tells the daemon.
func (p *Pod) NewVeth(t TB) {
	t.Helper()
	link, err := p.Node.link(p.HostDevice)
	if err == nil {
		err = p.Node.route.LinkDel(link)
	}
	if err == nil {
		err = p.makeVeth()
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// AttachAgain repeats the attachment, as after a restart of the daemon. A TUN is made anew.
func (p *Pod) AttachAgain(t TB) {
	t.Helper()
	if err := p.attach(); err != nil {
		t.Fatalf("%v", err)
	}
}

// Detach takes the pod off its daemon; its device stays where it is.
func (p *Pod) Detach(t TB) {
	t.Helper()
	if err := p.detach(); err != nil {
		t.Fatalf("%v", err)
	}
}

func (p *Pod) detach() error {
	if !p.attached {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Node.Daemon.Control().Detach(ctx, control.DetachRequest{Container: p.Container, Interface: p.Interface}); err != nil {
		return fmt.Errorf("lab: detach %s: %w", p.Name, err)
	}
	p.attached = false
	return nil
}

// Remove detaches the pod and removes its device and namespace.
func (p *Pod) Remove(t TB) {
	t.Helper()
	if p.plugged != nil {
		p.Unplug(t)
	} else if err := p.detach(); err != nil {
		t.Errorf("%v", err)
	}
	if p.Attach != TUN && p.plugged == nil {
		link, err := p.Node.route.LinkByName(p.HostDevice)
		var gone netlink.LinkNotFoundError
		if err == nil {
			err = p.Node.route.LinkDel(link)
		}
		if err != nil && !errors.As(err, &gone) {
			t.Errorf("lab: remove %s of %s: %v", p.HostDevice, p.Name, err)
		}
	}
	p.NS.Close()
	p.Node.Pods = slices.DeleteFunc(p.Node.Pods, func(o *Pod) bool { return o == p })
}
