package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

// requestTimeout bounds the work for one request. It is longer than a pod's attachment ever takes and shorter than a runtime's
// patience with its plugin.
const requestTimeout = 30 * time.Second

// stopGrace is how long requests that are under way may go on when the server stops: all but measurements are done by then.
const stopGrace = time.Second

// Backend does what is asked for. Its methods are called concurrently; they return *Error to choose the code.
// What they return belongs to the server until it is written.
type Backend interface {
	Status(context.Context) (control.Status, error)
	Attach(context.Context, control.AttachRequest) (control.Port, error)
	Detach(context.Context, control.DetachRequest) error // of what is not attached: nil
	Allocate(context.Context, control.AllocateRequest) (control.Allocation, error)
	Check(context.Context, control.CheckRequest) (control.Port, error)
	GC(context.Context, control.GCRequest) (control.GCResult, error)
	Pods(context.Context) ([]control.Pod, error)
	IPAM(context.Context) (control.IPAM, error)
	Adopt(context.Context, control.PodKey, int) error                                  // owns the descriptor, also when it fails
	AttachQueue(context.Context, control.AttachRequest, int) (control.Attached, error) // likewise
	Ports(context.Context) ([]control.Port, error)
	Peers(context.Context) ([]control.Peer, error)
	Routes(context.Context) ([]control.Route, error)
	Drops(context.Context) ([]control.Drop, error)
	FDB(context.Context) ([]control.FDBEntry, error)
	Reasons(context.Context) ([]control.Drop, error) // all, also those with no frames
	Trace(context.Context, control.TraceRequest) (control.Trace, error)
	Capture(context.Context, capture.Request) (capture.Source, error) // the context is that of the capture
	Reload(context.Context) (control.Reloaded, error)
	Probe(context.Context, control.ProbeRequest) (control.Probe, error)
	Bench(context.Context, control.BenchRequest) (control.Bench, error)
	LogLevel() string
	SetLogLevel(string) error
}

// Server answers the control API.
type Server struct {
	http     *http.Server
	breakOff func()          // ends what is still done for requests
	handing  *sync.WaitGroup // connections that a descriptor is handed over by: net/http forgets them
}

// New makes a server for a backend. Log takes what the HTTP server itself has to say, and panics.
func New(b Backend, log *slog.Logger) *Server {
	streams, stop := context.WithCancel(context.Background())
	requests, breakOff := context.WithCancel(context.Background())
	handing := new(sync.WaitGroup)
	s := &Server{handing: handing, breakOff: breakOff, http: &http.Server{
		Handler:           handler(b, log, streams, handing),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ConnContext:       WithConn,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      requestTimeout + 10*time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}
	s.http.RegisterOnShutdown(stop) // captures would last for ever
	return s
}

// Serve answers on l until Shutdown; then it returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown takes no more requests and waits for those under way, which it breaks off after stopGrace, at most as long as ctx lasts. It
// closes the listener.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.breakOff()
	defer time.AfterFunc(stopGrace, s.breakOff).Stop()
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	handed := make(chan struct{})
	go func() { s.handing.Wait(); close(handed) }()
	select {
	case <-handed:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	return err
}

// call is one endpoint: it gets the body and returns what to answer.
type call func(ctx context.Context, body []byte) (any, error)

// endpoints are the calls of a backend by path and method; those that take the connection over stand beside them.
func endpoints(b Backend) map[string]map[string]call {
	return map[string]map[string]call{
		"/v1/status":  {http.MethodGet: get(b.Status)},
		"/v1/ports":   {http.MethodGet: list("ports", b.Ports)},
		"/v1/peers":   {http.MethodGet: list("peers", b.Peers)},
		"/v1/routes":  {http.MethodGet: list("routes", b.Routes)},
		"/v1/drops":   {http.MethodGet: list("drops", b.Drops)},
		"/v1/fdb":     {http.MethodGet: list("fdb", b.FDB)},
		"/v1/trace":   {http.MethodPost: post(b.Trace)},
		"/v1/reasons": {http.MethodGet: list("reasons", b.Reasons)},
		"/v1/attach":  {http.MethodPost: post(b.Attach)},
		"/v1/detach": {http.MethodPost: post(func(ctx context.Context, r control.DetachRequest) (struct{}, error) {
			return struct{}{}, b.Detach(ctx, r)
		})},
		"/v1/allocate": {http.MethodPost: post(b.Allocate)},
		"/v1/check":    {http.MethodPost: post(b.Check)},
		"/v1/gc":       {http.MethodPost: post(b.GC)},
		"/v1/pods":     {http.MethodGet: list("pods", b.Pods)},
		"/v1/ipam":     {http.MethodGet: get(b.IPAM)},
		"/v1/reload":   {http.MethodPost: get(b.Reload)},
		"/v1/probe":    {http.MethodPost: post(b.Probe)},
		"/v1/bench":    {http.MethodPost: post(b.Bench)},
		"/v1/loglevel": {
			http.MethodGet: get(func(context.Context) (control.LogLevel, error) { return control.LogLevel{Level: b.LogLevel()}, nil }),
			http.MethodPut: post(func(_ context.Context, l control.LogLevel) (control.LogLevel, error) {
				if err := b.SetLogLevel(l.Level); err != nil {
					return control.LogLevel{}, err
				}
				return control.LogLevel{Level: b.LogLevel()}, nil
			}),
		},
	}
}

// handler is the whole API.
func handler(b Backend, log *slog.Logger, stopping context.Context, handing *sync.WaitGroup) http.Handler {
	routes := endpoints(b)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == control.AdoptPath {
			handing.Add(1) // while net/http still knows the connection
			defer handing.Done()
			serveAdopt(w, r, b, log, stopping)
			return
		}
		if r.URL.Path == capture.Path {
			serveCapture(w, r, b, log, stopping)
			return
		}
		methods, ok := routes[r.URL.Path]
		if !ok {
			fail(w, control.Errorf(control.NotFound, "there is no %s in the control API of this daemon", strings.Trim(strconv.Quote(r.URL.Path), `"`)))
			return
		}
		do, ok := methods[r.Method]
		if !ok {
			for m := range methods {
				w.Header().Add("Allow", m)
			}
			fail(w, control.Errorf(control.BadMethod, "%s does not take %s", r.URL.Path, r.Method))
			return
		}
		serve(w, r, do, log)
	})
}

func serve(w http.ResponseWriter, r *http.Request, do call, log *slog.Logger) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("the control API panicked; this is a bug in penstockd", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			fail(w, control.Errorf(control.Internal, "penstockd failed inside while answering %s; its log has the details", r.URL.Path))
		}
	}()
	limit := int64(control.MaxBody)
	if r.URL.Path == "/v1/gc" {
		limit = control.MaxGC
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			fail(w, control.Errorf(control.TooLarge, "the request's body is longer than %d bytes", limit))
			return
		}
		fail(w, control.Errorf(control.BadRequest, "the request's body cannot be read: %v", err))
		return
	}
	if givenUp(r) {
		fail(w, control.Errorf(control.NotReady, "the daemon got to this request only after its client had given up, and has not done it"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	answer, err := do(ctx, body)
	if err != nil {
		if r.Context().Err() != nil { // the client is gone, and hears nothing, or
			err = control.Errorf(control.NotReady, "the daemon is stopping and has broken this off: try again when it is back")
		}
		fail(w, err)
		return
	}
	write(w, http.StatusOK, answer)
}

func givenUp(r *http.Request) bool {
	end, err := strconv.ParseInt(r.Header.Get(control.DeadlineHeader), 10, 64)
	return err == nil && time.Now().UnixMilli() > end
}

// get is an endpoint without a body.
func get[T any](f func(context.Context) (T, error)) call {
	return func(ctx context.Context, body []byte) (any, error) {
		if len(bytes.TrimSpace(body)) > 0 && string(bytes.TrimSpace(body)) != "{}" {
			return nil, control.Errorf(control.BadRequest, "this request takes no body")
		}
		return f(ctx)
	}
}

// list is an endpoint that answers {name: [...]}, never null.
func list[T any](name string, f func(context.Context) ([]T, error)) call {
	return get(func(ctx context.Context) (map[string][]T, error) {
		l, err := f(ctx)
		if l == nil {
			l = []T{}
		}
		return map[string][]T{name: l}, err
	})
}

// post is an endpoint with a JSON body.
func post[Q, A any](f func(context.Context, Q) (A, error)) call {
	return func(ctx context.Context, body []byte) (any, error) {
		var q Q
		if err := decode(body, &q); err != nil {
			return nil, err
		}
		return f(ctx, q)
	}
}

// decode reads exactly one JSON object into v: unknown keys and anything behind the object are errors.
func decode(body []byte, v any) error {
	if trimmed := bytes.TrimSpace(body); len(trimmed) == 0 || trimmed[0] != '{' {
		return control.Errorf(control.BadRequest, "the request's body is not a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return control.Errorf(control.BadRequest, "the request's body is not understood: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return control.Errorf(control.BadRequest, "something follows the JSON object in the request's body")
	}
	return nil
}

func fail(w http.ResponseWriter, err error) {
	var e *control.Error
	if !errors.As(err, &e) {
		e = &control.Error{Code: control.Internal, Message: err.Error()}
		if errors.Is(err, context.DeadlineExceeded) {
			e = control.Errorf(control.NotReady, "the daemon did not get to it within %s", requestTimeout)
		}
	} else if e.Message != err.Error() {
		e = &control.Error{Code: e.Code, Message: err.Error()} // what wrapped it had something to add
	}
	status, ok := statusOf[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	write(w, status, control.Envelope{Error: e})
}

func write(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // only a bug in our own types can do this
		status, b = http.StatusInternalServerError, []byte(`{"error":{"code":"internal","message":"the answer cannot be written as JSON"}}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n')) // an error here means that the client has gone
}
