package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeSource gives what is put into it.
type fakeSource struct {
	mu      sync.Mutex
	waiting []Captured
	lost    uint64
	closed  chan struct{}
}

func (s *fakeSource) put(lost uint64, cs ...Captured) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, cs...)
	s.lost = lost
}

func (s *fakeSource) Read(fn func(*Captured)) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.waiting)
	for i := range s.waiting {
		fn(&s.waiting[i])
	}
	s.waiting = nil
	return n
}

func (s *fakeSource) Lost() uint64 { s.mu.Lock(); defer s.mu.Unlock(); return s.lost }
func (s *fakeSource) Close()       { close(s.closed) }

var someFrames = []Captured{
	{Time: time.Unix(1, 5), Worker: 1, Stage: "from-pod", Pod: "c1/eth0", Ethernet: true, Length: 3, Data: []byte{1, 2, 3}},
	{Time: time.Unix(2, 0), Stage: "dropped", Reason: "spoofed", Peer: "node-b", Outer: true, Length: 65000, Segment: 1400, Data: bytes.Repeat([]byte{7}, 60000)},
}

func serveCaptures(t *testing.T) (*fake, *Client, *Server) {
	f := newFake()
	f.source = &fakeSource{closed: make(chan struct{})}
	path := filepath.Join(t.TempDir(), "p.sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(f, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Shutdown(context.Background())
		<-done
		l.Release()
	})
	return f, New(path), s
}

// TestCapture: what the source gives arrives, lost frames are told, and the client's end closes the source.
func TestCapture(t *testing.T) {
	f, c, _ := serveCaptures(t)
	f.source.put(3, someFrames...)
	r, err := c.Capture(t.Context(), CaptureRequest{Pod: "c1/eth0"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range someFrames {
		got, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(someFrames[i], *got); d != "" {
			t.Error(d)
		}
	}
	f.source.put(4, someFrames[0])
	if _, err := r.Next(); err != nil || r.Lost() != 3 {
		t.Errorf("lost %d, %v", r.Lost(), err)
	}
	r.Close()
	select {
	case <-f.source.closed:
	case <-time.After(10 * time.Second):
		t.Error("the source goes on after its client has gone")
	}
	f.err = Errorf(NotFound, "no such pod")
	if _, err := c.Capture(t.Context(), CaptureRequest{}); CodeOf(err) != NotFound || err.Error() != "no such pod" {
		t.Error(err)
	}
}

// TestCaptureEndsWithTheDaemon: a stop does not wait for captures, and says so to them.
func TestCaptureEndsWithTheDaemon(t *testing.T) {
	_, c, s := serveCaptures(t)
	r, err := c.Capture(t.Context(), CaptureRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if _, err := r.Next(); CodeOf(err) != NotReady || err.Error() != captureEnding {
		t.Error(err)
	}
}

// stream is what a server would send.
func stream(cs ...Captured) []byte {
	var b bytes.Buffer
	w := newStreamWriter(&b)
	for i := range cs {
		w.frame(&cs[i])
	}
	w.lost(9)
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
		r, err := NewCaptureReader(bytes.NewReader(c.b))
		if err == nil {
			_, err = r.Next()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := NewCaptureReader(bytes.NewReader(good))
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
		c    Captured
		want string
	}{
		{Captured{Stage: "to-peer", Pod: "c/eth0", Peer: "b", Data: ip, Length: 28}, "to-peer c/eth0 b: 10.244.1.5 → 10.244.2.5 udp 1 → 2 ttl 64, 28 bytes"},
		{Captured{Stage: "dropped", Reason: "short", Data: ip[:20], Length: 28, Segment: 9}, "dropped short: 10.244.1.5 → 10.244.2.5 udp ttl 64, 28 bytes, superframe of 9 byte segments"},
		{Captured{Stage: "from-pod", Ethernet: true, Data: eth(0, ip), Length: 42}, "from-pod: 10.244.1.5 → 10.244.2.5 udp 1 → 2 ttl 64, 42 bytes"},
		{Captured{Stage: "from-pod", Ethernet: true, Data: eth(6, nil), Length: 42}, "from-pod: ARP"},
		{Captured{Stage: "from-pod", Ethernet: true, Data: eth(1, nil), Length: 42}, "from-pod: Ethernet type 0x0801, 42 bytes"},
		{Captured{Stage: "to-pod", Data: append(six, 128, 0), Length: 50}, "to-pod: :: → :: icmp6 type 128 code 0 ttl 1, 50 bytes"},
		{Captured{Stage: "to-pod", Data: []byte{1}, Length: 1}, "to-pod: no IP packet, 1 bytes"},
	} {
		if got := c.c.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// FuzzCaptureStream: whatever arrives ends in an error or in frames that can be printed and that, written again, are the same.
func FuzzCaptureStream(f *testing.F) {
	f.Add(stream(someFrames...))
	f.Add(stream())
	f.Add([]byte(streamMagic + "\x03\x00\x00\x00Ehi"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := NewCaptureReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		for {
			c, err := r.Next()
			if err != nil {
				var e *Error
				if !errors.Is(err, io.EOF) && !errors.As(err, &e) && !strings.Contains(err.Error(), "the capture") {
					t.Errorf("%v", err)
				}
				return
			}
			if len(c.Data) > c.Length || c.String() == "" {
				t.Errorf("%+v", c)
			}
			again, err := NewCaptureReader(bytes.NewReader(stream(*c)))
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

// FuzzCaptureRequest, of traces too: whatever is asked for is refused in a sentence or understood.
func FuzzCaptureRequest(f *testing.F) {
	f.Add([]byte(`{"pod":"c1/eth0","snap":64}`))
	f.Add([]byte(`{"snap":1e99}`))
	f.Add([]byte(`{"src":"a","dst":"10.244.2.5","ttl":300,"df":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r CaptureRequest
		var q TraceRequest
		for _, err := range []error{decode(b, &r), decode(b, &q)} {
			if err != nil && CodeOf(err) != BadRequest {
				t.Error(err)
			}
		}
	})
}
