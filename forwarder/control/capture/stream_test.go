package capture

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

var someFrames = []Frame{
	{Time: time.Unix(1, 5), Worker: 1, Stage: "from-pod", Pod: "c1/eth0", Ethernet: true, Length: 3, Data: []byte{1, 2, 3}},
	{Time: time.Unix(2, 0), Stage: "dropped", Reason: "spoofed", Peer: "node-b", Outer: true, Length: 65000, Segment: 1400, Data: bytes.Repeat([]byte{7}, 60000)},
}

// stream is what a server would send.
func stream(cs ...Frame) []byte {
	var b bytes.Buffer
	w := NewWriter(&b)
	for i := range cs {
		w.Frame(&cs[i])
	}
	w.Lost(9)
	w.Flush()
	return b.Bytes()
}

// TestCaptureReaderRefuses: each way to damage a stream is an error in a sentence, never a frame.
func TestCaptureReaderRefuses(t *testing.T) {
	good := stream(someFrames...)
	damage := func(at int, b ...byte) []byte { g := slices.Clone(good); copy(g[at:], b); return g }
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"nothing":           {nil, "broke off before"},
		"another magic":     {damage(0, 'X'), "of its version"},
		"cut in a record":   {good[:20], "broke off within"},
		"cut in a length":   {good[:10], "broke off within"},
		"no length":         {damage(8, 0, 0, 0, 0), "claims 0 bytes"},
		"a giant":           {damage(8, 0xff, 0xff, 0xff, 0x7f), "damaged"},
		"a text too long":   {damage(8+5+frameHead, 255), "damaged"},
		"shorter than data": {damage(8+5+8, 1, 0, 0, 0), "damaged"},
	} {
		r, err := NewReader(bytes.NewReader(c.b))
		if err == nil {
			_, err = r.Next()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := NewReader(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	for range someFrames {
		if _, err := r.Next(); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Next(); err != io.EOF || r.Lost() != 9 {
		t.Errorf("%v, %d lost", err, r.Lost())
	}
}

func TestCapturedString(t *testing.T) {
	ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 244, 1, 5, 10, 244, 2, 5, 0, 1, 0, 2, 0, 8, 0, 0}
	six := append([]byte{0x60, 0, 0, 0, 0, 8, 58, 1}, make([]byte, 32)...)
	eth := func(t byte, b []byte) []byte { return append(append(make([]byte, 12), 8, t), b...) }
	for _, c := range []struct {
		c    Frame
		want string
	}{
		{Frame{Stage: "to-peer", Pod: "c/eth0", Peer: "b", Data: ip, Length: 28}, "to-peer c/eth0 b: 10.244.1.5 → 10.244.2.5 udp 1 → 2 ttl 64, 28 bytes"},
		{Frame{Stage: "dropped", Reason: "short", Data: ip[:20], Length: 28, Segment: 9}, "dropped short: 10.244.1.5 → 10.244.2.5 udp ttl 64, 28 bytes, superframe of 9 byte segments"},
		{Frame{Stage: "from-pod", Ethernet: true, Data: eth(0, ip), Length: 42}, "from-pod: 10.244.1.5 → 10.244.2.5 udp 1 → 2 ttl 64, 42 bytes"},
		{Frame{Stage: "from-pod", Ethernet: true, Data: eth(6, nil), Length: 42}, "from-pod: ARP"},
		{Frame{Stage: "from-pod", Ethernet: true, Data: eth(1, nil), Length: 42}, "from-pod: Ethernet type 0x0801, 42 bytes"},
		{Frame{Stage: "to-pod", Data: append(six, 128, 0), Length: 50}, "to-pod: :: → :: icmp6 type 128 code 0 ttl 1, 50 bytes"},
		{Frame{Stage: "to-pod", Data: append([]byte{0x45, 0, 0, 28, 0, 0, 0, 5}, ip[8:]...), Length: 28}, "to-pod: 10.244.1.5 → 10.244.2.5 udp later fragment ttl 64, 28 bytes"},
		{Frame{Stage: "to-pod", Data: append([]byte{0x44}, ip[1:]...), Length: 28}, "to-pod: 10.244.1.5 → 10.244.2.5 udp ttl 64, 28 bytes"},
		{Frame{Stage: "to-pod", Data: []byte{1}, Length: 1}, "to-pod: no IP packet, 1 bytes"},
	} {
		if got := c.c.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestParseProtocol(t *testing.T) {
	for s, want := range map[string]uint8{"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58, "sctp": 132, "1": 1, "255": 255, "TCP": 6, "icmpv6": 58} {
		if got, err := ParseProtocol(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	if len(Protocols) != len(protoNames) {
		t.Errorf("%v and %v", Protocols, protoNames)
	}
	for _, s := range Protocols {
		if n, err := ParseProtocol(s); err != nil || protoNames[n] != s {
			t.Errorf("%s: %d, %v", s, n, err)
		}
	}
	for _, s := range []string{"", "0", "256", "-1", "quic"} {
		if got, err := ParseProtocol(s); err == nil || !strings.Contains(err.Error(), "icmp6") {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}

// FuzzCaptureStream: whatever arrives ends in an error or in frames that can be printed and that, written again, are the same.
func FuzzCaptureStream(f *testing.F) {
	f.Add(stream(someFrames...))
	f.Add(stream())
	f.Add([]byte(streamMagic + "\x03\x00\x00\x00Ehi"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		for {
			c, err := r.Next()
			if err != nil {
				var e *control.Error
				if !errors.Is(err, io.EOF) && !errors.As(err, &e) && !strings.Contains(err.Error(), "the capture") {
					t.Errorf("%v", err)
				}
				return
			}
			if len(c.Data) > c.Length || c.String() == "" {
				t.Errorf("%+v", c)
			}
			again, err := NewReader(bytes.NewReader(stream(*c)))
			if err != nil {
				t.Fatal(err)
			}
			d, err := again.Next()
			if err != nil {
				t.Fatal(err)
			}
			if x, y := *c, *d; !x.Time.Equal(y.Time) || x.Stage != y.Stage || x.Reason != y.Reason || x.Pod != y.Pod || x.Peer != y.Peer ||
				x.Ethernet != y.Ethernet || x.Outer != y.Outer || x.Length != y.Length || x.Segment != y.Segment || !bytes.Equal(x.Data, y.Data) {
				t.Errorf("%+v became %+v", x, y)
			}
		}
	})
}
