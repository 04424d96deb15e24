package native

import (
	"encoding/binary"

	"github.com/penstock-net/penstock/encap"
)

// A frame is one IP packet, or superframe, with what the virtio header says of it:
//
//	0        1           3
//	│ flags  │ length    │ segment size (superframe) or checksum start, offset │ network │ IP packet …
//
// What follows from the packet is not repeated: the GSO type from version and protocol, the place of a checksum from
// the protocol.
const (
	formMask  = 0x03
	formPlain = 0 // checksums are complete
	formCsum  = 1 // the L4 checksum is the sum of the pseudo-header
	formSuper = 2 // the same, and the packet is to be cut: u16 segment size follows
	formPlace = 3 // a partial checksum elsewhere: u16 start and u16 offset follow
	flagCWR   = 0x04
	flagNet   = 0x08 // u24 network (VNI) follows
	reserved  = 0xf0

	minPacket = encap.IPv4Len
)

// MaxHeader is the longest frame header.
const MaxHeader = 3 + 4 + 3

// NoNetwork is the network of a frame that does not name one: the one that the nodes have agreed on.
const NoNetwork = -1

// PutHeader writes the header of a frame with an IP packet of n bytes to the end of dst, in front of where the packet
// begins, and returns its length; 0: it does not fit. v has passed Check against the packet.
func PutHeader(dst []byte, n int, v encap.Virtio, p *encap.Packet) int {
	var h [MaxHeader]byte
	k := 3
	binary.BigEndian.PutUint16(h[1:], uint16(n))
	switch {
	case v.IsGSO():
		h[0] = formSuper
		if v.GSOType&encap.GSOECN != 0 {
			h[0] |= flagCWR
		}
		binary.BigEndian.PutUint16(h[3:], v.GSOSize)
		k = 5
	case v.Flags&encap.NeedsCsum == 0:
	case v.CsumStart == p.L4:
		h[0] = formCsum
	default:
		h[0] = formPlace
		binary.BigEndian.PutUint16(h[3:], v.CsumStart)
		binary.BigEndian.PutUint16(h[5:], v.CsumOffset)
		k = 7
	}
	if len(dst) < k || n > 0xffff {
		return 0
	}
	copy(dst[len(dst)-k:], h[:k])
	return k
}

// HeaderLen is what PutHeader will write.
func HeaderLen(v encap.Virtio, p *encap.Packet) int {
	switch {
	case v.IsGSO():
		return 5
	case v.Flags&encap.NeedsCsum != 0 && v.CsumStart != p.L4:
		return 7
	}
	return 3
}

// header is a parsed frame header.
type header struct {
	size    int // of itself
	length  int // of the IP packet
	flags   byte
	a, b    uint16 // what follows the length
	network int
}

// parseHeader reads a frame header. more: b is too short to tell; !ok: it is none.
func parseHeader(b []byte) (h header, more, ok bool) {
	if len(b) < 3 {
		return h, true, false
	}
	h.flags, h.length, h.size, h.network = b[0], int(binary.BigEndian.Uint16(b[1:])), 3, NoNetwork
	form := h.flags & formMask
	if h.flags&reserved != 0 || h.length < minPacket || h.flags&flagCWR != 0 && form != formSuper {
		return h, false, false
	}
	switch form {
	case formSuper:
		h.size = 5
	case formPlace:
		h.size = 7
	}
	at := h.size
	if h.flags&flagNet != 0 {
		h.size += 3
	}
	if len(b) < h.size {
		return h, true, false
	}
	if at > 3 {
		h.a = binary.BigEndian.Uint16(b[3:])
	}
	if at > 5 {
		h.b = binary.BigEndian.Uint16(b[5:])
	}
	if h.flags&flagNet != 0 {
		h.network = int(b[at])<<16 | int(b[at+1])<<8 | int(b[at+2])
	}
	return h, false, true
}

// Frame is what Next found.
type Frame struct {
	IP      []byte // an IP packet, to its end; of a Lost frame what has arrived of it without a gap, may be nil
	Network int    // NoNetwork, or the VNI that the frame names
	Kind    FrameKind
	TOS     uint8 // outer, of its burst
	h       header
	virtio  encap.Virtio // of a part
}

// FrameKind says what Next returned.
type FrameKind uint8

const (
	Whole FrameKind = iota // as it was sent
	Part                   // of a TCP superframe that lost a piece
	Lost                   // the header has arrived, but not all of the rest
	Bad                    // what stands where a frame should begin is none; what follows it, up to the next border, is skipped
)

// Virtio is the virtio header of a frame whose packet is p; false: the two do not fit. Check has still to be passed.
func (f *Frame) Virtio(p *encap.Packet) (v encap.Virtio, ok bool) {
	if f.Kind == Part {
		return f.virtio, true
	}
	return f.h.virtio(p)
}

func (h *header) virtio(p *encap.Packet) (v encap.Virtio, ok bool) {
	form := h.flags & formMask
	if form == formPlain {
		return v, true
	}
	v.Flags = encap.NeedsCsum
	if form == formPlace {
		v.CsumStart, v.CsumOffset = h.a, h.b
		return v, h.a != p.L4 // the usual place has a form of its own
	}
	v.CsumStart = p.L4
	switch p.Proto {
	case encap.ProtoTCP:
		v.CsumOffset = 16
	case encap.ProtoUDP:
		v.CsumOffset = 6
	case encap.ProtoSCTP:
		v.CsumOffset = 8
	default:
		return v, false
	}
	if form == formSuper {
		v.GSOSize = h.a
		switch {
		case p.Proto == encap.ProtoUDP:
			v.GSOType = encap.GSOUDPL4
		case p.Proto != encap.ProtoTCP:
			return v, false
		case p.Version == 6:
			v.GSOType = encap.GSOTCPv6
		default:
			v.GSOType = encap.GSOTCPv4
		}
		if h.flags&flagCWR != 0 {
			v.GSOType |= encap.GSOECN
		}
	}
	return v, true
}
