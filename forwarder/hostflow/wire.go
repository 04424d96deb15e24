package hostflow

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Attribute numbers of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaZone       = 18

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum        = 1
	ctaProtoSrcPort    = 2
	ctaProtoDstPort    = 3
	ctaProtoICMPID     = 4
	ctaProtoICMPType   = 5
	ctaProtoICMPCode   = 6
	ctaProtoICMPv6ID   = 7
	ctaProtoICMPv6Type = 8
	ctaProtoICMPv6Code = 9
)

const (
	genHeader = 4      // struct nfgenmsg: family, version, resource id
	nested    = 0x8000 // NLA_F_NESTED
	typeMask  = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// attrs walks over netlink attributes: length and type in host order, values of conntrack in network order, each padded
// to 4 bytes. It is false when a length does not fit.
func attrs(b []byte, visit func(typ uint16, v []byte) bool) bool {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return false
		}
		if !visit(binary.NativeEndian.Uint16(b[2:])&typeMask, b[4:n]) {
			return false
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return len(b) == 0
}

// decode reads one message of ctnetlink, dumped, answered or announced. It is false for what is not a whole IPv4 or
// IPv6 entry. It keeps nothing of b.
func decode(b []byte, e *entry) bool {
	*e = entry{}
	if len(b) < genHeader {
		return false
	}
	ok := attrs(b[genHeader:], func(typ uint16, v []byte) bool {
		switch typ {
		case ctaTupleOrig:
			return decodeTuple(v, &e.orig)
		case ctaTupleReply:
			return decodeTuple(v, &e.reply)
		case ctaZone:
			return be16(v, &e.zone)
		}
		return true
	})
	return ok && e.orig.complete() && e.reply.complete() && e.orig.proto == e.reply.proto && e.orig.src.Is4() == e.reply.src.Is4()
}

// complete: both addresses, of one family. Protocol 0 (IPv6 hop by hop) is never an entry's.
func (c *ctTuple) complete() bool {
	return c.src.IsValid() && c.dst.IsValid() && c.src.Is4() == c.dst.Is4() && c.proto != 0
}

func decodeTuple(b []byte, c *ctTuple) bool {
	*c = ctTuple{}
	return attrs(b, func(typ uint16, v []byte) bool {
		switch typ {
		case ctaTupleIP:
			return attrs(v, func(typ uint16, v []byte) bool { return decodeAddr(typ, v, c) })
		case ctaTupleProto:
			return attrs(v, func(typ uint16, v []byte) bool { return decodeProto(typ, v, c) })
		case ctaTupleZone:
			return be16(v, &c.zone)
		}
		return true
	})
}

func decodeAddr(typ uint16, v []byte, c *ctTuple) bool {
	switch typ {
	case ctaIPv4Src, ctaIPv4Dst, ctaIPv6Src, ctaIPv6Dst:
	default:
		return true
	}
	size := 4
	if typ >= ctaIPv6Src {
		size = 16
	}
	if len(v) != size {
		return false
	}
	a, _ := netip.AddrFromSlice(v)
	a = a.Unmap()
	if typ == ctaIPv4Src || typ == ctaIPv6Src {
		c.src = a
	} else {
		c.dst = a
	}
	return true
}

func decodeProto(typ uint16, v []byte, c *ctTuple) bool {
	switch typ {
	case ctaProtoNum:
		if len(v) != 1 {
			return false
		}
		c.proto = v[0]
	case ctaProtoSrcPort:
		return be16(v, &c.srcPort)
	case ctaProtoDstPort:
		return be16(v, &c.dstPort)
	case ctaProtoICMPID, ctaProtoICMPv6ID:
		return be16(v, &c.icmpID)
	case ctaProtoICMPType, ctaProtoICMPv6Type:
		if len(v) != 1 {
			return false
		}
		c.icmpType = uint16(v[0])
	}
	return true
}

func be16(v []byte, to *uint16) bool {
	if len(v) != 2 {
		return false
	}
	*to = binary.BigEndian.Uint16(v)
	return true
}

// request asks for the entry with this reply tuple. t must be askable.
func request(t *Tuple, zone uint16) []byte {
	family := byte(unix.AF_INET)
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if t.Src.Is6() {
		family, src, dst = unix.AF_INET6, ctaIPv6Src, ctaIPv6Dst
	}
	ip := attr(nil, src, t.Src.AsSlice())
	ip = attr(ip, dst, t.Dst.AsSlice())
	proto := attr(nil, ctaProtoNum, []byte{t.Proto})
	switch t.Proto {
	case unix.IPPROTO_ICMP:
		proto = attr(proto, ctaProtoICMPID, bytes16(t.SrcPort))
		proto = attr(proto, ctaProtoICMPType, []byte{echoReply4})
		proto = attr(proto, ctaProtoICMPCode, []byte{0})
	case unix.IPPROTO_ICMPV6:
		proto = attr(proto, ctaProtoICMPv6ID, bytes16(t.SrcPort))
		proto = attr(proto, ctaProtoICMPv6Type, []byte{echoReply6})
		proto = attr(proto, ctaProtoICMPv6Code, []byte{0})
	default:
		proto = attr(proto, ctaProtoSrcPort, bytes16(t.SrcPort))
		proto = attr(proto, ctaProtoDstPort, bytes16(t.DstPort))
	}
	tuple := attr(nil, ctaTupleIP|nested, ip)
	tuple = attr(tuple, ctaTupleProto|nested, proto)
	b := attr([]byte{family, 0, 0, 0}, ctaTupleReply|nested, tuple)
	if zone != 0 {
		b = attr(b, ctaZone, bytes16(zone))
	}
	return b
}

func bytes16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// attr appends one padded attribute.
func attr(b []byte, typ uint16, v []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(v)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, v...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
