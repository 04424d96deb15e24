package server

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// connKey is under which a request's context has its connection.
type connKey struct{}

// WithConn makes the context of a connection's requests.
func WithConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// Gone is whether nobody waits for the answer to a request. Net/http ends the request's context for that, but a moment after it has read
// the request: of a client that has closed its connection long ago, and of which only now, in a busy moment, somebody hears, the
// context knows nothing yet. The kernel does.
func Gone(ctx context.Context) bool {
	if ctx.Err() != nil {
		return true
	}
	c, ok := ctx.Value(connKey{}).(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = err == nil && n == 0 || err == unix.ECONNRESET
	})
	return gone || err != nil
}
