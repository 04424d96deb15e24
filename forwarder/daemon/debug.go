package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/penstock-net/penstock/forwarder/config"
)

func (d *Daemon) listenDebug(cfg *config.Config, undo *undoList) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(d), d.timed.operations, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	health := d.healthMux(fromMemory(promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)})))
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
	l := newDebugListener(key, address, h, d.log)
	l.listen()
	undo.add(l.close)
	d.debug = append(d.debug, l)
	return nil
}

// An answer with thousands of peers has megabytes: so many scrapes at a time, and none for longer than a scraper needs to read.
const (
	scrapes     = 4
	scrapeWrite = 3 * time.Second
)

// fromMemory has an answer written after next is done with it, in a bounded time: a client that does not read keeps the place of one
// scrape for as long, and the errors of its connection are its own.
func fromMemory(next http.Handler) http.Handler {
	places := make(chan struct{}, scrapes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		case <-r.Context().Done():
			return
		}
		a := answer{header: w.Header(), status: http.StatusOK}
		next.ServeHTTP(&a, r)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(scrapeWrite))
		w.WriteHeader(a.status)
		_, _ = w.Write(a.Bytes())
	})
}

type answer struct {
	bytes.Buffer
	header http.Header
	status int
}

func (a *answer) Header() http.Header    { return a.header }
func (a *answer) WriteHeader(status int) { a.status = status }

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
