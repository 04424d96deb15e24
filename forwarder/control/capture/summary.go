package capture

import (
	"encoding/binary"
	"fmt"
	"strconv"
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

// readInner reads addresses, protocol and ports as far as they are there.
func readInner(b []byte) (string, bool) {
	var p encap.Packet
	if !encap.Peek(b, &p) {
		return "", false
	}
	name, known := protoNames[p.Proto]
	if !known {
		name = fmt.Sprintf("protocol %d", p.Proto)
	}
	text := fmt.Sprintf("%s → %s %s", p.Src, p.Dst, name)
	l4 := b[min(int(p.L4), len(b)):]
	switch {
	case p.Frag == encap.LaterFrag:
		text += " later fragment"
	case p.L4 == 0:
	case (p.Proto == encap.ProtoTCP || p.Proto == encap.ProtoUDP || p.Proto == encap.ProtoSCTP) && len(l4) >= 4:
		text += fmt.Sprintf(" %d → %d", p.SrcPort, p.DstPort)
	case (p.Proto == encap.ProtoICMP || p.Proto == encap.ProtoICMPv6) && len(l4) >= 2:
		text += fmt.Sprintf(" type %d code %d", l4[0], l4[1])
	}
	return text + fmt.Sprintf(" ttl %d", p.TTL), true
}

// Protocols are those that have a name here.
var Protocols = [...]string{"tcp", "udp", "icmp", "icmp6", "sctp"}

// ParseProtocol reads a protocol as frames are shown with, in any case of letters, or its number.
func ParseProtocol(s string) (uint8, error) {
	for n, name := range protoNames {
		if strings.EqualFold(s, name) || n == encap.ProtoICMPv6 && strings.EqualFold(s, "icmpv6") {
			return n, nil
		}
	}
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && n > 0 {
		return uint8(n), nil
	}
	return 0, fmt.Errorf("there is no protocol %q: write %s or a number from 1 to 255", s, strings.Join(Protocols[:], ", "))
}
