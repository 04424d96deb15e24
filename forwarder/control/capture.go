package control

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"
)

const capturePath = "/v1/capture"

// CaptureRequest is the body of POST /v1/capture; the answer is a stream (see CaptureReader) that lasts until the client hangs
// up or the daemon stops. What is set must all hold.
type CaptureRequest struct {
	Pod    string `json:"pod,omitempty"`    // "container/interface", owner, device or address
	Peer   string `json:"peer,omitempty"`   // name or underlay address
	Reason string `json:"reason,omitempty"` // only what was dropped for it
	Snap   int    `json:"snap,omitempty"`   // bytes of each frame; 0: all
}

// CaptureSource is a capture that runs. One goroutine uses it.
type CaptureSource interface {
	Read(func(*Captured)) int // what is queued
	Lost() uint64             // frames that matched and found no room, since the beginning
	Close()
}

const (
	captureEvery  = 20 * time.Millisecond // how often the workers' queues are emptied
	captureAlive  = time.Second           // how often at least something is sent
	captureStuck  = 10 * time.Second      // how long a client may read nothing
	captureEnding = "penstockd is stopping"
)

// serveCapture streams until the client, the daemon or the connection ends it. stopping is done when the daemon wants to stop.
func serveCapture(w http.ResponseWriter, r *http.Request, b Backend, log *slog.Logger, stopping context.Context) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("the control API panicked; this is a bug in penstockd", "path", capturePath, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		fail(w, Errorf(BadMethod, "%s does not take %s", capturePath, r.Method))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	if err != nil {
		fail(w, Errorf(BadRequest, "the request's body cannot be read: %v", err))
		return
	}
	var q CaptureRequest
	if err := decode(body, &q); err != nil {
		fail(w, err)
		return
	}
	source, err := b.Capture(r.Context(), q)
	if err != nil {
		fail(w, err)
		return
	}
	defer source.Close()

	c := http.NewResponseController(w)
	c.SetReadDeadline(time.Time{}) // of requests; this one lasts
	w.Header().Set("Content-Type", "application/octet-stream")
	out := newStreamWriter(w)
	flush := func() bool {
		c.SetWriteDeadline(time.Now().Add(captureStuck))
		return out.Flush() == nil && c.Flush() == nil
	}
	if !flush() {
		return
	}
	tick := time.NewTicker(captureEvery)
	defer tick.Stop()
	lost, said := uint64(0), time.Now()
	for {
		n := source.Read(out.frame)
		if now := source.Lost(); now != lost || time.Since(said) > captureAlive {
			lost = now
			out.lost(lost)
			n++
		}
		if n > 0 {
			said = time.Now()
			if !flush() {
				return
			}
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-stopping.Done():
			out.end(captureEnding)
			flush()
			return
		}
	}
}

// Capture begins a capture, which lasts until ctx ends or the reader is closed.
func (c *Client) Capture(ctx context.Context, r CaptureRequest) (*CaptureReader, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://penstock"+capturePath, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	q.Header.Set("Content-Type", "application/json")
	a, err := c.http.Do(q)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if a.StatusCode != http.StatusOK {
		defer a.Body.Close()
		b, _ := io.ReadAll(io.LimitReader(a.Body, MaxBody))
		return nil, refusal(b, a.Status, c.socket)
	}
	s, err := NewCaptureReader(a.Body)
	if err != nil {
		a.Body.Close()
		return nil, err
	}
	s.close = a.Body.Close
	return s, nil
}
