package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

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
			log.Error("the control API panicked; this is a bug in penstockd", "path", capture.Path, "panic", p, "stack", string(debug.Stack()))
		}
	}()
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		fail(w, control.Errorf(control.BadMethod, "%s does not take %s", capture.Path, r.Method))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, control.MaxBody))
	if err != nil {
		fail(w, control.Errorf(control.BadRequest, "the request's body cannot be read: %v", err))
		return
	}
	var q capture.Request
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
	out := capture.NewWriter(w)
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
		n := source.Read(out.Frame)
		if now := source.Lost(); now != lost || time.Since(said) > captureAlive {
			lost = now
			out.Lost(lost)
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
			out.End(captureEnding)
			flush()
			return
		}
	}
}
