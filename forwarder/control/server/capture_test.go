package server

import (
	"bytes"
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

// fakeSource gives what is put into it.
type fakeSource struct {
	mu      sync.Mutex
	waiting []capture.Frame
	lost    uint64
	closed  chan struct{}
}

func (s *fakeSource) put(lost uint64, cs ...capture.Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, cs...)
	s.lost = lost
}

func (s *fakeSource) Read(fn func(*capture.Frame)) int {
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

var someFrames = []capture.Frame{
	{Time: time.Unix(1, 5), Worker: 1, Stage: "from-pod", Pod: "c1/eth0", Ethernet: true, Length: 3, Data: []byte{1, 2, 3}},
	{Time: time.Unix(2, 0), Stage: "dropped", Reason: "spoofed", Peer: "node-b", Outer: true, Length: 65000, Segment: 1400, Data: bytes.Repeat([]byte{7}, 60000)},
}

func serveCaptures(t *testing.T) (*fake, *control.Client, *Server) {
	f := newFake()
	f.source = &fakeSource{closed: make(chan struct{})}
	path := filepath.Join(t.TempDir(), "p.sock")
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s := New(f, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Shutdown(context.Background())
		<-done
		l.Release()
	})
	return f, control.New(path), s
}

// TestCapture: what the source gives arrives, lost frames are told, and the client's end closes the source.
func TestCapture(t *testing.T) {
	f, c, _ := serveCaptures(t)
	f.source.put(3, someFrames...)
	r, err := capture.Open(t.Context(), c, capture.Request{Pod: "c1/eth0"})
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
	f.err = control.Errorf(control.NotFound, "no such pod")
	if _, err := capture.Open(t.Context(), c, capture.Request{}); control.CodeOf(err) != control.NotFound || err.Error() != "no such pod" {
		t.Error(err)
	}
}

// TestCaptureEndsWithTheDaemon: a stop does not wait for captures, and says so to them.
func TestCaptureEndsWithTheDaemon(t *testing.T) {
	_, c, s := serveCaptures(t)
	r, err := capture.Open(t.Context(), c, capture.Request{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if _, err := r.Next(); control.CodeOf(err) != control.NotReady || err.Error() != captureEnding {
		t.Error(err)
	}
}

// FuzzCaptureRequest, of traces too: whatever is asked for is refused in a sentence or understood.
func FuzzCaptureRequest(f *testing.F) {
	f.Add([]byte(`{"pod":"c1/eth0","snap":64}`))
	f.Add([]byte(`{"snap":1e99}`))
	f.Add([]byte(`{"src":"a","dst":"10.244.2.5","ttl":300,"df":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r capture.Request
		var q control.TraceRequest
		for _, err := range []error{decode(b, &r), decode(b, &q)} {
			if err != nil && control.CodeOf(err) != control.BadRequest {
				t.Error(err)
			}
		}
	})
}
