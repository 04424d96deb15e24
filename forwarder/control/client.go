package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// maxAnswer bounds what the client reads; a table of a million routes is about 100 MB.
const maxAnswer = 256 << 20

// Client talks to a daemon. It is safe for concurrent use and holds no connection while idle.
type Client struct {
	socket string
	http   *http.Client
}

// New makes a client for the daemon behind a socket; it connects with the first request.
func New(socket string) *Client {
	d := net.Dialer{Timeout: 5 * time.Second}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
}

// Status says what the daemon is and how it fares.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Attach makes a pod a port of the daemon. The same request again is not an error.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (p Port, err error) {
	return p, c.do(ctx, http.MethodPost, "/v1/attach", r, &p)
}

// Detach undoes Attach; that there is nothing to undo is not an error.
func (c *Client) Detach(ctx context.Context, r DetachRequest) error {
	return c.do(ctx, http.MethodPost, "/v1/detach", r, nil)
}

// Allocate gets addresses for a pod. The same request again is answered with the same.
func (c *Client) Allocate(ctx context.Context, r AllocateRequest) (a Allocation, err error) {
	return a, c.do(ctx, http.MethodPost, "/v1/allocate", r, &a)
}

// Check says whether a pod is attached as it should be; a Conflict tells all that is not.
func (c *Client) Check(ctx context.Context, r CheckRequest) (p Port, err error) {
	return p, c.do(ctx, http.MethodPost, "/v1/check", r, &p)
}

// GC removes what a network has and should not have.
func (c *Client) GC(ctx context.Context, r GCRequest) (g GCResult, err error) {
	return g, c.do(ctx, http.MethodPost, "/v1/gc", r, &g)
}

// Pods lists what the daemon has on record, attached or not.
func (c *Client) Pods(ctx context.Context) ([]Pod, error) {
	var a struct{ Pods []Pod }
	err := c.do(ctx, http.MethodGet, "/v1/pods", nil, &a)
	return a.Pods, err
}

// IPAM lists the addresses that are not free, and counts the others.
func (c *Client) IPAM(ctx context.Context) (i IPAM, err error) {
	return i, c.do(ctx, http.MethodGet, "/v1/ipam", nil, &i)
}

// Ports lists the attached pods.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	var a struct{ Ports []Port }
	err := c.do(ctx, http.MethodGet, "/v1/ports", nil, &a)
	return a.Ports, err
}

// Peers lists the other nodes.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	var a struct{ Peers []Peer }
	err := c.do(ctx, http.MethodGet, "/v1/peers", nil, &a)
	return a.Peers, err
}

// Routes lists the table.
func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	var a struct{ Routes []Route }
	err := c.do(ctx, http.MethodGet, "/v1/routes", nil, &a)
	return a.Routes, err
}

// Drops lists the reasons for which frames were dropped, most frequent first.
func (c *Client) Drops(ctx context.Context) ([]Drop, error) {
	var a struct{ Drops []Drop }
	err := c.do(ctx, http.MethodGet, "/v1/drops", nil, &a)
	return a.Drops, err
}

// FDB lists the VTEPs of vxlan peers.
func (c *Client) FDB(ctx context.Context) ([]FDBEntry, error) {
	var a struct{ FDB []FDBEntry }
	err := c.do(ctx, http.MethodGet, "/v1/fdb", nil, &a)
	return a.FDB, err
}

// Reasons lists all reasons, in the order in which a packet meets them.
func (c *Client) Reasons(ctx context.Context) ([]Drop, error) {
	var a struct{ Reasons []Drop }
	err := c.do(ctx, http.MethodGet, "/v1/reasons", nil, &a)
	return a.Reasons, err
}

// Reload makes the daemon read its configuration file again; an error means that nothing changed.
func (c *Client) Reload(ctx context.Context) (r Reloaded, err error) {
	return r, c.do(ctx, http.MethodPost, "/v1/reload", nil, &r)
}

// LogLevel tells the level of the daemon's log.
func (c *Client) LogLevel(ctx context.Context) (string, error) {
	var l LogLevel
	err := c.do(ctx, http.MethodGet, "/v1/loglevel", nil, &l)
	return l.Level, err
}

// SetLogLevel changes the level of the daemon's log until it ends.
func (c *Client) SetLogLevel(ctx context.Context, level string) error {
	return c.do(ctx, http.MethodPut, "/v1/loglevel", LogLevel{level}, nil)
}

func (c *Client) do(ctx context.Context, method, path string, body, answer any) error {
	var r io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("the request cannot be written as JSON: %w", err)
		}
		r = bytes.NewReader(b)
	}
	q, err := http.NewRequestWithContext(ctx, method, "http://penstock"+path, r)
	if err != nil {
		return err
	}
	if body != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	if end, ok := ctx.Deadline(); ok {
		q.Header.Set(deadlineHeader, strconv.FormatInt(end.UnixMilli(), 10))
	}
	a, err := c.http.Do(q)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(io.LimitReader(a.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("the answer of penstockd on %s broke off: %w", c.socket, err)
	case len(b) > maxAnswer:
		return fmt.Errorf("the answer of penstockd on %s is longer than %d bytes", c.socket, maxAnswer)
	}
	if a.StatusCode != http.StatusOK {
		var e envelope
		if json.Unmarshal(b, &e) != nil || e.Error == nil || e.Error.Message == "" {
			return fmt.Errorf("what listens on %s answers %q and is not penstockd", c.socket, a.Status)
		}
		return e.Error
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("the answer of penstockd on %s is not understood: %w", c.socket, err)
	}
	return nil
}

// silence is a failure to reach a daemon: one sentence for people, ErrUnreachable and the cause for errors.Is.
type silence struct {
	sentence string
	cause    error
}

func (s *silence) Error() string   { return s.sentence }
func (s *silence) Unwrap() []error { return []error{ErrUnreachable, s.cause} }

// explain turns a failure to talk into one sentence.
func (c *Client) explain(ctx context.Context, err error) error {
	var op *net.OpError
	sent := !errors.As(err, &op) || op.Op != "dial"
	switch {
	case ctx.Err() != nil && sent:
		return fmt.Errorf("penstockd on %s did not answer in time: %w", c.socket, ctx.Err())
	case sent:
		return fmt.Errorf("penstockd on %s broke off the conversation: %w", c.socket, err)
	case errors.Is(err, fs.ErrPermission):
		return &silence{fmt.Sprintf("no permission to open the control socket %s: run as root", c.socket), op.Err}
	case errors.Is(err, fs.ErrNotExist):
		return &silence{fmt.Sprintf("there is no control socket %s: penstockd is not running, or its configuration names another socket", c.socket), op.Err}
	case errors.Is(err, syscall.ECONNREFUSED):
		return &silence{fmt.Sprintf("nobody listens on the control socket %s: penstockd has died", c.socket), op.Err}
	}
	return &silence{fmt.Sprintf("the control socket %s cannot be opened: %v", c.socket, op.Err), op.Err}
}
