package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// maxAnswer bounds what the client reads; a table of a million routes is about 100 MB.
const maxAnswer = 256 << 20

// Client talks to a daemon. It is safe for concurrent use and holds no connection while idle.
type Client struct {
	socket string
}

// New makes a client for the daemon behind a socket; it connects with each request.
func New(socket string) *Client { return &Client{socket: socket} }

// Status says what the daemon is and how it fares.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, methodGet, "/v1/status", nil, &s)
}

// Attach makes a pod a port of the daemon. The same request again is not an error.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (p Port, err error) {
	return p, c.do(ctx, methodPost, "/v1/attach", r, &p)
}

// Detach undoes Attach; that there is nothing to undo is not an error.
func (c *Client) Detach(ctx context.Context, r DetachRequest) error {
	return c.do(ctx, methodPost, "/v1/detach", r, nil)
}

// Allocate gets addresses for a pod. The same request again is answered with the same.
func (c *Client) Allocate(ctx context.Context, r AllocateRequest) (a Allocation, err error) {
	return a, c.do(ctx, methodPost, "/v1/allocate", r, &a)
}

// Check says whether a pod is attached as it should be; a Conflict tells all that is not.
func (c *Client) Check(ctx context.Context, r CheckRequest) (p Port, err error) {
	return p, c.do(ctx, methodPost, "/v1/check", r, &p)
}

// GC removes what a network has and should not have.
func (c *Client) GC(ctx context.Context, r GCRequest) (g GCResult, err error) {
	return g, c.do(ctx, methodPost, "/v1/gc", r, &g)
}

// Pods lists what the daemon has on record, attached or not.
func (c *Client) Pods(ctx context.Context) ([]Pod, error) {
	var a struct{ Pods []Pod }
	err := c.do(ctx, methodGet, "/v1/pods", nil, &a)
	return a.Pods, err
}

// IPAM lists the addresses that are not free, and counts the others.
func (c *Client) IPAM(ctx context.Context) (i IPAM, err error) {
	return i, c.do(ctx, methodGet, "/v1/ipam", nil, &i)
}

// Ports lists the attached pods.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	var a struct{ Ports []Port }
	err := c.do(ctx, methodGet, "/v1/ports", nil, &a)
	return a.Ports, err
}

// Peers lists the other nodes.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	var a struct{ Peers []Peer }
	err := c.do(ctx, methodGet, "/v1/peers", nil, &a)
	return a.Peers, err
}

// Routes lists the table.
func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	var a struct{ Routes []Route }
	err := c.do(ctx, methodGet, "/v1/routes", nil, &a)
	return a.Routes, err
}

// Drops lists the reasons for which frames were dropped, most frequent first.
func (c *Client) Drops(ctx context.Context) ([]Drop, error) {
	var a struct{ Drops []Drop }
	err := c.do(ctx, methodGet, "/v1/drops", nil, &a)
	return a.Drops, err
}

// FDB lists the VTEPs of vxlan peers.
func (c *Client) FDB(ctx context.Context) ([]FDBEntry, error) {
	var a struct{ FDB []FDBEntry }
	err := c.do(ctx, methodGet, "/v1/fdb", nil, &a)
	return a.FDB, err
}

// Reasons lists all reasons, in the order in which a packet meets them.
func (c *Client) Reasons(ctx context.Context) ([]Drop, error) {
	var a struct{ Reasons []Drop }
	err := c.do(ctx, methodGet, "/v1/reasons", nil, &a)
	return a.Reasons, err
}

// Reload makes the daemon read its configuration file again; an error means that nothing changed.
func (c *Client) Reload(ctx context.Context) (r Reloaded, err error) {
	return r, c.do(ctx, methodPost, "/v1/reload", nil, &r)
}

// LogLevel tells the level of the daemon's log.
func (c *Client) LogLevel(ctx context.Context) (string, error) {
	var l LogLevel
	err := c.do(ctx, methodGet, "/v1/loglevel", nil, &l)
	return l.Level, err
}

// SetLogLevel changes the level of the daemon's log until it ends.
func (c *Client) SetLogLevel(ctx context.Context, level string) error {
	return c.do(ctx, methodPut, "/v1/loglevel", LogLevel{level}, nil)
}

func (c *Client) do(ctx context.Context, method, path string, request, answer any) error {
	var b []byte
	header := plainHeader
	if request != nil {
		var err error
		if b, err = json.Marshal(request); err != nil {
			return fmt.Errorf("the request cannot be written as JSON: %w", err)
		}
		header = jsonHeader
	}
	a, err := c.ask(ctx, method, path, header, b)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer a.close()
	b, err = io.ReadAll(io.LimitReader(a.body, maxAnswer+1))
	switch {
	case err != nil:
		return c.explain(ctx, err)
	case len(b) > maxAnswer:
		return fmt.Errorf("the answer of penstockd on %s is longer than %d bytes", c.socket, maxAnswer)
	case a.status != statusOK:
		return c.refusal(b, a.line)
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("the answer of penstockd on %s is not understood: %w", c.socket, err)
	}
	return nil
}

// Stream posts a request that is answered by bytes for as long as ctx lasts, the daemon wants, or until the reader is closed.
func (c *Client) Stream(ctx context.Context, path string, request any) (io.ReadCloser, error) {
	b, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("the request cannot be written as JSON: %w", err)
	}
	a, err := c.ask(ctx, methodPost, path, jsonHeader, b)
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if a.status != statusOK {
		defer a.close()
		b, _ := io.ReadAll(io.LimitReader(a.body, MaxBody))
		return nil, c.refusal(b, a.line)
	}
	return &stream{ctx, a}, nil
}

type stream struct {
	ctx context.Context
	*answer
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.body.Read(b)
	if err != nil && err != io.EOF && s.ctx.Err() != nil {
		err = s.ctx.Err()
	}
	return n, err
}

func (s *stream) Close() error { return s.close() }

// refusal is the error in an answer that is not 200.
func (c *Client) refusal(b []byte, status string) error {
	var e Envelope
	if json.Unmarshal(b, &e) != nil || e.Error == nil || e.Error.Message == "" {
		return fmt.Errorf("what listens on %s answers %.80q and is not penstockd", c.socket, status)
	}
	return e.Error
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
	var stranger *garbled
	sent := !errors.As(err, &op) || op.Op != "dial"
	switch {
	case errors.As(err, &stranger):
		return fmt.Errorf("what listens on %s is not penstockd: %w", c.socket, err)
	case sent && ctx.Err() != nil:
		return &late{c.socket, ctx.Err(), limit(ctx)}
	case !sent && op.Timeout(): // package net sees the deadline a moment before ctx does
		return c.unsent(ctx, context.DeadlineExceeded)
	case !sent && ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return c.unsent(ctx, ctx.Err())
	case sent:
		return fmt.Errorf("penstockd on %s broke off the conversation: %w", c.socket, err)
	case errors.Is(err, fs.ErrPermission):
		return &silence{fmt.Sprintf("no permission to open the control socket %s: run as root", c.socket), op.Err}
	case errors.Is(err, fs.ErrNotExist):
		return &silence{fmt.Sprintf("there is no control socket %s: penstockd is not running, or its configuration names another socket", c.socket), op.Err}
	case errors.Is(err, syscall.ECONNREFUSED):
		if other := CheckSocket(c.socket); other != nil {
			return &silence{other.Error(), op.Err}
		}
		return &silence{fmt.Sprintf("nobody listens on the control socket %s: penstockd has died", c.socket), op.Err}
	}
	return &silence{fmt.Sprintf("the control socket %s cannot be opened: %v", c.socket, op.Err), op.Err}
}

// unsent is a request for which there was no time left to reach the daemon.
func (c *Client) unsent(ctx context.Context, cause error) error {
	return &silence{(&late{c.socket, cause, limit(ctx)}).Error(), cause}
}

type limitKey struct{}

// WithTimeout is context.WithTimeout, and has the error of a request that takes too long name the limit: who has set a short one may
// want a longer one, and no log.
func WithTimeout(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithValue(ctx, limitKey{}, limit), limit)
}

// limit is what WithTimeout was given; 0: it was another's.
func limit(ctx context.Context) time.Duration {
	d, _ := ctx.Value(limitKey{}).(time.Duration)
	return d
}

// CheckSocket is an error if something is there that is no socket. Where nothing is, the daemon may be about to start.
func CheckSocket(path string) error {
	if fi, err := os.Stat(path); err == nil && fi.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket: name penstockd's control socket, which is %s unless its configuration says otherwise", path, DefaultSocket)
	}
	return nil
}
