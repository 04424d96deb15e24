package daemon

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/penstock-net/penstock/forwarder/control"
)

// timed is the daemon as the control socket sees it: what the CNI plugin asks for is counted and timed.
type timed struct {
	*Daemon
	operations *prometheus.HistogramVec
}

// verbs are the requests that come from the plugin. Its ADD is allocate and attach, DEL is detach.
var verbs = []string{"allocate", "attach", "check", "detach", "gc"}

func newTimed(d *Daemon) timed {
	t := timed{d, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "penstock_cni_operation_duration_seconds",
		Help:    "Time that requests of the CNI plugin took, by verb (ADD is allocate and attach, DEL is detach) and result (ok or the error's code).",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"verb", "result"})}
	for _, v := range verbs {
		t.operations.WithLabelValues(v, "ok") // there before the first request, so that a rate can begin at 0
	}
	return t
}

func (t timed) took(verb string, began time.Time, err error) {
	result := "ok"
	if err != nil {
		result = string(control.CodeOf(err))
	}
	t.operations.WithLabelValues(verb, result).Observe(time.Since(began).Seconds())
}

func (t timed) Allocate(ctx context.Context, r control.AllocateRequest) (_ control.Allocation, err error) {
	defer func(began time.Time) { t.took("allocate", began, err) }(time.Now())
	return t.Daemon.Allocate(ctx, r)
}

func (t timed) Attach(ctx context.Context, r control.AttachRequest) (_ control.Port, err error) {
	defer func(began time.Time) { t.took("attach", began, err) }(time.Now())
	return t.Daemon.Attach(ctx, r)
}

func (t timed) AttachQueue(ctx context.Context, r control.AttachRequest, fd int) (_ control.Attached, err error) {
	defer func(began time.Time) { t.took("attach", began, err) }(time.Now())
	return t.Daemon.AttachQueue(ctx, r, fd)
}

func (t timed) Check(ctx context.Context, r control.CheckRequest) (_ control.Port, err error) {
	defer func(began time.Time) { t.took("check", began, err) }(time.Now())
	return t.Daemon.Check(ctx, r)
}

func (t timed) Detach(ctx context.Context, r control.DetachRequest) (err error) {
	defer func(began time.Time) { t.took("detach", began, err) }(time.Now())
	return t.Daemon.Detach(ctx, r)
}

func (t timed) GC(ctx context.Context, r control.GCRequest) (_ control.GCResult, err error) {
	defer func(began time.Time) { t.took("gc", began, err) }(time.Now())
	return t.Daemon.GC(ctx, r)
}
