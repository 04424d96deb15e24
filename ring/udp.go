//go:build linux

package ring

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// UDPConfig describes a UDP socket.
type UDPConfig struct {
	Local     netip.AddrPort // its family is the socket's; port 0: the kernel picks
	ReusePort bool           // several sockets, one a worker, share Local
	GRO       bool           // receive runs as one datagram
	SendOnly  bool           // whatever arrives is dropped before it is queued
	Errors    bool           // queue ICMP errors for Errors

	// Bounds of the socket's queues as the kernel counts them; 0: default.
	RecvBuffer, SendBuffer int
}

// UDP is an unconnected UDP socket. It is a Socket.
//
// Everything it sends has DF set and is never fragmented here: with
// IP_PMTUDISC_PROBE the device's MTU counts and not a learned one, as DF is a
// property of the socket and one forged ICMP error must not shrink all peers.
type UDP struct{ endpoint }

// OpenUDP opens a socket in the calling thread's network namespace.
func OpenUDP(cfg UDPConfig) (*UDP, error) {
	cfg.Local = netip.AddrPortFrom(cfg.Local.Addr().Unmap(), cfg.Local.Port())
	fail := func(err error) (*UDP, error) {
		advice := ""
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			advice = "stop what holds the port, or choose another"
		case errors.Is(err, unix.EADDRNOTAVAIL):
			advice = "give an address that this node has"
		case errors.Is(err, unix.ENOPROTOOPT):
			advice = "this kernel is too old for it; switch the offload off"
		case errors.Is(err, unix.EACCES):
			advice = "choose a port from 1024 on, or run with CAP_NET_BIND_SERVICE"
		}
		return nil, setup(err, advice, "open a UDP socket on %v", cfg.Local)
	}
	if !cfg.Local.Addr().IsValid() {
		return fail(unix.EDESTADDRREQ)
	}
	is6 := cfg.Local.Addr().Is6()
	family := unix.AF_INET
	if is6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return fail(err)
	}
	u := &UDP{endpoint{fd: fd, errors: cfg.Errors}}
	if err := u.setUp(cfg, is6); err != nil {
		_ = unix.Close(fd)
		return fail(err)
	}
	u.eq.init()
	return u, nil
}

func (u *UDP) setUp(cfg UDPConfig, is6 bool) error {
	opts := ipOptions(is6, cfg.Errors)
	if is6 {
		// RFC 6936: flannel and kernel vxlan devices may send no checksum.
		opts = append(opts,
			option{unix.SOL_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
			// The same flow leaves by a TAP as well, with label 0 (encap.Whole): routers that look at labels must see one flow.
			option{unix.SOL_IPV6, unix.IPV6_AUTOFLOWLABEL, 0, "IPV6_AUTOFLOWLABEL"},
			option{unix.SOL_UDP, unix.UDP_NO_CHECK6_RX, 1, "UDP_NO_CHECK6_RX"})
	}
	if cfg.ReusePort {
		opts = append(opts, option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT"})
	}
	if cfg.GRO && !cfg.SendOnly {
		opts = append(opts, option{unix.SOL_UDP, unix.UDP_GRO, 1, "UDP_GRO"})
	}
	if err := setOptions(u.fd, opts); err != nil {
		return err
	}
	return u.bindTo(cfg.Local, cfg.SendOnly, cfg.RecvBuffer, cfg.SendBuffer)
}

// bindTo is the end of a set-up: filters come before the bind, so that nothing
// slips in.
func (e *endpoint) bindTo(local netip.AddrPort, sendOnly bool, recvBuffer, sendBuffer int) error {
	if sendOnly {
		recvBuffer = sendOnlyRecvBuffer
		if err := setFilter(e.fd, dropAll); err != nil {
			return fmt.Errorf("a filter: %w", err)
		}
	}
	if err := setBuffers(e.fd, recvBuffer, sendBuffer); err != nil {
		return err
	}
	if err := bind(e.fd, local); err != nil {
		return err
	}
	var err error
	e.local, err = localAddress(e.fd)
	return err
}

// ipOptions are those of both socket kinds: DF always, TOS on receipt, errors.
func ipOptions(is6, icmp bool) []option {
	v := 0
	if icmp {
		v = 1
	}
	if is6 {
		return []option{
			{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, "IPV6_MTU_DISCOVER"},
			{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"},
			{unix.SOL_IPV6, unix.IPV6_RECVERR, v, "IPV6_RECVERR"},
		}
	}
	return []option{
		{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, "IP_MTU_DISCOVER"},
		{unix.SOL_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS"},
		{unix.SOL_IP, unix.IP_RECVERR, v, "IP_RECVERR"},
	}
}
