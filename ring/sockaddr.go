//go:build linux

package ring

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sockaddr is an address as the kernel reads it, made once per peer.
type Sockaddr struct {
	raw [unix.SizeofSockaddrInet6]byte
	len uint32
}

// NewSockaddr makes the kernel's form of a. A raw socket's peer has port 0.
// IPv4-mapped addresses become IPv4; an invalid address makes a Sockaddr that no
// socket takes.
func NewSockaddr(a netip.AddrPort) (s Sockaddr) {
	addr := a.Addr().Unmap()
	switch {
	case addr.Is4():
		// struct sockaddr_in: family, port, address.
		binary.NativeEndian.PutUint16(s.raw[0:], unix.AF_INET)
		binary.BigEndian.PutUint16(s.raw[2:], a.Port())
		b := addr.As4()
		copy(s.raw[4:], b[:])
		s.len = unix.SizeofSockaddrInet4
	case addr.Is6():
		// struct sockaddr_in6: family, port, flow label, address, scope.
		binary.NativeEndian.PutUint16(s.raw[0:], unix.AF_INET6)
		binary.BigEndian.PutUint16(s.raw[2:], a.Port())
		b := addr.As16()
		copy(s.raw[8:], b[:])
		s.len = unix.SizeofSockaddrInet6
	}
	return s
}

// AddrPort is the address again.
func (s *Sockaddr) AddrPort() netip.AddrPort { return parseSockaddr(s.raw[:s.len]) }

// is6 tells the family.
func (s *Sockaddr) is6() bool { return s.len == unix.SizeofSockaddrInet6 }

// parseSockaddr reads a sockaddr_in or sockaddr_in6; the zero AddrPort if b is
// neither. The scope is left out: a zone would have to be allocated.
func parseSockaddr(b []byte) netip.AddrPort {
	if len(b) < 2 {
		return netip.AddrPort{}
	}
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		if len(b) >= 8 {
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
		}
	case unix.AF_INET6:
		if len(b) >= 24 {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:]))
		}
	}
	return netip.AddrPort{}
}
