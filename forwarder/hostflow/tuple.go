package hostflow

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A Tuple is a flow, by its answer as it looks on the wire: Src is who answers, Dst the pod. Ports are in host order and
// filled as encap.Parse does: TCP, UDP and SCTP ports, ICMP echo's identifier in both, otherwise 0. Addresses are never
// IPv4-mapped. Comparable.
type Tuple struct {
	Proto            uint8
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

func (t Tuple) String() string {
	return fmt.Sprintf("protocol %d %s → %s", t.Proto, netip.AddrPortFrom(t.Src, t.SrcPort), netip.AddrPortFrom(t.Dst, t.DstPort))
}

// ctTuple is a tuple as conntrack has it. For ICMP ports are 0 and the three fields of its own are set.
type ctTuple struct {
	proto            uint8
	src, dst         netip.Addr
	srcPort, dstPort uint16
	icmpType, icmpID uint16 // type is 8 bits on the wire
	zone             uint16 // of this direction only
}

// entry is what we use of a conntrack entry.
type entry struct {
	orig, reply ctTuple
	zone        uint16
}

// ICMP and ICMPv6 types (RFC 792, RFC 4443).
const (
	echoReply4, echoRequest4 = 0, 8
	echoRequest6, echoReply6 = 128, 129
)

// tuple reduces c to what a packet shows.
func (c *ctTuple) tuple() Tuple {
	t := Tuple{Proto: c.proto, Src: c.src, Dst: c.dst}
	switch c.proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		t.SrcPort, t.DstPort = c.srcPort, c.dstPort
	case unix.IPPROTO_ICMP:
		if c.icmpType == echoReply4 || c.icmpType == echoRequest4 {
			t.SrcPort, t.DstPort = c.icmpID, c.icmpID
		}
	case unix.IPPROTO_ICMPV6:
		if c.icmpType == echoReply6 || c.icmpType == echoRequest6 {
			t.SrcPort, t.DstPort = c.icmpID, c.icmpID
		}
	}
	return t
}

// translated reports that the answer is not simply the question turned round.
func (e *entry) translated() bool {
	return e.reply.src != e.orig.dst || e.reply.dst != e.orig.src ||
		e.reply.srcPort != e.orig.dstPort || e.reply.dstPort != e.orig.srcPort || e.reply.icmpID != e.orig.icmpID
}

// replyZone is the zone in which the reply tuple is looked up.
func (e *entry) replyZone() uint16 {
	if e.reply.zone != 0 {
		return e.reply.zone
	}
	return e.zone
}

// askable reports whether conntrack can be asked for t: GRE and others have keys that t does not hold.
func askable(t *Tuple) bool {
	switch t.Proto {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		return true
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return t.SrcPort != 0 // may be an echo with the identifier 0 as well: then the dump knows
	}
	return false
}
