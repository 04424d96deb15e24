package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
)

var peer = netip.MustParseAddr("10.244.2.0")

func datagram(m message, n int) []byte {
	b := make([]byte, n)
	m.put(b)
	return b
}

// TestAnswers: an answer is as long as was asked for and never longer than the question, and only peers get one.
func TestAnswers(t *testing.T) {
	var r answerer
	r.allow([]netip.Addr{peer})
	out := make([]byte, 1<<16)
	now := time.Unix(1000, 7)
	for _, c := range []struct{ want, size, answer int }{{0, 48, 48}, {48, 48, 48}, {100, 48, 48}, {100, 1400, 100}, {1400, 1400, 1400}, {65535, 1400, 1400}} {
		q := message{kind: echo, want: uint16(c.want), token: 5, seq: 6}
		n := r.answer(peer, datagram(q, c.size), out, now)
		m, ok := parse(out[:n])
		if n != c.answer || !ok || m.kind != echoAnswer || m.token != 5 || m.seq != 6 || m.a != uint64(now.UnixNano()) {
			t.Errorf("want %d in %d bytes: %d bytes, %+v", c.want, c.size, n, m)
		}
		if !bytes.Equal(out[headerLen:n], make([]byte, n-headerLen)) {
			t.Errorf("want %d: the answer holds what was there before", c.want)
		}
	}
	for _, from := range []string{"10.244.2.1", "10.244.1.0", "192.0.2.2", "fd00::"} {
		if n := r.answer(netip.MustParseAddr(from), datagram(message{kind: echo}, 100), out, now); n != 0 {
			t.Errorf("%s, which is no peer, got %d bytes", from, n)
		}
	}
	r.allow(nil)
	if n := r.answer(peer, datagram(message{kind: echo}, 100), out, now); n != 0 {
		t.Error("a peer that has gone was answered")
	}
}

// TestCounts: what one token sent is counted, another begins anew, and a list of peers that changes forgets nobody who stays.
func TestCounts(t *testing.T) {
	var r answerer
	r.allow([]netip.Addr{peer})
	out := make([]byte, 1<<16)
	now := time.Unix(1000, 0)
	for i := range 10 {
		if n := r.answer(peer, datagram(message{kind: data, token: 1}, 100), out, now.Add(time.Duration(i))); n != 0 {
			t.Fatal("data was answered")
		}
	}
	r.allow([]netip.Addr{peer, netip.MustParseAddr("10.244.3.0")})
	ask := func(token uint64) message {
		n := r.answer(peer, datagram(message{kind: count, token: token, seq: 9}, headerLen), out, now)
		m, ok := parse(out[:n])
		if !ok || n != headerLen || m.kind != counted || m.seq != 9 {
			t.Fatalf("%d bytes, %+v", n, m)
		}
		return m
	}
	if m := ask(1); m.a != 10 || m.b != 1000 || m.c != 9 {
		t.Errorf("counted %+v", m)
	}
	if m := ask(2); m.a != 0 || m.b != 0 {
		t.Errorf("another token's: %+v", m)
	}
	r.answer(peer, datagram(message{kind: data, token: 2}, 48), out, now)
	if m := ask(2); m.a != 1 || m.b != 48 {
		t.Errorf("the next token's: %+v", m)
	}
}

// TestAnswerRate: a flood gets answerRate a second and a burst, no more; then it goes on.
func TestAnswerRate(t *testing.T) {
	var r answerer
	r.allow([]netip.Addr{peer})
	out, q := make([]byte, 100), datagram(message{kind: echo}, 100)
	now, answers := time.Unix(1000, 0), 0
	for range 1_000_000 { // in one second
		if now = now.Add(time.Microsecond); r.answer(peer, q, out, now) > 0 {
			answers++
		}
	}
	if answers < answerRate || answers > answerRate*11/10 {
		t.Errorf("%d answers in a second, want %d and a tenth more at most", answers, answerRate)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(datagram(message{kind: echo, want: 99, token: 1, seq: 2}, 100))
	f.Add(datagram(message{kind: data, token: 1}, 48))
	f.Add(datagram(message{kind: count, token: 1}, 60))
	f.Add([]byte("PNST"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r answerer
		r.allow([]netip.Addr{peer})
		out := make([]byte, max(len(b), 1))
		n := r.answer(peer, b, out, time.Unix(1, 0))
		if n > len(b) {
			t.Fatalf("%d bytes are answered with %d", len(b), n)
		}
		if m, ok := parse(out[:n]); n > 0 && (!ok || m.kind != echoAnswer && m.kind != counted) {
			t.Fatalf("the answer is %+v", m)
		}
		if m, ok := parse(b); ok {
			again := append([]byte{}, b...)
			m.put(again)
			if !bytes.Equal(again, b) {
				t.Fatalf("%x is read and written as %x", b, again)
			}
		} else if n > 0 {
			t.Fatal("no message, and answered")
		}
		if r.answer(netip.MustParseAddr("10.244.2.1"), b, out, time.Unix(1, 0)) != 0 {
			t.Fatal("a stranger was answered")
		}
		isEchoReply(b, false, 1, 1)
		isEchoReply(b, true, 1, 1)
	})
}

func FuzzPieces(f *testing.F) {
	f.Add([]byte("0123456789"), 4)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		var all []byte
		for _, p := range pieces(b, size) {
			if len(p) > max(size, len(b)) && size > 0 {
				t.Fatalf("a piece of %d bytes out of %d by %d", len(p), len(b), size)
			}
			all = append(all, p...)
		}
		if !bytes.Equal(all, b) {
			t.Fatalf("%x came apart into %x", b, all)
		}
		segment(b)
	})
}

// TestLargest: the search ends at the very size that passes, whether all packets arrive or every third is lost.
func TestLargest(t *testing.T) {
	for i := range 6 {
		lossy, off := i > 2, i%3*5 // and how far the guess is off; 0: there is none
		for mtu := smallProbe; mtu <= 1450; mtu += 7 {
			n, guess := 0, 0
			if off > 0 {
				guess = mtu + off - 7
			}
			got := largest(t.Context(), 1450, guess, func(size int) error {
				if n++; size > mtu || lossy && n%3 == 0 {
					return errSilent
				}
				return nil
			})
			if got != mtu {
				t.Errorf("path of %d, guessed %d, lossy %v: found %d", mtu, guess, lossy, got)
			}
			if n > 40 {
				t.Errorf("path of %d: %d probes", mtu, n)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := 0
	if largest(ctx, 1450, 0, func(int) error { n++; return errSilent }); n > 0 {
		t.Error("it went on after the end of its context")
	}
}

// TestFragments: together they are the datagram, none is longer than allowed, and all but the last have a multiple of eight bytes.
func TestFragments(t *testing.T) {
	from, to := netip.MustParseAddrPort("10.244.1.0:40000"), netip.MustParseAddrPort("10.244.2.0:7472")
	payload := bytes.Repeat([]byte("penstock"), 178)
	for _, size := range []int{smallProbe, 1370, 1374, 1450, 9000} {
		var all []byte
		list := fragments(from, to, 7, payload, size)
		for i, f := range list {
			h, err := ipv4.ParseHeader(f)
			if err != nil {
				t.Fatal(err)
			}
			last := i == len(list)-1
			if len(f) > size || h.TotalLen != len(f) || h.ID != 7 || h.FragOff*8 != len(all) || (h.Flags == ipv4.MoreFragments) == last || !last && len(f[20:])%8 != 0 ||
				h.Src.String() != "10.244.1.0" || h.Dst.String() != "10.244.2.0" || h.Protocol != 17 {
				t.Errorf("by %d: %d bytes, %v", size, len(f), h)
			}
			all = append(all, f[20:]...)
		}
		if !bytes.Equal(all[8:], payload) || binary.BigEndian.Uint16(all[4:]) != uint16(len(all)) || binary.BigEndian.Uint16(all[2:]) != Port {
			t.Errorf("by %d the datagram is another: % x", size, all[:8])
		}
	}
}

func TestRepeat(t *testing.T) {
	for _, c := range []struct {
		answers []error
		want    error
		calls   int
	}{
		{[]error{nil}, nil, 1}, {[]error{errSilent, nil}, nil, 2}, {[]error{errSilent, errSilent, errSilent}, errSilent, 3}, {[]error{errSilent, errRefused}, errRefused, 2},
	} {
		n := 0
		err := repeat(t.Context(), func() error { n++; return c.answers[n-1] })
		if !errors.Is(err, c.want) || n != c.calls {
			t.Errorf("%v: %v after %d", c.answers, err, n)
		}
	}
}

func TestSegmentControlMessage(t *testing.T) {
	// What segmentBy writes the kernel's own parser reads, but for the type: UDP_SEGMENT has two bytes, UDP_GRO four.
	b := segmentBy(1422)
	if segment(b) != 0 {
		t.Error("UDP_SEGMENT was taken for UDP_GRO")
	}
	if len(b) != 24 && len(b) != 16 {
		t.Errorf("%d bytes", len(b))
	}
}
