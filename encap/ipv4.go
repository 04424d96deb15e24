package encap

import (
	"encoding/binary"
	"net/netip"
)

// IPv4Len is the length of an IPv4 header without options; with options it is up to 60 bytes.
const IPv4Len = 20

// Bits of the IPv4 flags and fragment offset field (RFC 791 section 3.1).
const (
	ipv4DF         = 0x4000
	ipv4MF         = 0x2000
	ipv4OffsetMask = 0x1fff // in units of 8 bytes
)

// IPv4 options that matter to a router (RFC 791, RFC 7126).
const (
	ipv4OptEnd   = 0
	ipv4OptNOP   = 1
	ipv4OptLSRR  = 131
	ipv4OptSSRR  = 137
	ipv4OptsCopy = 0x80 // set in the type of options that go into every fragment
)

// IPv4 is an IPv4 header of at least IPv4Len bytes and what follows it.
type IPv4 []byte

// Version returns the IP version field: 4 in an IPv4 packet.
func (h IPv4) Version() uint8 { return h[0] >> 4 }

// HeaderLen returns the length of the header with its options, in bytes.
func (h IPv4) HeaderLen() int { return int(h[0]&15) * 4 }

// TOS returns DSCP and ECN as one byte.
func (h IPv4) TOS() uint8 { return h[1] }

// TotalLen returns the length of header and payload, in bytes.
func (h IPv4) TotalLen() int { return int(binary.BigEndian.Uint16(h[2:4])) }

// ID returns the identification that fragments of one packet share.
func (h IPv4) ID() uint16 { return binary.BigEndian.Uint16(h[4:6]) }

// DF reports whether the packet must not be fragmented.
func (h IPv4) DF() bool { return h[6]&0x40 != 0 }

// MF reports whether fragments follow.
func (h IPv4) MF() bool { return h[6]&0x20 != 0 }

// FragOffset returns the place of the payload in the unfragmented payload, in bytes.
func (h IPv4) FragOffset() int { return int(h.fragField()&ipv4OffsetMask) * 8 }

// TTL returns the time to live.
func (h IPv4) TTL() uint8 { return h[8] }

// Proto returns the protocol of the payload.
func (h IPv4) Proto() uint8 { return h[9] }

// Checksum returns the header checksum.
func (h IPv4) Checksum() uint16 { return binary.BigEndian.Uint16(h[10:12]) }

// Src returns the source address.
func (h IPv4) Src() netip.Addr { return netip.AddrFrom4([4]byte(h[12:16])) }

// Dst returns the destination address.
func (h IPv4) Dst() netip.Addr { return netip.AddrFrom4([4]byte(h[16:20])) }

// Options returns the option bytes, padding included; h must hold the whole header.
func (h IPv4) Options() []byte { return h[IPv4Len:h.HeaderLen()] }

func (h IPv4) fragField() uint16     { return binary.BigEndian.Uint16(h[6:8]) }
func (h IPv4) setFragField(v uint16) { binary.BigEndian.PutUint16(h[6:8], v) }
func (h IPv4) setTotalLen(n int)     { binary.BigEndian.PutUint16(h[2:4], uint16(n)) }
func (h IPv4) setChecksum(c uint16)  { binary.BigEndian.PutUint16(h[10:12], c) }

// updateChecksum computes the header checksum anew; h must hold the whole header.
func (h IPv4) updateChecksum() {
	h.setChecksum(0)
	h.setChecksum(^Fold(Sum(h[:h.HeaderLen()], 0)))
}

// checkIPv4Options walks the options of a header. Length errors make the packet malformed; source
// routes are refused, as their sender chooses the way around every check of this node (RFC 7126 section 4.3).
func checkIPv4Options(opts []byte) Fault {
	for len(opts) > 0 {
		switch opts[0] {
		case ipv4OptEnd:
			return OK
		case ipv4OptNOP:
			opts = opts[1:]
			continue
		case ipv4OptLSRR, ipv4OptSSRR:
			return FaultSourceRoute
		}
		if len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts) {
			return FaultBadOptions
		}
		opts = opts[opts[1]:]
	}
	return OK
}
