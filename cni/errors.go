package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Codes of CNI errors that types has no name for. From 100 on they are a plugin's own.
const codeExhausted = 100 // no free address

// fail is a CNI error of one sentence.
func fail(code uint, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), "")
}

// invalid is about what was configured or asked for and cannot work.
func invalid(format string, args ...any) *types.Error {
	return fail(types.ErrInvalidNetworkConfig, format, args...)
}

// fromDaemon gives an error of the control API its CNI code.
func fromDaemon(err error) error {
	if err == nil {
		return nil
	}
	code := types.ErrInternal
	var e *control.Error
	switch errors.As(err, &e); {
	case e == nil || e.Code == control.NotReady: // nobody there, no answer in time, or broken off
		code = types.ErrTryAgainLater
	case e.Code == control.Unsupported, e.Code == control.Conflict, e.Code == control.BadRequest, e.Code == control.NotFound:
		code = types.ErrInvalidNetworkConfig
	case e.Code == control.Exhausted:
		code = codeExhausted
	case e.Code == control.NoSpace:
		code = types.ErrIOFailure
	}
	return fail(code, "%v", err)
}

// patiently repeats a request while the daemon is not there or not ready, as long as ctx lasts. The request must be one that may
// be repeated: who broke off a conversation may have done what was asked for. An attempt for which there was no time left says less
// than the one before it.
func patiently(ctx context.Context, request func(context.Context) error) error {
	var why error
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := request(ctx)
		if err == nil || !worthRepeating(err) {
			return err
		}
		if why == nil || !outOfTime(ctx, err) {
			why = err
		}
		select {
		case <-ctx.Done():
			return why
		case <-time.After(pause):
		}
	}
}

// outOfTime: package net tells that a deadline has passed a moment before the context does.
func outOfTime(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// worthRepeating tells a daemon that is away from one that has answered.
func worthRepeating(err error) bool {
	var e *control.Error
	if errors.As(err, &e) {
		return e.Code == control.NotReady
	}
	var network net.Error
	return errors.Is(err, control.ErrUnreachable) || errors.As(err, &network) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET)
}
