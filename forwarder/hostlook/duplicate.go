package hostlook

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// Two nodes with one underlay address do the strangest things: each gets a part of what is meant for both. Asking is what a
// host does before it takes an address (RFC 5227 section 2.1.1, RFC 4862 section 5.4): with the unspecified address as the
// sender, so that nobody's neighbour table changes.

// probeInterval is between two questions; duplicateProbes of them are asked.
const (
	probeInterval   = 250 * time.Millisecond
	duplicateProbes = 3
)

// FindDuplicate asks the underlay whether another machine has this node's address, and returns its MAC; nil if nobody answers
// within a second. The underlay must be Ethernet. It needs CAP_NET_RAW.
func FindDuplicate(ctx context.Context, u hostnet.Underlay) (net.HardwareAddr, error) {
	if !u.Ethernet {
		return nil, fmt.Errorf("%s is no Ethernet device, so nobody can be asked who has %s", u.Device, u.Address)
	}
	proto := unix.ETH_P_ARP
	if u.Address.Is6() {
		proto = unix.ETH_P_IPV6
	}
	conn, err := packet.Listen(&net.Interface{Index: u.Index, Name: u.Device, HardwareAddr: u.MAC[:]}, packet.Raw, proto, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot open a packet socket on %s: %w", u.Device, err)
	}
	defer conn.Close()
	question, to := duplicateQuestion(u)
	buf := make([]byte, 2048)
	for range duplicateProbes {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if _, err := conn.WriteTo(question, &packet.Addr{HardwareAddr: to}); err != nil {
			return nil, fmt.Errorf("cannot ask on %s who has %s: %w", u.Device, u.Address, err)
		}
		conn.SetReadDeadline(time.Now().Add(probeInterval))
		for {
			n, _, err := conn.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("cannot listen on %s: %w", u.Device, err)
			}
			if mac := claimant(buf[:n], u.Address); mac != nil && string(mac) != string(u.MAC[:]) {
				return mac, nil
			}
		}
	}
	return nil, nil
}

// duplicateQuestion is an ARP probe, or a neighbour solicitation of one who detects duplicates.
func duplicateQuestion(u hostnet.Underlay) (frame []byte, to net.HardwareAddr) {
	if u.Address.Is4() {
		to = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		a := u.Address.As4()
		f := append(append(append([]byte{}, to...), u.MAC[:]...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
		f = append(append(f, u.MAC[:]...), 0, 0, 0, 0) // sender: nobody yet
		f = append(append(f, 0, 0, 0, 0, 0, 0), a[:]...)
		return f, to
	}
	a := u.Address.As16()
	to = net.HardwareAddr{0x33, 0x33, 0xff, a[13], a[14], a[15]}
	group := [16]byte{0xff, 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]} // solicited-node (RFC 4291 section 2.7.1)
	icmp := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, a[:]...)
	ip := append([]byte{0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255}, make([]byte, 16)...)
	ip = append(ip, group[:]...)
	binary.BigEndian.PutUint16(icmp[2:], checksum6(ip, icmp))
	return append(append(append(append([]byte{}, to...), u.MAC[:]...), 0x86, 0xdd), append(ip, icmp...)...), to
}

// checksum6 is ICMPv6's over the pseudo-header (RFC 8200 section 8.1).
func checksum6(ip, icmp []byte) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	add(ip[8:40])
	add(icmp)
	sum += uint32(len(icmp)) + 58
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// claimant returns the MAC of whoever says in this frame that it has the address, or asks for it as if it were about to; nil
// otherwise. The frame may be anybody's.
func claimant(f []byte, a netip.Addr) net.HardwareAddr {
	if len(f) < 14 {
		return nil
	}
	switch b := f[14:]; binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_ARP:
		if len(b) < 28 || string(b[:6]) != "\x00\x01\x08\x00\x06\x04" {
			return nil
		}
		sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
		probe := sender == netip.IPv4Unspecified() && target == a && binary.BigEndian.Uint16(b[6:]) == 1
		if sender == a || probe {
			return net.HardwareAddr(b[8:14])
		}
	case unix.ETH_P_IPV6:
		if len(b) < 40+24 || b[6] != 58 || b[7] != 255 {
			return nil
		}
		target := netip.AddrFrom16([16]byte(b[48:64]))
		if source := netip.AddrFrom16([16]byte(b[8:24])); b[40] == 136 && target == a || b[40] == 135 && target == a && source == netip.IPv6Unspecified() {
			return net.HardwareAddr(f[6:12])
		}
	}
	return nil
}
