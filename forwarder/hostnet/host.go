package hostnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
)

// Apply makes the host's stack as the Config wants it: it adds what is missing and removes what is ours and stale. It
// is idempotent and keeps traffic flowing. A part that fails does not stop the others; the errors come joined.
func (h *Host) Apply(ctx context.Context) (Report, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.apply(ctx)
}

// Reconfigure is Apply with a new Config. If cfg is not valid nothing changes.
func (h *Host) Reconfigure(ctx context.Context, cfg Config) (Report, error) {
	cfg, err := cfg.normal()
	if err != nil {
		return Report{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if cfg.Device != h.cfg.Device {
		return Report{}, fmt.Errorf("host.device cannot change from %s to %s while the daemon runs; restart it", h.cfg.Device, cfg.Device)
	}
	was := h.cfg
	h.cfg, h.log = cfg, cfg.Log
	was.Peers, was.Log = cfg.Peers, cfg.Log
	if reflect.DeepEqual(was, cfg) { // peers come and go, whatever else ails the host
		var r Report
		return r, applyNFT(&h.cfg, &r)
	}
	return h.apply(ctx)
}

// apply goes from the inside out: the device's name, by which all else is found, sysctls before the device comes up, the
// device before its routes, and what lets packets through before what they would need it for.
func (h *Host) apply(ctx context.Context) (r Report, err error) {
	var errs []error
	if err := h.nameBack(&r); err != nil {
		errs = append(errs, err)
	}
	var uplink string
	if h.cfg.Address.IsValid() {
		if u, err := FindUnderlay(h.cfg.Address); err == nil {
			uplink = u.Device
		}
	}
	r.find(Sysctls{Device: h.cfg.Device, Uplink: uplink, IPv4: h.cfg.has4(), IPv6: h.cfg.has6(), Fix: true}.Check()...)
	steps := []func(*Config, *Report) error{
		applyDevice,
		applyRoutes,
		applyCarrier,
		applyNFT,
	}
	// With host.forward off, once is enough to be rid of what an earlier daemon left: iptables is a program, and Apply
	// runs after every change of a route.
	if h.cfg.Forward || !h.unforwarded {
		steps = append(steps, applyForward)
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("stopped before the host's stack was complete: %w", err))
			break
		}
		if err := step(&h.cfg, &r); err != nil {
			errs = append(errs, err)
		}
	}
	h.unforwarded = !h.cfg.Forward && len(errs) == 0
	h.report(r)
	return r, errors.Join(errs...)
}

// report logs what changed, and of the findings those that the last Apply did not have.
func (h *Host) report(r Report) {
	for _, s := range r.Added {
		h.log.Info("host: added", "what", s)
	}
	for _, s := range r.Removed {
		h.log.Info("host: removed", "what", s)
	}
	last := h.findings
	h.findings = r.Findings
	for _, f := range r.Findings {
		if slices.Contains(last, f) {
			continue
		}
		level := slog.LevelWarn
		if f.Severity == Info || f.Fixed {
			level = slog.LevelInfo
		}
		h.log.Log(context.Background(), level, "host: "+f.Problem, "subject", f.Subject, "remedy", f.Remedy, "fixed", f.Fixed)
	}
}
