package encap

// Virtio is the metadata that travels with a packet across the kernel boundary (the virtio-net header,
// include/uapi/linux/virtio_net.h), in host byte order. Here CsumStart and HdrLen count from the IP
// header. The type of the same name in package ring has the same fields and converts to it.
type Virtio struct {
	Flags, GSOType                         uint8
	HdrLen, GSOSize, CsumStart, CsumOffset uint16
}

// Flags of a Virtio.
const (
	NeedsCsum = 1 // the checksum at CsumStart+CsumOffset is to be computed from CsumStart on
	DataValid = 2 // the checksum has been verified
)

// GSO types of a Virtio.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOUDP   = 3 // IP fragmentation of UDP: no kernel since 4.14 makes it, and Check refuses it
	GSOTCPv6 = 4
	GSOUDPL4 = 5    // datagrams of GSOSize bytes each
	GSOECN   = 0x80 // with a TCP type: CWR is set in the first segment only
)

const (
	minTCPSegment  = 8   // TCP_MIN_GSO_SIZE in include/net/tcp.h: smaller ones only serve to flood
	maxUDPSegments = 128 // UDP_MAX_SEGMENTS in include/linux/udp.h
)

// IsGSO reports whether v describes a superframe.
func (v Virtio) IsGSO() bool { return v.GSOType != GSONone }

// Check holds v, which may come from a pod with raw sockets and so from anyone, against the packet it
// came with. After OK:
//   - a GSO type fits version and protocol, the packet is whole, its checksum is partial and where the
//     protocol has it, and cutting it gives at most 8192 TCP segments or 128 datagrams;
//   - NEEDS_CSUM without GSO covers a range inside the packet that begins with the L4 header of TCP, UDP
//     or SCTP, or behind the ports of a protocol that may be a pod's own tunnel, whose inner checksum is
//     still partial.
//
// HdrLen is not looked at: for the kernel it is a hint, from a packet socket it is the length of the
// linear part. Set it with the function HeaderLen before a write.
func (v Virtio) Check(b []byte, p *Packet) Fault {
	if v.Flags&^(NeedsCsum|DataValid) != 0 {
		return FaultBadVirtio
	}
	if v.Flags&NeedsCsum == 0 {
		if v.GSOType != GSONone {
			return FaultBadVirtio // whoever cuts it computes checksums anew: a wrong one would become right
		}
		return OK
	}
	start, off := int(v.CsumStart), int(v.CsumOffset)
	if p.Frag != NotFrag || start+off+2 > p.Len {
		return FaultBadVirtio
	}
	if start == int(p.L4) {
		if off != csumOffset(p.Proto) {
			return FaultBadVirtio
		}
	} else if start < int(p.L4)+UDPLen || v.GSOType != GSONone || !mayTunnel(p.Proto) {
		return FaultBadVirtio
	}
	switch v.GSOType {
	case GSONone:
		return OK
	case GSOTCPv4, GSOTCPv4 | GSOECN:
		if p.Version != 4 || p.Proto != ProtoTCP {
			return FaultBadVirtio
		}
	case GSOTCPv6, GSOTCPv6 | GSOECN:
		if p.Version != 6 || p.Proto != ProtoTCP {
			return FaultBadVirtio
		}
	case GSOUDPL4:
		l4len := p.Len - int(p.L4)
		if p.Proto != ProtoUDP || v.GSOSize == 0 || UDP(b[p.L4:]).Length() != l4len ||
			l4len-UDPLen > int(v.GSOSize)*maxUDPSegments {
			return FaultBadVirtio
		}
		return OK
	default:
		return FaultBadVirtio
	}
	if v.GSOSize < minTCPSegment || TCP(b[p.L4:]).Flags()&(TCPSyn|TCPRst) != 0 {
		return FaultBadVirtio
	}
	return OK
}

// csumOffset returns where a protocol has its checksum, and for protocols that the kernel never leaves
// partial a place that no CsumOffset can name.
func csumOffset(proto uint8) int {
	switch proto {
	case ProtoTCP:
		return tcpCsumOffset
	case ProtoUDP:
		return udpCsumOffset
	case ProtoSCTP:
		return sctpCsumOffset
	}
	return -1
}

// mayTunnel reports whether a packet of this protocol may carry another with a checksum of its own.
func mayTunnel(proto uint8) bool {
	switch proto {
	case ProtoTCP, ProtoSCTP, ProtoICMP, ProtoICMPv6:
		return false
	}
	return true
}

// RecoverSuperframe makes the virtio header of a packet that lost its own on the way, as a UDP socket
// hands over whole tunnel superframes without it, and vouches for its checksum: it is called for what
// arrives in place of CheckL4.
//
// mtu is that of the path between the pods. A longer TCP packet is a superframe of segments as long as
// mtu allows. A UDP packet is one if its payload is longer than gso, the size of one message, as the
// UDP_GRO control message gives it (0: there was none). Anything else longer than mtu is FaultBadGRO. A
// superframe's checksum is left partial, or verified and made partial; that of another packet is left
// partial (the result then asks for NEEDS_CSUM) or verified and left as it is.
func RecoverSuperframe(b []byte, p *Packet, gso, mtu int) (Virtio, Fault) {
	v := Virtio{}
	if p.Frag == NotFrag && (p.Proto == ProtoTCP || p.Proto == ProtoUDP) {
		hlen := HeaderLen(b, p)
		switch {
		case p.Proto == ProtoUDP:
			if gso > 0 && p.Len-hlen > gso {
				v.GSOType = GSOUDPL4
			}
		case p.Len > mtu:
			v.GSOType, gso = GSOTCPv4, mtu-hlen
			if p.Version == 6 {
				v.GSOType = GSOTCPv6
			}
			if TCP(b[p.L4:]).Flags()&TCPCwr != 0 {
				v.GSOType |= GSOECN
			}
		}
		v.CsumStart, v.CsumOffset = p.L4, uint16(csumOffset(p.Proto))
		if v.IsGSO() {
			if gso <= 0 || hlen > 0xffff {
				return Virtio{}, FaultBadGRO
			}
			v.Flags, v.HdrLen, v.GSOSize = NeedsCsum, uint16(hlen), uint16(gso)
			if v.Check(b, p) != OK {
				return Virtio{}, FaultBadGRO
			}
		}
	}
	if !v.IsGSO() && p.Len > mtu {
		return Virtio{}, FaultBadGRO
	}
	switch CheckL4(b, p) {
	case ChecksumBad:
		return Virtio{}, FaultBadChecksum
	case ChecksumPartial:
		v.Flags = NeedsCsum
		return v, OK
	case ChecksumGood:
		if v.IsGSO() {
			writePartial(b, p)
			return v, OK
		}
	case ChecksumNone:
		if v.IsGSO() {
			return Virtio{}, FaultBadGRO // UDP without a checksum: cutting it would have to invent one
		}
	}
	return Virtio{}, OK
}

// writePartial writes the sum of the pseudo-header into the checksum field of a TCP or UDP packet.
func writePartial(b []byte, p *Packet) {
	l4 := b[p.L4:p.Len]
	partial := Fold(pseudoSum(b, p, len(l4)))
	if p.Proto == ProtoTCP {
		TCP(l4).setChecksum(partial)
	} else {
		UDP(l4).setChecksum(partial)
	}
}
