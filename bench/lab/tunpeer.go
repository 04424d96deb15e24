package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// tunnel0 is the TUN of the endpoints below: an ordinary one, without offloads.
const tunnel0 = "tunnel0"

// openTUN makes a TUN in the node's namespace, gives it the node's first pod addresses, and routes the other
// nodes' pods into it. The file works with Go's poller.
func (n *Node) openTUN() (*os.File, error) {
	var file *os.File
	err := n.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		r, err := unix.NewIfreq(tunnel0)
		if err == nil {
			r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		file = os.NewFile(uintptr(fd), tunnel0)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: TUN of %s: %w", n.Name, err)
	}
	n.closers = append(n.closers, func() { file.Close() })
	if link, err := n.link(tunnel0); err != nil {
		return nil, err
	} else if err := n.route.LinkSetTxQLen(link, 4000); err != nil {
		return nil, fmt.Errorf("lab: queue of the TUN of %s: %w", n.Name, err)
	}
	if err := n.setMTU(tunnel0, n.PodMTU()); err != nil {
		return nil, err
	}
	err = n.address(tunnel0, netip.PrefixFrom(n.HostAddr(false), 32), netip.PrefixFrom(n.HostAddr(true), 128))
	if err != nil {
		return nil, err
	}
	if err := n.up(tunnel0); err != nil {
		return nil, err
	}
	for _, o := range n.others() {
		for _, cidr := range []netip.Prefix{o.PodCIDR4, o.PodCIDR6} {
			if err := n.addRoute(tunnel0, cidr, netip.Addr{}); err != nil {
				return nil, err
			}
		}
	}
	return file, nil
}

// peerFor is the node whose pod network holds a's destination.
func (n *Node) peerFor(packet []byte) *Node {
	var to netip.Addr
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		to = netip.AddrFrom4([4]byte(packet[16:20]))
	case len(packet) >= 40 && packet[0]>>4 == 6:
		to = netip.AddrFrom16([16]byte(packet[24:40]))
	default:
		return nil
	}
	for _, o := range n.others() {
		if o.PodCIDR4.Contains(to) || o.PodCIDR6.Contains(to) {
			return o
		}
	}
	return nil
}

// setUpFlannelUDP runs an endpoint in the format of flannel's udp backend, as its proxy_amd64.c does it: one
// UDP socket, each datagram one bare IP packet, the TTL lowered on the way out and on the way in (here by the
// kernel, which forwards between the TUN and the pods).
func (n *Node) setUpFlannelUDP() error {
	tun, err := n.openTUN()
	if err != nil {
		return err
	}
	port := n.port()
	var socket *net.UDPConn
	err = n.Do(func() error {
		socket, err = net.ListenUDP(udpNetwork(n.Underlay()), net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.Underlay(), port)))
		return err
	})
	if err != nil {
		return fmt.Errorf("lab: UDP socket of the endpoint on %s: %w", n.Name, err)
	}
	n.closers = append(n.closers, func() { socket.Close() })
	forceBuffers(socket, 8<<20)
	go func() { // pods → wire
		b := make([]byte, 65536)
		for {
			size, err := tun.Read(b)
			if err != nil {
				return
			}
			if peer := n.peerFor(b[:size]); peer != nil {
				socket.WriteToUDPAddrPort(b[:size], netip.AddrPortFrom(peer.Underlay(), port))
			}
		}
	}()
	go func() { // wire → pods
		b := make([]byte, 65536)
		for {
			size, from, err := socket.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil && n.knows(from.Addr()) {
				tun.Write(b[:size])
			}
		}
	}()
	return nil
}

func (n *Node) knows(a netip.Addr) bool {
	for _, o := range n.others() {
		if o.Underlay() == a.Unmap() {
			return true
		}
	}
	return false
}

func udpNetwork(a netip.Addr) string {
	if a.Is4() {
		return "udp4"
	}
	return "udp6"
}
