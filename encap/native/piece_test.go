package native

import (
	"testing"

	"github.com/penstock-net/penstock/encap"
)

// A small plain packet costs three bytes, and what is reserved is refused.
func TestFrameHeader(t *testing.T) {
	var p encap.Packet
	if n := HeaderLen(encap.Virtio{}, &p); n > 4 {
		t.Errorf("a plain packet costs %d bytes", n)
	}
	for name, b := range map[string][]byte{
		"reserved flag": {0x10, 0, 40}, "too short a packet": {0, 0, 19}, "CWR without a superframe": {flagCWR | formCsum, 0, 40},
	} {
		if _, more, ok := parseHeader(b); more || ok {
			t.Errorf("%s is read", name)
		}
	}
	h, _, ok := parseHeader([]byte{formPlace | flagNet, 1, 0, 0, 40, 0, 6, 1, 2, 3})
	if !ok || h.size != MaxHeader || h.length != 256 || h.a != 40 || h.b != 6 || h.network != 0x010203 {
		t.Errorf("%+v", h)
	}
	if n := PutHeader(make([]byte, 2), 40, encap.Virtio{}, &p); n != 0 {
		t.Error("a header without room is written")
	}
}

func TestMessageRefused(t *testing.T) {
	good := Message{Kind: Welcome, Carriers: TCP | UDP, MinVersion: 1, MaxVersion: 1, From: 1, PieceTCP: MinPiece, PieceUDP: MinPiece}
	for name, change := range map[string]func(*Message){
		"data":            func(m *Message) { m.Kind = kindData },
		"unknown kind":    func(m *Message) { m.Kind = kinds },
		"no instance":     func(m *Message) { m.From = 0 },
		"later versions":  func(m *Message) { m.MinVersion, m.MaxVersion = 2, 3 },
		"turned versions": func(m *Message) { m.MinVersion, m.MaxVersion = 1, 0 },
		"small pieces":    func(m *Message) { m.PieceUDP = MinPiece - 1 },
		"a long network":  func(m *Message) { m.Network = 1 << 24 },
	} {
		m := good
		var b [MessageLen]byte
		m.Put(b[:])
		if got, ok := ParseMessage(b[:]); !ok || got != good {
			t.Fatalf("%+v is read as %+v", good, got)
		}
		change(&m)
		m.Put(b[:])
		if _, ok := ParseMessage(b[:]); ok {
			t.Errorf("%s is taken", name)
		}
	}
	if good.Piece(TCP) != MinPiece || Hello.String() != "hello" || Kind(200).String() != "unknown" || TCP.String() != "tcp" || UDP.String() != "udp" || Carrier(0).String() != "none" {
		t.Error("names")
	}
}

// The kernel counts the sequence number up and copies the rest, also where the sequence wraps.
func TestPieceHeaders(t *testing.T) {
	b := make([]byte, TCPLen+100)
	PutTCP(b, 0x9000, 7471, 0xffffff00, 5000, 1400)
	p, ok := ParseTCP(b)
	if !ok || p.Offset != 1400 || p.Start != 0xffffff00 || p.Length != 5000 || p.Tag != 0x9000 || len(p.Data) != 100 {
		t.Errorf("%+v", p)
	}
	b[13] = 0x02
	if _, ok := ParseTCP(b); ok {
		t.Error("a SYN is a piece")
	}
	PutTCP(b, 0x9000, 7471, 5, 1450, 1400)
	if _, ok := ParseTCP(b); ok {
		t.Error("a piece leaves its burst")
	}
}
