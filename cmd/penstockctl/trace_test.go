package main

import (
	"context"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

func (f *fake) Trace(_ context.Context, r control.TraceRequest) (control.Trace, error) {
	a := control.Trace{Src: r.Src, Dst: r.Dst, Origin: "pod c1/eth0", Steps: []control.TraceStep{{Name: "from", Text: "pod c1/eth0 sends it"}}, Outcome: "to-peer"}
	if r.From == "c2/eth0" {
		a.Outcome, a.Reason = "dropped", "spoofed"
		a.Steps = append(a.Steps, control.TraceStep{Name: "drop", Text: strings.Repeat("a pod lies ", 20)})
	}
	if r.From == "host" {
		a.Outcome = control.OutcomeElsewhere
	}
	return a, f.err
}

func TestTraceCommand(t *testing.T) {
	socket := serve(t, &fake{})
	status, out, errs := ctl(t, "--socket", socket, "trace", "10.244.1.5", "10.244.2.5", "--proto", "tcp", "--dport", "443", "--size", "1400")
	for _, want := range []string{"10.244.1.5 → 10.244.2.5, tcp 40000 → 443, 1400 bytes, TTL 64, from pod c1/eth0\n", " 1  from  pod c1/eth0 sends it\n", "it would be sent to the peer"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if status != 0 || errs != "" || strings.Contains(out, "\x1b") {
		t.Errorf("%d %q %q", status, errs, out)
	}
	for _, format := range []string{"table", "json"} {
		status, out, errs = ctl(t, "--socket", socket, "-o", format, "trace", "10.244.1.6", "10.244.2.5", "--from", "c2/eth0")
		if status != exitNo || !strings.Contains(out, "spoofed") || !strings.Contains(errs, "it would be dropped: spoofed") {
			t.Errorf("%d %s %s", status, out, errs)
		}
	}
	status, out, errs = ctl(t, "--socket", socket, "trace", "10.244.1.0", "10.244.2.5", "--from", "host")
	if status != exitNo || !strings.Contains(out, "\nit would not come to Penstock\n") || !strings.Contains(errs, "it would not come to Penstock") {
		t.Errorf("%d %s %s", status, out, errs)
	}
	if status, _, _ := ctl(t, "--socket", socket, "trace", "10.244.1.6"); status != exitUsage {
		t.Errorf("%d", status)
	}
	if status, _, _ := ctl(t, "--socket", socket+"x", "trace", "10.244.1.6", "10.244.1.7"); status != exitUnreachable {
		t.Errorf("%d", status)
	}
}
