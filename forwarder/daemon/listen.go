package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/penstock-net/penstock/forwarder/beat"
)

// What one listener may cost: whoever reaches it can hold all of its connections, and so keep others from it, but no more of the daemon than that.
const (
	listenConnections = 64
	listenRead        = 10 * time.Second // of a request with its body
	listenWrite       = 20 * time.Second // of an answer; a profile has as long as it runs besides (configureWriteDeadline in net/http/pprof)
)

// debugListener is one TCP listener: debug.listen has everything, metrics.listen has metrics and health alone, so that it may
// be opened to a scraper. Pods do not depend on it: where somebody else has its port it is tried again, and the status says so.
type debugListener struct {
	key, address string
	server       *http.Server
	log          *slog.Logger

	mu      sync.Mutex
	open    net.Listener
	problem said // why it is not; empty if it is
}

func newDebugListener(key, address string, h http.Handler, log *slog.Logger) *debugListener {
	return &debugListener{key: key, address: address, log: log, server: &http.Server{
		Handler:           patient(h),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       listenRead,
		WriteTimeout:      listenWrite,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // a scraper that hangs up is no news
	}}
}

// patient lets the answer to a request that has been read take its time: net/http ends the request when its read deadline is over.
func patient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == http.NoBody {
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		}
		next.ServeHTTP(w, r)
	})
}

// listen opens it, or says once why not.
func (l *debugListener) listen() net.Listener {
	open, err := net.Listen("tcp", l.address)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("%s cannot be opened: %w", l.key, err)
	}
	if news, _ := l.problem.news(err); news {
		l.log.Warn(err.Error() + "; trying again")
	}
	if err != nil {
		return nil
	}
	l.open = netutil.LimitListener(open, listenConnections)
	l.log.Info("listening", "for", l.key, "address", open.Addr().String())
	return l.open
}

func (l *debugListener) trouble() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.problem)
}

// serve answers until close.
func (l *debugListener) serve(ctx context.Context) error {
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	for {
		if open != nil {
			err := l.server.Serve(open)
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			l.log.Warn("a listener has failed; opening it again", "for", l.key, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(beat.Next(beat.Period)):
			open = l.listen()
		}
	}
}

// close breaks off what is under way: a profile that runs for minutes must not hold up a stop.
func (l *debugListener) close() error {
	err := l.server.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		l.open.Close() // Serve may not have got it
	}
	return err
}
