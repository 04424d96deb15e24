package encap

import (
	"encoding/binary"
	"net/netip"
)

// ARPLen is the length of an ARP packet for IPv4 over Ethernet (RFC 826).
const ARPLen = 28

// Lengths of the frames that ARPReply and NeighbourAdvert make.
const (
	ARPReplyLen        = EthernetLen + ARPLen
	NeighbourAdvertLen = EthernetLen + IPv6Len + 24 + 8
)

const (
	arpRequest = 1
	arpReply   = 2
)

// ARP is an ARP packet of at least ARPLen bytes.
type ARP []byte

// Valid reports whether the packet is for IPv4 addresses over Ethernet.
func (h ARP) Valid() bool {
	return binary.BigEndian.Uint64(h[0:8])>>16 == 1<<32|uint64(EtherTypeIPv4)<<16|6<<8|4
}

// Op returns the operation: 1 is a request, 2 a reply.
func (h ARP) Op() uint16 { return binary.BigEndian.Uint16(h[6:8]) }

// SenderMAC returns the sender's hardware address.
func (h ARP) SenderMAC() MAC { return MAC(h[8:14]) }

// Sender returns the sender's protocol address.
func (h ARP) Sender() netip.Addr { return netip.AddrFrom4([4]byte(h[14:18])) }

// Target returns the protocol address that is asked for.
func (h ARP) Target() netip.Addr { return netip.AddrFrom4([4]byte(h[24:28])) }

// ARPReply writes to dst the answer to the Ethernet frame req if that is an ARP request for gateway: a
// whole frame of ARPReplyLen bytes that says that gateway is at mac. It returns its length, or 0 if req
// asks nothing that is to be answered or dst is too short. Probes (sender 0.0.0.0, RFC 5227) are
// answered; an announcement of the gateway's address by the sender itself is not.
func ARPReply(dst, req []byte, gateway netip.Addr, mac MAC) int {
	if len(dst) < ARPReplyLen || len(req) < ARPReplyLen || Ethernet(req).EtherType() != EtherTypeARP {
		return 0
	}
	q := ARP(req[EthernetLen:])
	if !q.Valid() || q.Op() != arpRequest || q.Target() != gateway || q.Sender() == gateway {
		return 0
	}
	asker, sender := q.SenderMAC(), [4]byte(q[14:18])
	if asker.IsMulticast() || asker.IsZero() {
		return 0
	}
	Ethernet(dst).Put(asker, mac, EtherTypeARP)
	r := ARP(dst[EthernetLen:ARPReplyLen])
	copy(r, []byte{0, 1, 0x08, 0x00, 6, 4, 0, arpReply})
	ip := gateway.As4()
	copy(r[8:14], mac[:])
	copy(r[14:18], ip[:])
	copy(r[18:24], asker[:])
	copy(r[24:28], sender[:])
	return ARPReplyLen
}

// ARPRequest writes to dst the question of the gateway, which is at mac, who has target: a whole frame of
// ARPReplyLen bytes to all stations. It returns its length, or 0 if dst is too short.
func ARPRequest(dst []byte, gateway netip.Addr, mac MAC, target netip.Addr) int {
	if len(dst) < ARPReplyLen || !gateway.Is4() || !target.Is4() {
		return 0
	}
	Ethernet(dst).Put(MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, EtherTypeARP)
	r := ARP(dst[EthernetLen:ARPReplyLen])
	clear(r)
	copy(r, []byte{0, 1, 0x08, 0x00, 6, 4, 0, arpRequest})
	sender, asked := gateway.As4(), target.As4()
	copy(r[8:14], mac[:])
	copy(r[14:18], sender[:])
	copy(r[24:28], asked[:])
	return ARPReplyLen
}

// NeighbourSolicit writes to dst the same question for IPv6 (RFC 4861 section 4.3): a whole frame of
// NeighbourAdvertLen bytes to the solicited-node group of target. It returns its length, or 0.
func NeighbourSolicit(dst []byte, gateway netip.Addr, mac MAC, target netip.Addr) int {
	if len(dst) < NeighbourAdvertLen || !gateway.Is6() || !target.Is6() {
		return 0
	}
	asked := target.As16()
	Ethernet(dst).Put(MAC{0x33, 0x33, 0xff, asked[13], asked[14], asked[15]}, mac, EtherTypeIPv6)
	ip := IPv6(dst[EthernetLen:NeighbourAdvertLen])
	ip.Put(icmpTOS, NeighbourAdvertLen-EthernetLen-IPv6Len, ProtoICMPv6, 255, gateway, solicitedNode(target))
	sol := ICMP(ip[IPv6Len:])
	clear(sol)
	sol[0] = icmp6NeighSol
	copy(sol[8:24], asked[:])
	sol[24], sol[25] = ndOptSourceMAC, 1
	copy(sol[26:32], mac[:])
	sol.setChecksum(^Fold(Sum(sol, Sum(ip[8:40], uint32(ProtoICMPv6)+uint32(len(sol))))))
	return NeighbourAdvertLen
}

const (
	ndOptSourceMAC = 1
	ndOptTargetMAC = 2

	// Router, solicited, override (RFC 4861 section 4.4).
	ndRouter    = 0x80
	ndSolicited = 0x40
	ndOverride  = 0x20
)

// allNodes is ff02::1, where answers to a sender without an address go.
var allNodes = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x01})

// NeighbourAdvert writes to dst the answer to the Ethernet frame req if that is a valid neighbour
// solicitation (RFC 4861 section 7.1.1: hop limit 255, checksum, code, lengths, options) for gateway: a
// whole frame of NeighbourAdvertLen bytes that says that gateway is a router at mac. It returns its
// length, or 0 if there is nothing to answer or dst is too short.
func NeighbourAdvert(dst, req []byte, gateway netip.Addr, mac MAC) int {
	if len(dst) < NeighbourAdvertLen || len(req) < EthernetLen || Ethernet(req).EtherType() != EtherTypeIPv6 {
		return 0
	}
	var p Packet
	b := Ethernet(req).Payload()
	if Parse(b, &p) != OK || p.Version != 6 || p.Proto != ProtoICMPv6 || p.Frag != NotFrag || p.TTL != 255 {
		return 0
	}
	sol := b[p.L4:p.Len]
	if len(sol) < 24 || sol[0] != icmp6NeighSol || sol[1] != 0 || CheckL4(b, &p) != ChecksumGood {
		return 0
	}
	gateway = gateway.WithZone("")
	if netip.AddrFrom16([16]byte(sol[8:24])) != gateway || gateway.IsMulticast() {
		return 0
	}
	asker, found := Ethernet(req).Src(), false
	for opts := sol[24:]; len(opts) > 0; {
		if len(opts) < 8 || opts[1] == 0 || int(opts[1])*8 > len(opts) {
			return 0
		}
		if opts[0] == ndOptSourceMAC && opts[1] == 1 {
			asker, found = MAC(opts[2:8]), true
		}
		opts = opts[int(opts[1])*8:]
	}
	to, flags := p.Src, byte(ndRouter|ndSolicited|ndOverride)
	if p.Src.IsUnspecified() {
		// Duplicate address detection: the asker has no address yet, all nodes hear the answer.
		if found || p.Dst != solicitedNode(gateway) {
			return 0
		}
		to, flags, asker = allNodes, ndRouter|ndOverride, MAC{0x33, 0x33, 0, 0, 0, 1}
	} else if p.Src.IsMulticast() || p.Src == gateway || asker.IsMulticast() || asker.IsZero() {
		return 0
	}
	Ethernet(dst).Put(asker, mac, EtherTypeIPv6)
	ip := IPv6(dst[EthernetLen:NeighbourAdvertLen])
	ip.Put(icmpTOS, NeighbourAdvertLen-EthernetLen-IPv6Len, ProtoICMPv6, 255, gateway, to)
	adv := ICMP(ip[IPv6Len:])
	clear(adv)
	adv[0], adv[4] = icmp6NeighAdv, flags
	target := gateway.As16()
	copy(adv[8:24], target[:])
	adv[24], adv[25] = ndOptTargetMAC, 1
	copy(adv[26:32], mac[:])
	adv.setChecksum(^Fold(Sum(adv, Sum(ip[8:40], uint32(ProtoICMPv6)+uint32(len(adv))))))
	return NeighbourAdvertLen
}

// solicitedNode returns the group of a neighbour solicitation for a (RFC 4291 section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}
