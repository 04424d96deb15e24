package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// asking says of each allocation whether its client is there, once that has said that it may.
type asking struct {
	*fake
	came, look chan struct{}
	gone       chan bool
}

func (a *asking) Allocate(ctx context.Context, _ control.AllocateRequest) (control.Allocation, error) {
	a.came <- struct{}{}
	<-a.look
	a.gone <- Gone(ctx)
	return control.Allocation{}, nil
}

// TestGone: the server's contexts know whether a client is there, also in the moment in which it goes.
func TestGone(t *testing.T) {
	b := &asking{newFake(), make(chan struct{}), make(chan struct{}), make(chan bool)}
	l, err := Listen(t.Context(), filepath.Join(t.TempDir(), "p.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := New(b, slog.New(slog.DiscardHandler))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() {
		s.Shutdown(context.Background())
		<-done
		l.Release()
	}()
	for range 20 {
		for _, goes := range []bool{false, true} {
			c, err := net.DialTimeout("unix", l.Addr().String(), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(c, "POST /v1/allocate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
			<-b.came
			if goes {
				c.Close()
			}
			b.look <- struct{}{}
			if got := <-b.gone; got != goes {
				t.Errorf("gone: %v, want %v", got, goes)
			}
			c.Close()
		}
	}
	if Gone(t.Context()) {
		t.Error("a context without a connection")
	}
}
