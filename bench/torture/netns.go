package torture

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
)

// sandbox is a pod's network namespace as a runtime makes it: a file that the namespace is mounted on.
type sandbox struct {
	lab.Host
	path string
	gone bool
}

func (x *torture) newSandbox(name string) (*sandbox, error) {
	s := &sandbox{Host: lab.Host{NS: lab.NewNS(x.t, name), Device: "eth0"}, path: filepath.Join(x.dir, name)}
	f, err := os.Create(s.path)
	if err != nil {
		return nil, err
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", s.FD()), s.path, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount %s: %w", s.path, err)
	}
	return s, nil
}

// remove deletes the namespace. The kernel takes the devices in it when the last user is gone, which is a little later.
func (s *sandbox) remove() error {
	if s.gone {
		return nil
	}
	s.gone = true
	if err := unix.Unmount(s.path, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", s.path, err)
	}
	s.NS.Close()
	return os.Remove(s.path)
}

// left lists what of a pod is still in its namespace: devices, rules, neighbour entries, and routes that are not the kernel's own.
func (s *sandbox) left() (list []string) {
	for _, l := range s.LinkNames() {
		if l != "lo" {
			list = append(list, "device "+l)
		}
	}
	h := s.Netlink()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, _ := h.RuleList(family)
		for _, r := range rules {
			if !strings.Contains("0 32766 32767", fmt.Sprint(r.Priority)) {
				list = append(list, "rule "+r.String())
			}
		}
		routes, _ := h.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			if r.LinkIndex != 1 { // those of the loopback device are the kernel's
				list = append(list, "route "+r.String())
			}
		}
	}
	return list
}

// foreign plays the plugin before penstock: a veth with an address, a route to it on the host, and a default route in the pod.
type foreign struct {
	device string
	addrs  []netip.Addr
}

var (
	foreign4 = netip.MustParsePrefix("10.244.101.0/24")
	foreign6 = netip.MustParsePrefix("fd00:10:244:101::/64")
	noMAC    = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}
)

func newForeign(i int) foreign {
	a4, a6 := foreign4.Addr().As4(), foreign6.Addr().As16()
	a4[3], a6[15] = byte(10+i), byte(10+i)
	return foreign{fmt.Sprintf("ptp%d", i), []netip.Addr{netip.AddrFrom4(a4), netip.AddrFrom16(a6)}}
}

func (f foreign) add(node *lab.Node, s *sandbox) error {
	h, p := node.Netlink(), s.Netlink()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = f.device, 1450, noMAC
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(s.FD()), PeerMTU: 1450}); err != nil {
		return fmt.Errorf("veth %s: %w", f.device, err)
	}
	host, err := h.LinkByName(f.device)
	if err != nil {
		return err
	}
	pod, err := p.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(host); err != nil {
		return err
	}
	if err := p.LinkSetUp(pod); err != nil {
		return err
	}
	for _, a := range f.addrs {
		one := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		gateway, all := net.IPv4(169, 254, 1, 1), &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		address := &netlink.Addr{IPNet: one}
		if a.Is6() {
			gateway, all = net.ParseIP("fe80::1"), &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
			address.Flags = unix.IFA_F_NODAD
		}
		err := p.AddrAdd(pod, address)
		if err == nil {
			err = p.NeighSet(&netlink.Neigh{LinkIndex: pod.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: noMAC})
		}
		if err == nil {
			err = h.NeighSet(&netlink.Neigh{LinkIndex: host.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: pod.Attrs().HardwareAddr})
		}
		if err == nil {
			err = h.RouteReplace(&netlink.Route{LinkIndex: host.Attrs().Index, Dst: one, Scope: netlink.SCOPE_LINK})
		}
		if err == nil {
			err = p.RouteAdd(&netlink.Route{LinkIndex: pod.Attrs().Index, Dst: all, Gw: gateway, Flags: int(netlink.FLAG_ONLINK)})
		}
		if err != nil {
			return fmt.Errorf("%s of %s: %w", a, f.device, err)
		}
	}
	return nil
}

func (f foreign) del(node *lab.Node) {
	if l, err := node.Netlink().LinkByName(f.device); err == nil {
		node.Netlink().LinkDel(l)
	}
}
