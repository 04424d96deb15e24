package encap

import "encoding/binary"

// IP protocol numbers.
const (
	ProtoICMP   uint8 = 1
	ProtoIPIP   uint8 = 4
	ProtoTCP    uint8 = 6
	ProtoUDP    uint8 = 17
	ProtoIPv6   uint8 = 41
	ProtoICMPv6 uint8 = 58
	ProtoSCTP   uint8 = 132
)

// Minimal lengths of the headers behind IP.
const (
	TCPLen  = 20
	UDPLen  = 8
	ICMPLen = 8
	sctpLen = 12
)

// TCP flags (RFC 9293 section 3.1).
const (
	TCPFin uint8 = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// Places of the checksums in their headers: the CsumOffset of a virtio header.
const (
	tcpCsumOffset  = 16
	udpCsumOffset  = 6
	icmpCsumOffset = 2
	sctpCsumOffset = 8
)

// TCP is a TCP header of at least TCPLen bytes and what follows it.
type TCP []byte

// SrcPort returns the source port.
func (h TCP) SrcPort() uint16 { return binary.BigEndian.Uint16(h[0:2]) }

// DstPort returns the destination port.
func (h TCP) DstPort() uint16 { return binary.BigEndian.Uint16(h[2:4]) }

// Seq returns the sequence number of the first payload byte.
func (h TCP) Seq() uint32 { return binary.BigEndian.Uint32(h[4:8]) }

// Ack returns the acknowledgement number.
func (h TCP) Ack() uint32 { return binary.BigEndian.Uint32(h[8:12]) }

// HeaderLen returns the length of the header with its options, in bytes.
func (h TCP) HeaderLen() int { return int(h[12]>>4) * 4 }

// Flags returns the eight flags of byte 13.
func (h TCP) Flags() uint8 { return h[13] }

// Window returns the unscaled window.
func (h TCP) Window() uint16 { return binary.BigEndian.Uint16(h[14:16]) }

// Checksum returns the checksum field.
func (h TCP) Checksum() uint16 { return binary.BigEndian.Uint16(h[16:18]) }

// Options returns the option bytes, padding included; h must hold the whole header.
func (h TCP) Options() []byte { return h[TCPLen:h.HeaderLen()] }

func (h TCP) setSeq(v uint32)      { binary.BigEndian.PutUint32(h[4:8], v) }
func (h TCP) setChecksum(c uint16) { binary.BigEndian.PutUint16(h[16:18], c) }

// UDP is a UDP header of at least UDPLen bytes and what follows it.
type UDP []byte

// SrcPort returns the source port.
func (h UDP) SrcPort() uint16 { return binary.BigEndian.Uint16(h[0:2]) }

// DstPort returns the destination port.
func (h UDP) DstPort() uint16 { return binary.BigEndian.Uint16(h[2:4]) }

// Length returns the length of header and payload by the header, in bytes.
func (h UDP) Length() int { return int(binary.BigEndian.Uint16(h[4:6])) }

// Checksum returns the checksum field; 0 says that there is none.
func (h UDP) Checksum() uint16 { return binary.BigEndian.Uint16(h[6:8]) }

func (h UDP) setLength(n int)      { binary.BigEndian.PutUint16(h[4:6], uint16(n)) }
func (h UDP) setChecksum(c uint16) { binary.BigEndian.PutUint16(h[6:8], c) }

// ICMP is an ICMP or ICMPv6 header of at least ICMPLen bytes and what follows it.
type ICMP []byte

// Type returns the message type.
func (h ICMP) Type() uint8 { return h[0] }

// Code returns the code within the type.
func (h ICMP) Code() uint8 { return h[1] }

// Checksum returns the checksum field.
func (h ICMP) Checksum() uint16 { return binary.BigEndian.Uint16(h[2:4]) }

// ID returns the identifier of an echo request or reply.
func (h ICMP) ID() uint16 { return binary.BigEndian.Uint16(h[4:6]) }

// Seq returns the sequence number of an echo request or reply.
func (h ICMP) Seq() uint16 { return binary.BigEndian.Uint16(h[6:8]) }

// MTU returns the MTU that an error reports: 16 bits in fragmentation needed (RFC 1191), 32 bits in
// packet too big (RFC 4443).
func (h ICMP) MTU(v6 bool) int {
	if v6 {
		return int(binary.BigEndian.Uint32(h[4:8]))
	}
	return int(binary.BigEndian.Uint16(h[6:8]))
}

func (h ICMP) setChecksum(c uint16) { binary.BigEndian.PutUint16(h[2:4], c) }
