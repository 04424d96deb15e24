package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/penstock-net/penstock/encap"
)

// String is the frame in one line, without time.
func (c *Frame) String() string {
	var b strings.Builder
	b.WriteString(c.Stage)
	if c.Reason != "" {
		b.WriteString(" " + c.Reason)
	}
	for _, who := range []string{c.Pod, c.Peer} {
		if who != "" {
			b.WriteString(" " + who)
		}
	}
	b.WriteString(": " + c.packet())
	if c.Segment > 0 {
		fmt.Fprintf(&b, ", superframe of %d byte segments", c.Segment)
	}
	return b.String()
}

// packet names what Data begins with. Data may be cut anywhere.
func (c *Frame) packet() string {
	ip := c.Data
	if c.Ethernet {
		if len(ip) < encap.EthernetLen {
			return fmt.Sprintf("%d bytes", c.Length)
		}
		kind := binary.BigEndian.Uint16(ip[12:])
		ip = ip[encap.EthernetLen:]
		if kind == encap.EtherTypeARP {
			return "ARP"
		}
		if kind != encap.EtherTypeIPv4 && kind != encap.EtherTypeIPv6 {
			return fmt.Sprintf("Ethernet type %#04x, %d bytes", kind, c.Length)
		}
	}
	h, ok := readInner(ip)
	if !ok {
		return fmt.Sprintf("no IP packet, %d bytes", c.Length)
	}
	return h + fmt.Sprintf(", %d bytes", c.Length)
}

var protoNames = map[uint8]string{encap.ProtoICMP: "icmp", encap.ProtoTCP: "tcp", encap.ProtoUDP: "udp", encap.ProtoICMPv6: "icmp6", encap.ProtoSCTP: "sctp"}

// readInner reads addresses, protocol and ports as far as they are there. It judges nothing: encap.Parse refuses what is cut,
// and what is captured often is.
func readInner(b []byte) (string, bool) {
	var ends, ttl string
	var proto uint8
	var l4 []byte
	later := false
	switch {
	case len(b) >= encap.IPv4Len && b[0]>>4 == 4:
		h := encap.IPv4(b[:encap.IPv4Len:len(b)])
		ends = fmt.Sprintf("%s → %s", ip4(b[12:]), ip4(b[16:]))
		ttl, proto = fmt.Sprint(b[8]), b[9]
		later = binary.BigEndian.Uint16(b[6:])&0x1fff != 0
		l4 = b[min(max(h.HeaderLen(), encap.IPv4Len), len(b)):]
	case len(b) >= encap.IPv6Len && b[0]>>4 == 6:
		ends = fmt.Sprintf("%s → %s", ip6(b[8:]), ip6(b[24:]))
		ttl, proto, l4 = fmt.Sprint(b[7]), b[6], b[encap.IPv6Len:]
	default:
		return "", false
	}
	name, known := protoNames[proto]
	if !known {
		name = fmt.Sprintf("protocol %d", proto)
	}
	text := ends + " " + name
	switch {
	case later:
		text += " later fragment"
	case (proto == encap.ProtoTCP || proto == encap.ProtoUDP || proto == encap.ProtoSCTP) && len(l4) >= 4:
		text += fmt.Sprintf(" %d → %d", binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:]))
	case (proto == encap.ProtoICMP || proto == encap.ProtoICMPv6) && len(l4) >= 2:
		text += fmt.Sprintf(" type %d code %d", l4[0], l4[1])
	}
	return text + " ttl " + ttl, true
}

func ip4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
func ip6(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }
