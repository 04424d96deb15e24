package probe

import "encoding/binary"

// Port is where the responder listens, on the first addresses of the node's pod CIDRs.
const Port = 7472

// A message is the payload of a UDP datagram, big endian, and whatever fills it up behind:
//
//	0      "PNST"
//	4      version, 1
//	5      kind
//	6      u16: echo: how long the answer shall be
//	8      u64: token, chosen by who asks and repeated in answers
//	16     u64: sequence number, repeated in answers
//	24     u64: echoAnswer: Unix time in ns; counted: datagrams
//	32     u64: counted: bytes of payload
//	40     u64: counted: ns from the first to the last datagram
const headerLen = 48

type kind uint8

const (
	echo       kind = 1
	echoAnswer kind = 2
	data       kind = 3 // is counted
	count      kind = 4 // asks for what was counted of the token
	counted    kind = 5
)

const version = 1

type message struct {
	kind    kind
	want    uint16
	token   uint64
	seq     uint64
	a, b, c uint64
}

// parse reads a header; the bytes may be anybody's.
func parse(p []byte) (m message, ok bool) {
	if len(p) < headerLen || string(p[:4]) != "PNST" || p[4] != version {
		return message{}, false
	}
	m = message{
		kind: kind(p[5]), want: binary.BigEndian.Uint16(p[6:]), token: binary.BigEndian.Uint64(p[8:]), seq: binary.BigEndian.Uint64(p[16:]),
		a: binary.BigEndian.Uint64(p[24:]), b: binary.BigEndian.Uint64(p[32:]), c: binary.BigEndian.Uint64(p[40:]),
	}
	return m, m.kind >= echo && m.kind <= counted
}

// put writes the header into the first headerLen bytes of p.
func (m message) put(p []byte) {
	copy(p, "PNST")
	p[4], p[5] = version, byte(m.kind)
	binary.BigEndian.PutUint16(p[6:], m.want)
	binary.BigEndian.PutUint64(p[8:], m.token)
	binary.BigEndian.PutUint64(p[16:], m.seq)
	binary.BigEndian.PutUint64(p[24:], m.a)
	binary.BigEndian.PutUint64(p[32:], m.b)
	binary.BigEndian.PutUint64(p[40:], m.c)
}
