package encap

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
)

// Kind is a way to carry pod packets between nodes (design section 5).
//
//	udp    outer IP │ UDP │ inner IP …                          as flannel's udp backend
//	vxlan  outer IP │ UDP │ VXLAN │ Ethernet │ inner IP …       RFC 7348
//	ipip   outer IP │ inner IP …                                RFC 2003, RFC 4213
type Kind uint8

// The kinds of encapsulation.
const (
	KindUDP Kind = iota
	KindVXLAN
	KindIPIP
)

// VXLANLen is the length of a VXLAN header.
const VXLANLen = 8

// vxlanHeaderLen is what VXLAN puts between UDP and the inner IP header.
const vxlanHeaderLen = VXLANLen + EthernetLen

// vxlanFlagI says that the VNI is valid (RFC 7348 section 5).
const vxlanFlagI = 0x08

var kindNames = [...]string{KindUDP: "udp", KindVXLAN: "vxlan", KindIPIP: "ipip"}

// String returns the kind's name in the configuration.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "kind(" + strconv.Itoa(int(k)) + ")"
}

// ParseKind returns the kind of a name in the configuration.
func ParseKind(s string) (Kind, error) {
	for k, name := range kindNames {
		if s == name {
			return Kind(k), nil
		}
	}
	return 0, fmt.Errorf("penstock: encapsulation %q is not known: use udp, vxlan or ipip", s)
}

// HeaderLen returns how many bytes lie between the outer headers that the kernel writes (IP, UDP) and
// the inner IP header.
func (k Kind) HeaderLen() int {
	if k == KindVXLAN {
		return vxlanHeaderLen
	}
	return 0
}

// Overhead returns by how much a packet is longer encapsulated, over IPv4 or IPv6.
func (k Kind) Overhead(outer6 bool) int {
	n := k.HeaderLen() + IPv4Len
	if outer6 {
		n = k.HeaderLen() + IPv6Len
	}
	if k != KindIPIP {
		n += UDPLen
	}
	return n
}

// DefaultPort returns the UDP port that flannel uses for this kind; 0: it has no ports.
func (k Kind) DefaultPort() uint16 {
	switch k {
	case KindUDP:
		return 8285
	case KindVXLAN:
		return 8472
	}
	return 0
}

// VXLAN is a VXLAN header of VXLANLen bytes and what follows it.
type VXLAN []byte

// Valid reports whether the flag that vouches for the VNI is set; the others are reserved and ignored.
func (h VXLAN) Valid() bool { return h[0]&vxlanFlagI != 0 }

// VNI returns the network identifier.
func (h VXLAN) VNI() uint32 { return binary.BigEndian.Uint32(h[4:8]) >> 8 }

// Header is what goes in front of each inner packet to one next hop, computed once. It is immutable; the
// zero value is that of the kinds without a header.
type Header struct {
	n uint8
	b [vxlanHeaderLen]byte
}

// NewVXLANHeader returns the header of network vni (24 bits) from VTEP src to VTEP dst.
func NewVXLANHeader(vni uint32, dst, src MAC) Header {
	h := Header{n: vxlanHeaderLen}
	h.b[0] = vxlanFlagI
	binary.BigEndian.PutUint32(h.b[4:8], vni<<8)
	Ethernet(h.b[VXLANLen:]).Put(dst, src, EtherTypeIPv4)
	return h
}

// Len returns the length of the header, in bytes.
func (h *Header) Len() int { return int(h.n) }

// Put writes the header, Len bytes, to the start of dst; inner6 says that an IPv6 packet follows.
func (h *Header) Put(dst []byte, inner6 bool) {
	if h.n == 0 {
		return
	}
	d := (*[vxlanHeaderLen]byte)(dst)
	*d = h.b
	if inner6 {
		binary.BigEndian.PutUint16(d[vxlanHeaderLen-2:], EtherTypeIPv6)
	}
}

// Decap finds the inner IP packet in a received datagram: its offset in b, which for udp and vxlan is the
// payload of the datagram, for ipip begins with the outer IPv4 header, as a raw socket delivers it. It
// checks what belongs to the encapsulation only: the VXLAN flag, network and inner destination (own),
// that the payload says IPv4 or IPv6 and begins so. The inner packet itself is for Parse.
func Decap(k Kind, b []byte, vni uint32, own MAC) (off int, f Fault) {
	version := uint8(0) // that the header in front promises; 0: it promises nothing
	switch k {
	case KindVXLAN:
		if len(b) < vxlanHeaderLen {
			return 0, FaultShort
		}
		h := VXLAN(b)
		if !h.Valid() {
			return 0, FaultBadVXLAN
		}
		if h.VNI() != vni {
			return 0, FaultWrongVNI
		}
		e := Ethernet(b[VXLANLen:])
		if e.Dst() != own {
			return 0, FaultWrongMAC
		}
		switch e.EtherType() {
		case EtherTypeIPv4:
			version = 4
		case EtherTypeIPv6:
			version = 6
		default:
			return 0, FaultNotIP
		}
		off = vxlanHeaderLen
	case KindIPIP:
		if len(b) < IPv4Len {
			return 0, FaultShort
		}
		h := IPv4(b)
		off = h.HeaderLen()
		if h.Version() != 4 || off < IPv4Len || off > len(b) || h.TotalLen() < off || h.TotalLen() > len(b) {
			return 0, FaultBadOuter
		}
		switch h.Proto() {
		case ProtoIPIP:
			version = 4
		case ProtoIPv6:
			version = 6
		default:
			return 0, FaultBadOuter
		}
	}
	if len(b) <= off {
		return 0, FaultShort
	}
	inner := b[off] >> 4
	if inner != 4 && inner != 6 || version != 0 && inner != version {
		return 0, FaultNotIP
	}
	return off, OK
}

// VTEPMAC returns the address of a node's VTEP: locally administered and the same after every restart, as
// it is made of the node's underlay address and the network (design section 5).
func VTEPMAC(addr netip.Addr, vni uint32) MAC {
	sum := sha256.Sum256([]byte(addr.Unmap().String() + "|" + strconv.FormatUint(uint64(vni), 10)))
	m := MAC{0: 0x02}
	copy(m[1:], sum[:5])
	return m
}
