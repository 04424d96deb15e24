package native

import "encoding/binary"

// Kind says what a message is.
type Kind uint8

const (
	kindData Kind = iota // no message: a piece
	Hello                // "who are you?": asks for a Welcome
	Welcome              // the answer, with the asker's nonce
	Probe                // asks for an Echo by the same carrier, as long as itself
	Echo                 // the answer
	Fence                // goes behind the last frame on a way that is to be left, and asks for a Passed
	Passed               // the answer: all that went in front of the fence has been handled
	kinds
)

var kindNames = [kinds]string{"data", "hello", "welcome", "probe", "echo", "fence", "passed"}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return "unknown"
}

// Carrier is a way to carry pieces.
type Carrier uint8

// The carriers, as bits of Message.Carriers.
const (
	TCP Carrier = 1 << iota
	UDP
)

func (c Carrier) String() string {
	switch c {
	case 0:
		return "none"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return "unknown"
}

// Message is what nodes say to each other beside the stream. It is MessageLen bytes, and zeros up to any length.
type Message struct {
	Kind                   Kind
	Carriers               Carrier // that the sender can receive
	MinVersion, MaxVersion uint8
	From                   uint64 // the sender's instance: another one after each of its starts
	To                     uint64 // the receiver's instance, as the sender knows it; 0: not yet
	Nonce                  uint64
	FirstTag               uint16 // of the sender's streams
	Streams                uint8  // how many it has at most
	PieceTCP, PieceUDP     uint16 // how the sender cuts
	Network                uint32 // of frames that name none: a VNI
}

// MessageLen is the length of a message without its padding.
const MessageLen = 40

// Put writes m to dst[:MessageLen].
func (m *Message) Put(dst []byte) {
	dst = dst[:MessageLen]
	dst[0], dst[1] = Version<<4|byte(m.Kind), byte(m.Carriers)
	dst[2], dst[3] = m.MinVersion, m.MaxVersion
	binary.BigEndian.PutUint64(dst[4:], m.From)
	binary.BigEndian.PutUint64(dst[12:], m.To)
	binary.BigEndian.PutUint64(dst[20:], m.Nonce)
	binary.BigEndian.PutUint16(dst[28:], m.FirstTag)
	dst[30], dst[31] = m.Streams, 0
	binary.BigEndian.PutUint16(dst[32:], m.PieceTCP)
	binary.BigEndian.PutUint16(dst[34:], m.PieceUDP)
	binary.BigEndian.PutUint32(dst[36:], m.Network)
}

// ParseMessage reads a message; false: it is none that this version knows.
func ParseMessage(b []byte) (m Message, ok bool) {
	if len(b) < MessageLen || b[0]>>4 != Version {
		return m, false
	}
	m = Message{Kind: Kind(b[0] & 15), Carriers: Carrier(b[1]) & (TCP | UDP), MinVersion: b[2], MaxVersion: b[3],
		From: binary.BigEndian.Uint64(b[4:]), To: binary.BigEndian.Uint64(b[12:]), Nonce: binary.BigEndian.Uint64(b[20:]),
		FirstTag: binary.BigEndian.Uint16(b[28:]), Streams: b[30],
		PieceTCP: binary.BigEndian.Uint16(b[32:]), PieceUDP: binary.BigEndian.Uint16(b[34:]), Network: binary.BigEndian.Uint32(b[36:])}
	switch {
	case m.Kind == kindData || m.Kind >= kinds || m.From == 0 || m.Network > 1<<24-1 || b[31] != 0:
		return Message{}, false
	case m.MinVersion > m.MaxVersion || m.MinVersion > Version || m.MaxVersion < Version:
		return Message{}, false
	case m.Carriers&TCP != 0 && m.PieceTCP < MinPiece, m.Carriers&UDP != 0 && m.PieceUDP < MinPiece:
		return Message{}, false
	}
	return m, true
}

// Piece is how the sender of m cuts for a carrier.
func (m *Message) Piece(c Carrier) int {
	if c == TCP {
		return int(m.PieceTCP)
	}
	return int(m.PieceUDP)
}
