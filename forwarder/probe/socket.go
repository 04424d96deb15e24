package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// options are set before a socket is bound.
type options struct {
	device string // packets go and come by this device only
	free   bool   // the address may still be missing
	gro    bool   // a superframe arrives in one piece
}

// control sets DF on all that leaves, whatever the kernel believes of the path: who measures a path must not have the kernel
// cut the packets.
func (o options) control(v6 bool) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var errs []error
		err := c.Control(func(fd uintptr) {
			set := func(level, name, value int) {
				if err := unix.SetsockoptInt(int(fd), level, name, value); err != nil {
					errs = append(errs, err)
				}
			}
			if v6 {
				set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			} else {
				set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			}
			if o.free && v6 {
				set(unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			} else if o.free {
				set(unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
			}
			if o.device != "" {
				if err := unix.BindToDevice(int(fd), o.device); err != nil {
					errs = append(errs, err)
				}
			}
			if o.gro {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)      // older kernels hand over datagrams
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20) // as much as net.core.rmem_max allows
			}
		})
		return errors.Join(append(errs, err)...)
	}
}

func listenUDP(a netip.AddrPort, o options) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: o.control(a.Addr().Is6())}
	c, err := lc.ListenPacket(context.Background(), network("udp", a.Addr()), a.String())
	if err != nil {
		return nil, fmt.Errorf("a socket on %s cannot be opened: %w", a, err)
	}
	return c.(*net.UDPConn), nil
}

func dialUDP(ctx context.Context, from netip.Addr, to netip.AddrPort, o options) (*net.UDPConn, error) {
	d := net.Dialer{Control: o.control(from.Is6()), LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	c, err := d.DialContext(ctx, network("udp", from), to.String())
	if err != nil {
		return nil, fmt.Errorf("a socket from %s to %s cannot be opened: %w", from, to, err)
	}
	return c.(*net.UDPConn), nil
}

func network(name string, a netip.Addr) string {
	if a.Is6() {
		return name + "6"
	}
	return name + "4"
}
