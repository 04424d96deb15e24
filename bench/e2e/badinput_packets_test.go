package e2e

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Bad packets are built here byte by byte, with nothing of encap: what builds them must not share the mistakes of
// what judges them.

// badPort is where the victims would listen.
const badPort = 7777

// marker begins the payload of every packet that must not arrive, or that must; behind it stands the number of its
// case. Captures look for it.
var marker = []byte("PENSTOCK BAD INPUT ")

// payloadOf is the payload of case id: marker, id, filling up to n bytes.
func payloadOf(id, n int) []byte {
	b := binary.BigEndian.AppendUint32(bytes.Clone(marker), uint32(id))
	for len(b) < n {
		b = append(b, byte(len(b)))
	}
	return b
}

// caseNumber is that of the last case, over all suites.
var caseNumber atomic.Int64

// nextPayload is the payload of a new case, of size bytes or a little more.
func nextPayload(size int) []byte { return payloadOf(int(caseNumber.Add(1)), size) }

// idOf finds the case whose marker is in b, -1 if there is none.
func idOf(b []byte) int {
	i := bytes.Index(b, marker)
	if i < 0 || len(b) < i+len(marker)+4 {
		return -1
	}
	return int(binary.BigEndian.Uint32(b[i+len(marker):]))
}

// onesSum is the Internet checksum of b, begun with sum: 0xffff when a checksum that is in b is right.
func onesSum(b []byte, sum uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) > 0 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// fixIP writes the right IPv4 header checksum, if there is a header to have one.
func fixIP(b []byte) []byte {
	if len(b) < 20 || b[0]>>4 != 4 {
		return b
	}
	n := int(b[0]&15) * 4
	if n < 20 || n > len(b) {
		return b
	}
	binary.BigEndian.PutUint16(b[10:], 0)
	binary.BigEndian.PutUint16(b[10:], ^onesSum(b[:n], 0))
	return b
}

// changed is a copy of b after fn, with the IPv4 header checksum mended.
func changed(b []byte, fn func(b []byte)) []byte {
	b = bytes.Clone(b)
	fn(b)
	return fixIP(b)
}

// ipPacket is an IPv4 packet with DF, or an IPv6 one, of one L4 protocol. middle goes between the fixed header and
// l4: IPv4 options (a multiple of four), or IPv6 extension headers, the first of which is first.
func ipPacket(src, dst netip.Addr, proto, ttl, first byte, middle, l4 []byte) []byte {
	if src.Is4() {
		b := make([]byte, 20, 20+len(middle)+len(l4))
		b[0], b[6], b[8], b[9] = 0x45+byte(len(middle)/4), 0x40, ttl, proto
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(middle)+len(l4)))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		return fixIP(append(append(b, middle...), l4...))
	}
	b := make([]byte, 40, 40+len(middle)+len(l4))
	b[0], b[6], b[7] = 0x60, proto, ttl
	if len(middle) > 0 {
		b[6] = first
	}
	binary.BigEndian.PutUint16(b[4:], uint16(len(middle)+len(l4)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(append(b, middle...), l4...)
}

// firstFragment is the first of a packet's fragments; l4 is a multiple of eight bytes long.
func firstFragment(src, dst netip.Addr, proto byte, id uint16, l4 []byte) []byte {
	if src.Is6() {
		return ipPacket(src, dst, proto, 64, 44, []byte{proto, 0, 0, 1, 0, 0, byte(id >> 8), byte(id)}, l4)
	}
	return changed(ipPacket(src, dst, proto, 64, 0, nil, l4), func(b []byte) { b[4], b[5], b[6] = byte(id>>8), byte(id), 0x20 })
}

// withSum writes the L4 checksum at offset at, pseudo-header included (but for ICMP in IPv4).
func withSum(src, dst netip.Addr, proto byte, l4 []byte, at int) []byte {
	sum := uint32(0)
	if proto != unix.IPPROTO_ICMP {
		sum = uint32(onesSum(append(src.AsSlice(), dst.AsSlice()...), uint32(proto)+uint32(len(l4))))
	}
	binary.BigEndian.PutUint16(l4[at:], 0)
	c := ^onesSum(l4, sum)
	if c == 0 && proto == unix.IPPROTO_UDP {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(l4[at:], c)
	return l4
}

func udpTo(src, dst netip.Addr, port uint16, payload []byte) []byte {
	l4 := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(l4[0:], 40000)
	binary.BigEndian.PutUint16(l4[2:], port)
	binary.BigEndian.PutUint16(l4[4:], uint16(8+len(payload)))
	return withSum(src, dst, unix.IPPROTO_UDP, append(l4, payload...), 6)
}

func tcpTo(src, dst netip.Addr, port uint16, payload []byte) []byte {
	l4 := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(l4[0:], 40000)
	binary.BigEndian.PutUint16(l4[2:], port)
	l4[12], l4[13] = 5<<4, 0x10
	return withSum(src, dst, unix.IPPROTO_TCP, append(l4, payload...), 16)
}

// icmpTo is an ICMP or ICMPv6 message whose body begins with four bytes of zero.
func icmpTo(src, dst netip.Addr, kind, code byte, payload []byte) []byte {
	proto := byte(unix.IPPROTO_ICMP)
	if src.Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	l4 := append([]byte{kind, code, 0, 0, 0, 0, 0, 0}, payload...)
	return withSum(src, dst, proto, l4, 2)
}

func icmpProto(v6 bool) byte {
	if v6 {
		return unix.IPPROTO_ICMPV6
	}
	return unix.IPPROTO_ICMP
}
