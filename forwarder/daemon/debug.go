package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/penstock-net/penstock/forwarder/config"
)

// debugListener is one TCP listener: debug.listen has everything, metrics.listen has metrics and health alone, so that it may
// be opened to a scraper.
type debugListener struct {
	net.Listener
	server *http.Server
}

func (l *debugListener) serve() error {
	if err := l.server.Serve(l.Listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("the listener on %s failed: %w", l.Addr(), err)
	}
	return nil
}

// close breaks off what is under way: a profile that runs for minutes must not hold up a stop.
func (l *debugListener) close() error { return l.server.Close() }

func (d *Daemon) listenDebug(cfg *config.Config, undo *undoList) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(d), d.timed.operations, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	health := d.healthMux(promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}))
	if err := d.listenHTTP("debug.listen", cfg.Debug.Listen, !cfg.Debug.AllowRemote, withProfiles(health), undo); err != nil {
		return err
	}
	return d.listenHTTP("metrics.listen", cfg.Metrics.Listen, false, health, undo)
}

// listenHTTP opens a listener, or none if the address is empty. With loopback it refuses every other address: a profile tells
// strangers too much and costs too much.
func (d *Daemon) listenHTTP(key, address string, loopback bool, h http.Handler, undo *undoList) error {
	if address == "" {
		return nil
	}
	if loopback {
		a, err := netip.ParseAddrPort(address)
		if err != nil || !a.Addr().IsLoopback() {
			return fmt.Errorf("%s: %s is not a loopback address, and whoever reaches it may profile the daemon: use 127.0.0.1, or set debug.allowRemote", key, address)
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("%s cannot be opened: %w", key, err)
	}
	undo.add(l.Close)
	d.debug = append(d.debug, &debugListener{Listener: l, server: &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug), // a scraper that hangs up is no news
	}})
	d.log.Info("listening", "for", key, "address", l.Addr().String())
	return nil
}

// healthMux has /metrics, /healthz (the daemon lives) and /readyz (it forwards, 503 and the reason if it does not).
func (d *Daemon) healthMux(metrics http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if ok, reason := d.health.ready(); !ok {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

func withProfiles(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
