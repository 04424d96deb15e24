package encap

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/google/gopacket/layers"
)

func mss(v uint16) layers.TCPOption {
	return layers.TCPOption{OptionType: 2, OptionLength: 4, OptionData: binary.BigEndian.AppendUint16(nil, v)}
}

func TestClampMSS(t *testing.T) {
	nop, end := layers.TCPOption{OptionType: 1}, layers.TCPOption{OptionType: 0}
	sack := layers.TCPOption{OptionType: 4, OptionLength: 2}
	for _, c := range []struct {
		name string
		v6   bool
		tcp  layers.TCP
		mtu  int
		want uint16 // 0: unchanged
		at   int
	}{
		{"syn", false, layers.TCP{SYN: true, Options: []layers.TCPOption{mss(1460)}}, 1450, 1410, 22},
		{"syn ack", false, layers.TCP{SYN: true, ACK: true, Options: []layers.TCPOption{mss(65535)}}, 1450, 1410, 22},
		{"syn 6", true, layers.TCP{SYN: true, Options: []layers.TCPOption{mss(1440)}}, 1430, 1370, 22},
		{"odd place", false, layers.TCP{SYN: true, Options: []layers.TCPOption{nop, mss(1460)}}, 1450, 1410, 23},
		{"odd place, 6", true, layers.TCP{SYN: true, Options: []layers.TCPOption{sack, nop, mss(0xf00f)}}, 1280, 1220, 25},
		{"fits", false, layers.TCP{SYN: true, Options: []layers.TCPOption{mss(1410)}}, 1450, 0, 0},
		{"no option", false, layers.TCP{SYN: true}, 1450, 0, 0},
		{"behind the end", false, layers.TCP{SYN: true, Options: []layers.TCPOption{end, nop, nop, nop, mss(1460)}}, 1450, 0, 0},
		{"no syn", false, layers.TCP{ACK: true, Options: []layers.TCPOption{mss(1460)}}, 1450, 0, 0},
		{"no room", false, layers.TCP{SYN: true, Options: []layers.TCPOption{mss(1460)}}, 40, 0, 0},
	} {
		for _, partial := range []bool{false, true} {
			b := flow{v6: c.v6, sport: 1, dport: 2}.tcp(t, c.tcp, nil)
			p := mustParse(t, b)
			var v Virtio
			if partial {
				v = makePartial(b, p)
			}
			before := bytes.Clone(b)
			if got := ClampMSS(b, p, v, c.mtu); got != (c.want != 0) {
				t.Fatalf("%s: changed %v", c.name, got)
			}
			if c.want == 0 {
				if !bytes.Equal(b, before) {
					t.Errorf("%s: bytes changed", c.name)
				}
				continue
			}
			if got := binary.BigEndian.Uint16(b[int(p.L4)+c.at:]); got != c.want {
				t.Errorf("%s: MSS %d, want %d", c.name, got, c.want)
			}
			Complete(b, p, &v)
			if !refL4Valid(b, p) {
				t.Errorf("%s partial=%v: checksum is wrong now", c.name, partial)
			}
		}
	}
	udp := flow{}.udp(t, pattern(60))
	udp[33] = TCPSyn // where TCP has its flags
	copy(udp[40:], "\x02\x04\xff\xff")
	if ClampMSS(udp, mustParse(t, udp), Virtio{}, 1400) {
		t.Error("UDP was changed")
	}
	// Options that lie about their length.
	for _, opts := range [][]byte{{2, 4, 5, 0xb4}, {2, 3, 5, 0xb4}, {9, 0, 0, 0}, {9, 1, 2, 4}, {1, 1, 1, 2}, {1, 1, 2, 4}, {9, 200, 0, 0}} {
		b := flow{}.tcp(t, layers.TCP{SYN: true, Options: []layers.TCPOption{nop, nop, nop, nop}}, []byte{9, 9, 9, 9})
		copy(b[40:], opts)
		p := mustParse(t, b)
		if got := ClampMSS(b, p, Virtio{}, 576); got != (opts[0] == 2 && opts[1] == 4) {
			t.Errorf("options % x: changed %v", opts, got)
		}
		if opts[3] == 2 && ClampMSS(b[:44:44], &Packet{Version: 4, Proto: ProtoTCP, L4: 20, Len: 44}, Virtio{}, 576) {
			t.Errorf("options % x without payload: changed", opts)
		}
		if string(b[44:]) != "\x09\x09\x09\x09" {
			t.Errorf("options % x: the payload changed", opts)
		}
	}
}
