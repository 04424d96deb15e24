package control

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Code says what kind of failure it was. The CNI plugin and scripts decide by it; the message is for people.
type Code string

// Codes and, beside them, the HTTP status each travels with.
const (
	BadRequest      Code = "bad_request"      // 400: the request cannot be understood or asks for what cannot be
	NotFound        Code = "not_found"        // 404: no such endpoint, port, or device
	BadMethod       Code = "bad_method"       // 405
	Conflict        Code = "conflict"         // 409: an address or device is in use
	TooLarge        Code = "too_large"        // 413: the body is over MaxBody or MaxGC
	InvalidConfig   Code = "invalid_config"   // 422: the file on disk is not a valid configuration; nothing changed
	RestartRequired Code = "restart_required" // 422: the file changes a key that only a restart can change; nothing changed
	Unsupported     Code = "unsupported"      // 422: understood, and it cannot work on this node as it is configured
	Exhausted       Code = "exhausted"        // 409: the node's pod CIDRs have no address left
	NoSpace         Code = "no_space"         // 507: the state directory cannot be written; nothing changed
	Internal        Code = "internal"         // 500
	NotReady        Code = "not_ready"        // 503: the daemon starts or stops
)

// Error is a failure as it crosses the socket. A Backend returns one to choose the code; any other error becomes Internal.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error; the message is one sentence.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code of an error, Internal if it carries none, and the empty code for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// ErrUnreachable is wrapped by a client's error if the request was never sent because nobody answers on the socket: what was
// asked for has certainly not happened.
var ErrUnreachable = errors.New("penstockd does not answer")

// late is a request whose context ended before its answer: what was asked for may have happened, so it is not ErrUnreachable. The
// cause is for errors.Is.
type late struct {
	socket string
	cause  error
	after  time.Duration // 0: it is not known
}

func (l *late) Error() string {
	if errors.Is(l.cause, context.Canceled) {
		return fmt.Sprintf("penstockd on %s had not answered when the request was given up", l.socket)
	}
	limit := "time"
	if l.after > 0 {
		limit = l.after.String()
	}
	return fmt.Sprintf("penstockd on %s did not answer in %s: look why with journalctl -u penstockd -n 50", l.socket, limit)
}

func (l *late) Unwrap() error { return l.cause }

// Envelope is the JSON form of every failure.
type Envelope struct {
	Error *Error `json:"error"`
}
