package encap

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// castagnoli is the polynomial of SCTP's checksum (RFC 9260 appendix A).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum adds the big-endian 16-bit words of b to initial, in ones' complement (RFC 1071); an odd last byte
// is the high half of a word. Sums of parts add up if each part but the last has even length.
//
// Words are added in the order in which they lie in memory, 8 bytes at a time, and the bytes are swapped
// once at the end: a ones' complement sum does not mind (RFC 1071 section 2B). The adds of a block form
// one chain through the carry flag; two sums take turns, so that their chains overlap in the processor.
// Closing a chain with sum += c never overflows: after a carry the sum is at most 2^64-2, as a chain
// begins without one.
func Sum(b []byte, initial uint32) uint32 {
	var sum, other, c, d uint64
	for len(b) >= 128 {
		s := b[:128:128]
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[0:8]), 0)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[8:16]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[16:24]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[24:32]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[32:40]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[40:48]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[48:56]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[56:64]), c)
		sum += c
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[64:72]), 0)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[72:80]), d)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[80:88]), d)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[88:96]), d)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[96:104]), d)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[104:112]), d)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[112:120]), d)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[120:128]), d)
		other += d
		b = b[128:]
	}
	if len(b) >= 64 {
		s := b[:64:64]
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[0:8]), 0)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[8:16]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[16:24]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[24:32]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[32:40]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[40:48]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[48:56]), c)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[56:64]), c)
		sum += c
		b = b[64:]
	}
	if len(b) >= 32 {
		s := b[:32:32]
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[0:8]), 0)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[8:16]), d)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[16:24]), d)
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(s[24:32]), d)
		other += d
		b = b[32:]
	}
	if len(b) >= 16 {
		s := b[:16:16]
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[0:8]), 0)
		sum, c = bits.Add64(sum, binary.LittleEndian.Uint64(s[8:16]), c)
		sum += c
		b = b[16:]
	}
	if len(b) >= 8 {
		other, d = bits.Add64(other, binary.LittleEndian.Uint64(b), 0)
		other += d
		b = b[8:]
	}
	var tail uint64
	if len(b) >= 4 {
		tail = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		tail += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		tail += uint64(b[0])
	}
	sum, c = bits.Add64(sum, other, 0)
	sum, c = bits.Add64(sum, tail, c)
	sum += c
	total := uint64(initial) + uint64(bits.ReverseBytes16(fold64(sum)))
	return uint32(total) + uint32(total>>32)
}

// fold64 folds a sum of words in any byte order to 16 bits in the same order.
func fold64(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	return Fold(uint32(sum))
}

// Fold folds a sum to 16 bits. It does not complement: ^Fold(sum) is what a checksum field holds.
func Fold(sum uint32) uint16 {
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// PseudoSum returns the sum of the pseudo-header of p (RFC 9293 section 3.1, RFC 8200 section 8.1) for
// l4len bytes of L4 header and payload. Folded it is what a partial checksum leaves in the field.
func PseudoSum(p *Packet, l4len int) uint32 {
	sum := uint32(p.Proto) + uint32(l4len)>>16 + uint32(l4len)&0xffff
	if p.Version == 4 {
		s, d := p.Src.As4(), p.Dst.As4()
		return Sum(d[:], Sum(s[:], sum))
	}
	s, d := p.Src.As16(), p.Dst.As16()
	return Sum(d[:], Sum(s[:], sum))
}

// pseudoSum is PseudoSum from the bytes of the packet, where the two addresses are neighbours.
func pseudoSum(b []byte, p *Packet, l4len int) uint32 {
	sum := uint32(p.Proto) + uint32(l4len)>>16 + uint32(l4len)&0xffff
	if p.Version == 4 {
		return Sum(b[12:20], sum)
	}
	return Sum(b[8:40], sum)
}

// Complete does in software what NEEDS_CSUM asks for and clears the flag, as the kernel's
// skb_checksum_help: the sum from CsumStart to the end, written at CsumStart+CsumOffset, with 0 written
// as 0xffff. SCTP gets its CRC32c (skb_crc32c_csum_help). v must have passed Check for this packet and
// must not be a GSO type; the result is then that v says nothing any more.
func Complete(b []byte, p *Packet, v *Virtio) {
	if v.Flags&NeedsCsum == 0 {
		return
	}
	start := int(v.CsumStart)
	at := start + int(v.CsumOffset)
	if start > p.Len || at+2 > p.Len {
		return // refused by Check; a checksum in the wrong place would hide it
	}
	b = b[:p.Len]
	if p.Proto == ProtoSCTP && start == int(p.L4) {
		if at+4 > p.Len {
			return
		}
		binary.LittleEndian.PutUint32(b[at:], 0)
		binary.LittleEndian.PutUint32(b[at:], crc32.Update(0, castagnoli, b[start:]))
	} else {
		binary.BigEndian.PutUint16(b[at:], nonZero(^Fold(Sum(b[start:], 0))))
	}
	v.Flags &^= NeedsCsum
	v.CsumStart, v.CsumOffset = 0, 0
}

// nonZero maps a computed checksum of 0 to its other form: in UDP a field of 0 says "none" (RFC 768).
func nonZero(c uint16) uint16 {
	if c == 0 {
		return 0xffff
	}
	return c
}

// ChecksumState is what CheckL4 found in the checksum field of a packet.
type ChecksumState uint8

// The states of a checksum.
const (
	ChecksumNone    ChecksumState = iota // nothing to verify: UDP without one, a fragment, a protocol not known here
	ChecksumGood                         // right
	ChecksumPartial                      // the sum of the pseudo-header only: the rest is still to be computed
	ChecksumBad                          // wrong
)

// String returns the name of the state.
func (s ChecksumState) String() string {
	switch s {
	case ChecksumNone:
		return "none"
	case ChecksumGood:
		return "good"
	case ChecksumPartial:
		return "partial"
	}
	return "bad"
}

// CheckL4 judges the checksum of a packet that came without metadata: partial is looked for first, as
// that costs nothing and a kernel peer sends it so over links that do not checksum; then the whole is
// summed. The chance that a complete checksum is taken for a partial one is that of any 16-bit
// accident; the packet's checksum is then computed anew.
//
// UDP without a checksum is ChecksumNone over IPv6, too: RFC 6936 lets tunnels do so, and whether to
// accept it is for the receiving socket to decide.
func CheckL4(b []byte, p *Packet) ChecksumState {
	if p.Frag != NotFrag || p.enroute {
		return ChecksumNone
	}
	l4 := b[p.L4:p.Len]
	var pseudo uint32
	var field uint16
	switch {
	case p.Proto == ProtoTCP:
		pseudo, field = pseudoSum(b, p, len(l4)), TCP(l4).Checksum()
	case p.Proto == ProtoUDP:
		if field = UDP(l4).Checksum(); field == 0 {
			return ChecksumNone
		}
		l4 = l4[:UDP(l4).Length()]
		pseudo = pseudoSum(b, p, len(l4))
	case p.Proto == ProtoICMP && p.Version == 4:
		if len(l4) < ICMPLen {
			return ChecksumNone
		}
		if Fold(Sum(l4, 0)) != 0xffff {
			return ChecksumBad
		}
		return ChecksumGood
	case p.Proto == ProtoICMPv6 && p.Version == 6:
		if len(l4) < ICMPLen {
			return ChecksumNone
		}
		if Fold(Sum(l4, pseudoSum(b, p, len(l4)))) != 0xffff {
			return ChecksumBad
		}
		return ChecksumGood
	default:
		return ChecksumNone
	}
	if field == Fold(pseudo) && len(l4) == p.Len-int(p.L4) {
		return ChecksumPartial // a kernel leaves no bytes behind what UDP's length covers
	}
	if Fold(Sum(l4, pseudo)) != 0xffff {
		return ChecksumBad
	}
	return ChecksumGood
}

// DecrementTTL takes one off the TTL or hop limit, and mends the IPv4 header checksum by RFC 1624,
// equation 3. A TTL of 0 stays: what to do with it is decided before.
func DecrementTTL(b []byte, p *Packet) {
	if p.TTL == 0 {
		return
	}
	p.TTL--
	if p.Version == 6 {
		b[7] = p.TTL
		return
	}
	h := IPv4(b)
	old := binary.BigEndian.Uint16(h[8:10])
	binary.BigEndian.PutUint16(h[8:10], old-0x0100)
	h.setChecksum(update16(h.Checksum(), old, old-0x0100))
}

// SetTOS writes DSCP and ECN, and mends the IPv4 header checksum.
func SetTOS(b []byte, p *Packet, tos uint8) {
	if p.TOS == tos {
		return
	}
	p.TOS = tos
	if p.Version == 6 {
		IPv6(b).setTOS(tos)
		return
	}
	h := IPv4(b)
	old := binary.BigEndian.Uint16(h[0:2])
	h[1] = tos
	h.setChecksum(update16(h.Checksum(), old, binary.BigEndian.Uint16(h[0:2])))
}

// update16 returns checksum field c after a word that it covers went from old to new (RFC 1624,
// equation 3: HC' = ~(~HC + ~m + m')).
func update16(c, old, new uint16) uint16 {
	return ^Fold(uint32(^c) + uint32(^old) + uint32(new))
}
