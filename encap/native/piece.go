package native

import "encoding/binary"

// Version is that of the format which this package speaks.
const Version = 1

// Piece is some of a burst, as it came: one piece of the sender's cutting, or several neighbours that were merged.
type Piece struct {
	Data   []byte
	Start  uint32 // where in the stream the burst begins
	Length int    // of the burst; 0: Data is a message
	Offset int    // of Data in the burst
	Tag    uint16 // of the stream
	TOS    uint8  // of the packet that brought it; whoever received that says so
}

// TCPLen and UDPLen are the lengths of what stands in front of each piece: with the tcp carrier a TCP header without
// options, with udp a header of ours behind the UDP header.
const (
	TCPLen = 20
	UDPLen = 12
)

// MaxBurst is the longest burst: with 20 bytes of TCP and 40 of IPv6 it is still one IP packet.
const MaxBurst = 65400

// MaxPieces bounds the pieces of a burst, and MinPiece their size.
const (
	MaxPieces = 64
	MinPiece  = 1024
)

const tcpFlags = 0x10 // ACK: what says nothing to anyone

// PutTCP writes the TCP header of a burst, or of its piece at an offset, to dst[:TCPLen]. The checksum is 0. The kernel
// and every NIC count the sequence number up when they cut, and copy acknowledgement and window, which tell the burst.
func PutTCP(dst []byte, tag, port uint16, start uint32, length, offset int) {
	dst = dst[:TCPLen]
	binary.BigEndian.PutUint16(dst[0:], tag)
	binary.BigEndian.PutUint16(dst[2:], port)
	binary.BigEndian.PutUint32(dst[4:], start+uint32(offset))
	binary.BigEndian.PutUint32(dst[8:], start)
	dst[12], dst[13] = TCPLen/4<<4, tcpFlags
	binary.BigEndian.PutUint16(dst[14:], uint16(length))
	binary.BigEndian.PutUint32(dst[16:], 0)
}

// ParseTCP reads a piece from its TCP header on; false: it is none. PSH is tolerated, as NICs may set it when they merge.
func ParseTCP(b []byte) (p Piece, ok bool) {
	if len(b) < TCPLen || b[12] != TCPLen/4<<4 || b[13]&^0x08 != tcpFlags || b[18] != 0 || b[19] != 0 {
		return p, false
	}
	p.Tag = binary.BigEndian.Uint16(b[0:])
	p.Start = binary.BigEndian.Uint32(b[8:])
	p.Length = int(binary.BigEndian.Uint16(b[14:]))
	p.Data = b[TCPLen:]
	offset := binary.BigEndian.Uint32(b[4:]) - p.Start
	if p.Length == 0 {
		return p, offset == 0
	}
	if offset > 0xffff {
		return p, false
	}
	p.Offset = int(offset)
	return p, p.fits()
}

// PutUDP writes the header of a burst's piece to dst[:UDPLen].
func PutUDP(dst []byte, tag uint16, start uint32, length, offset int) {
	dst = dst[:UDPLen]
	dst[0], dst[1] = Version<<4|byte(kindData), 0
	binary.BigEndian.PutUint16(dst[2:], tag)
	binary.BigEndian.PutUint32(dst[4:], start)
	binary.BigEndian.PutUint16(dst[8:], uint16(length))
	binary.BigEndian.PutUint16(dst[10:], uint16(offset))
}

// ParseUDP reads a piece from a datagram of the udp carrier; false: it is none, nor a message.
func ParseUDP(b []byte) (p Piece, ok bool) {
	if len(b) == 0 || b[0]>>4 != Version {
		return p, false
	}
	if Kind(b[0]&15) != kindData {
		p.Data = b
		return p, true
	}
	if len(b) < UDPLen || b[1] != 0 {
		return p, false
	}
	p.Tag = binary.BigEndian.Uint16(b[2:])
	p.Start = binary.BigEndian.Uint32(b[4:])
	p.Length = int(binary.BigEndian.Uint16(b[8:]))
	p.Offset = int(binary.BigEndian.Uint16(b[10:]))
	p.Data = b[UDPLen:]
	return p, p.Length > 0 && p.fits()
}

// fits reports that the piece lies in its burst.
func (p *Piece) fits() bool {
	return len(p.Data) > 0 && p.Length <= MaxBurst && p.Offset+len(p.Data) <= p.Length
}
