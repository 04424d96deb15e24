package encap

import (
	"encoding/binary"
	"net/netip"
)

// IPv6Len is the length of the fixed IPv6 header.
const IPv6Len = 40

// Extension headers (RFC 8200, RFC 7045). ESP hides what follows and so counts as a payload.
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extAuth        = 51
	extDestination = 60
	extMobility    = 135
	extHIP         = 139
	extShim6       = 140
)

// maxExtensions bounds the walk along a chain of extension headers: RFC 8200 allows each header once
// and destination options twice, so longer chains only cost time.
const maxExtensions = 10

// IPv6 is an IPv6 header of at least IPv6Len bytes and what follows it.
type IPv6 []byte

// Version returns the IP version field: 6 in an IPv6 packet.
func (h IPv6) Version() uint8 { return h[0] >> 4 }

// TOS returns the traffic class: DSCP and ECN as one byte.
func (h IPv6) TOS() uint8 { return h[0]<<4 | h[1]>>4 }

// FlowLabel returns the 20 bits of the flow label.
func (h IPv6) FlowLabel() uint32 { return binary.BigEndian.Uint32(h[0:4]) & 0xfffff }

// PayloadLen returns the length of everything behind the fixed header, in bytes.
func (h IPv6) PayloadLen() int { return int(binary.BigEndian.Uint16(h[4:6])) }

// NextHeader returns the protocol of the payload or the first extension header.
func (h IPv6) NextHeader() uint8 { return h[6] }

// HopLimit returns the hop limit.
func (h IPv6) HopLimit() uint8 { return h[7] }

// Src returns the source address.
func (h IPv6) Src() netip.Addr { return netip.AddrFrom16([16]byte(h[8:24])) }

// Dst returns the destination address.
func (h IPv6) Dst() netip.Addr { return netip.AddrFrom16([16]byte(h[24:40])) }

func (h IPv6) setTOS(tos uint8) {
	h[0] = h[0]&0xf0 | tos>>4
	h[1] = h[1]&0x0f | tos<<4
}
func (h IPv6) setPayloadLen(n int) { binary.BigEndian.PutUint16(h[4:6], uint16(n)) }

// Put writes a whole header with flow label 0.
func (h IPv6) Put(tos uint8, payloadLen int, next, hopLimit uint8, src, dst netip.Addr) {
	_ = h[IPv6Len-1]
	h[0], h[1], h[2], h[3] = 6<<4|tos>>4, tos<<4, 0, 0
	h.setPayloadLen(payloadLen)
	h[6], h[7] = next, hopLimit
	s, d := src.As16(), dst.As16()
	copy(h[8:24], s[:])
	copy(h[24:40], d[:])
}

// extensions is what walkExtensions found behind the fixed header.
type extensions struct {
	proto     uint8
	off       int  // of the L4 header, or of the payload of a later fragment
	frag      Frag // what the fragment header says; an atomic fragment (RFC 6946) is a whole packet
	fragStart int  // where the fragmented part begins in this packet: right behind the fragment header
	fragOff   int  // its place in the whole packet, in bytes
	moreFrag  bool
	enroute   bool // a routing header with segments left: the pseudo-header's destination is not the header's
}

// extensionSize is how long the extension header of type next is that b begins with: 0 if b does not hold what says so. Other types are none.
func extensionSize(b []byte, next uint8) (size int, is bool) {
	switch next {
	case extHopByHop, extDestination, extRouting, extMobility, extHIP, extShim6:
		if len(b) >= 8 {
			size = (int(b[1]) + 1) * 8
		}
	case extAuth:
		if len(b) >= 8 {
			size = (int(b[1]) + 2) * 4
		}
	case extFragment:
		if len(b) >= 8 {
			size = 8
		}
	default:
		return 0, false
	}
	return size, true
}

// walkExtensions follows the chain of extension headers in b, a packet cut to its length, from offset
// off, where a header of type next begins. A chain that leaves the packet is a fault, in first fragments
// as well (RFC 7112).
func walkExtensions(b []byte, next uint8, off int) (x extensions, f Fault) {
	for range maxExtensions + 1 { // and the L4 header behind the last
		size, is := extensionSize(b[off:], next)
		switch {
		case !is:
			x.proto, x.off = next, off
			return x, OK
		case size == 0 || next == extHopByHop && off != IPv6Len: // RFC 8200 section 4.3: nowhere but first
			return x, FaultBadExtension
		case next == extFragment:
			if x.frag != NotFrag {
				return x, FaultBadExtension
			}
			field := binary.BigEndian.Uint16(b[off+2:])
			x.fragStart, x.fragOff, x.moreFrag = off+8, int(field&^7), field&1 != 0
			switch {
			case x.fragOff != 0:
				x.proto, x.off, x.frag = b[off], off+8, LaterFrag
				return x, OK
			case x.moreFrag:
				x.frag = FirstFrag
			}
		}
		if size > len(b)-off {
			return x, FaultBadExtension
		}
		if next == extRouting && b[off+3] != 0 {
			if b[off+2] == 0 { // RFC 5095: type 0 is the IPv4 source route again
				return x, FaultSourceRoute
			}
			x.enroute = true
		}
		next, off = b[off], off+size
	}
	return x, FaultBadExtension
}
