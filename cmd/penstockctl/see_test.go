package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

func (f *fake) FDB(context.Context) ([]control.FDBEntry, error) {
	return []control.FDBEntry{{MAC: "02:00:00:00:00:02", VNI: 1, Address: netip.MustParseAddr("192.0.2.2"), Port: 8472, Peer: "node-b"}}, f.err
}

// busy is a daemon whose counters grow, and that becomes ready.
type busy struct {
	fake
	asked atomic.Uint64
}

func (b *busy) Status(ctx context.Context) (control.Status, error) {
	n := b.asked.Add(1)
	s, err := b.fake.Status(ctx)
	if s.Ready = n > 3; !s.Ready {
		s.Reason = "pods are being adopted"
	}
	s.Traffic = control.TotalTraffic{Received: 10 * n, Forwarded: control.Traffic{Packets: 1000 * n, Bytes: 100_000 * n}, Dropped: 7}
	return s, err
}

func (b *busy) Ports(ctx context.Context) ([]control.Port, error) {
	n := b.asked.Add(1)
	ports, err := b.fake.Ports(ctx)
	ports[0].Received = control.Traffic{Packets: 100 * n, Bytes: 1000 * n}
	quiet := ports[0]
	quiet.Container, quiet.Owner, quiet.Received = "c2", "default/quiet", control.Traffic{}
	return append([]control.Port{quiet}, ports...), err
}

func TestStatusWait(t *testing.T) {
	socket := serve(t, &busy{})
	status, out, errs := ctl(t, "--socket", socket, "status", "--wait", "30s")
	if status != 0 || !strings.Contains(out, "frames/s dropped") || !strings.Contains(out, "7 dropped") || strings.Contains(out, "not ready") {
		t.Errorf("%d %s %s", status, out, errs)
	}
	status, _, errs = ctl(t, "--socket", serve(t, &busy{}), "status", "--wait", "250ms")
	if status != exitNo || !strings.Contains(errs, "adopted") {
		t.Errorf("%d %s", status, errs)
	}
	if status, _, errs = ctl(t, "--socket", socket+"x", "status", "--wait", "300ms"); status != exitUnreachable || !strings.Contains(errs, "no control socket") {
		t.Errorf("%d %s", status, errs)
	}
	if status, out, _ = ctl(t, "--socket", socket, "-o", "json", "status"); status != 0 || !strings.Contains(out, `"forwarded": {`) {
		t.Errorf("%d %s", status, out)
	}
}

// TestStatusOfState: a node that can add no pod says so, though it is ready.
func TestStatusOfState(t *testing.T) {
	status, out, errs := ctl(t, "--socket", serve(t, &full{}), "status")
	if status != 0 || !strings.HasPrefix(out, "no pod can be added: the disk is full: make room") {
		t.Errorf("%d %s %s", status, out, errs)
	}
}

type full struct{ fake }

func (f *full) Status(ctx context.Context) (control.Status, error) {
	s, err := f.fake.Status(ctx)
	s.State = &control.StateTrouble{Finding: "the disk is full", Remedy: "make room"}
	return s, err
}

// TestHangingDaemon: who listens and never answers cannot be reached, and nobody reads what Go calls that.
func TestHangingDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the kernel takes connections, and nobody accepts them
	for args, say := range map[string]string{
		"status --timeout 100ms":             "did not answer in 100ms",
		"status --wait 100ms":                "did not answer within 100ms",
		"detach c1 eth0 --timeout 100ms":     "did not answer in 100ms",
		"status --timeout 100ms -o json":     `"status":3,"code":"unreachable"`,
		"top -n 1 --timeout 100ms":           "did not answer in 100ms",
		"capture -c 1 -w - --timeout 100ms":  "did not answer in 100ms",
		"status --wait 100ms --output=json ": `"status":3,"code":"unreachable"`,
	} {
		status, out, stderr := ctl(t, append([]string{"--socket", socket}, strings.Fields(args)...)...)
		if status != exitUnreachable || out != "" || !strings.Contains(stderr, say) || !strings.Contains(stderr, "journalctl -u penstockd") || strings.Contains(stderr, "context") {
			t.Errorf("%s: %d %q %q", args, status, out, stderr)
		}
	}
}

// TestTop: rates of two samples, the busiest first, as a table and as JSON.
func TestTop(t *testing.T) {
	socket := serve(t, &busy{})
	status, out, errs := ctl(t, "--socket", socket, "top", "-n", "1", "-d", "200ms")
	lines := strings.Split(out, "\n")
	if status != 0 || len(lines) < 5 || !strings.HasPrefix(lines[0], "POD") || !strings.HasPrefix(lines[1], "0123456789abcdef") || !strings.HasPrefix(lines[2], "default/quiet/eth0") ||
		!strings.Contains(out, "PEER") || strings.Contains(out, "\x1b") {
		t.Errorf("%d %s %s", status, out, errs)
	}
	status, out, _ = ctl(t, "--socket", socket, "-o", "json", "top", "-n", "2", "-d", "200ms")
	d := json.NewDecoder(strings.NewReader(out))
	for range 2 {
		var s struct {
			Seconds float64
			Pods    []rates
			Drops   map[string]float64
		}
		if err := d.Decode(&s); err != nil || len(s.Pods) != 2 || s.Pods[0].OutPackets <= 0 || s.Pods[0].OutPackets*s.Seconds > 101 || s.Pods[1].OutPackets != 0 {
			t.Errorf("%d %+v %v", status, s, err)
		}
		if r, ok := s.Drops["spoofed"]; !ok || r != 0 {
			t.Errorf("%+v", s.Drops)
		}
	}
	if status, _, errs := ctl(t, "--socket", socket, "top", "-d", "1ms"); status != exitUsage || !strings.Contains(errs, "100ms") {
		t.Errorf("%d %s", status, errs)
	}
	if status, _, _ := ctl(t, "--socket", socket+"x", "top", "-n", "1"); status != exitUnreachable {
		t.Errorf("%d", status)
	}
}

func TestDropsAllAndWatch(t *testing.T) {
	socket := serve(t, &fake{})
	if status, out, _ := ctl(t, "--socket", socket, "drops", "--all"); status != 0 || !strings.Contains(out, "ttl_expired") {
		t.Errorf("%d %s", status, out)
	}
	ctx, stop := context.WithTimeout(t.Context(), 450*time.Millisecond)
	defer stop()
	var out, errs strings.Builder
	if status := run(ctx, []string{"--socket", socket, "drops", "-w", "-d", "100ms"}, &out, &errs); status != 0 || strings.Count(out.String(), "RATE/s") < 2 {
		t.Errorf("%d %s %s", status, out.String(), errs.String())
	}
	if status, out, _ := ctl(t, "--socket", socket, "fdb"); status != 0 || !strings.Contains(out, "02:00:00:00:00:02  1    192.0.2.2  8472  node-b") {
		t.Errorf("%d %s", status, out)
	}
}

func TestGrew(t *testing.T) {
	if grew(10, 30, 2) != 10 || grew(30, 10, 2) != 0 || grew(1, 2, 0) != 0 {
		t.Error(grew(10, 30, 2), grew(30, 10, 2))
	}
	for _, c := range []struct {
		whole, want string
		height      int
	}{
		{"a\n", "a\n", 0},
		{"a\nb\n", "a\nb\n", 3},
		{"a\nb\nc\n", "a\n… 2 more lines\n", 3},
		{"POD\n1\n2\n3\n4\n5\n\nPEER\nb\n\ndropping\n", "POD\n1\n… 4 more lines\n\nPEER\nb\n\ndropping\n", 9},
		{"POD\n1\n2\n3\n\nPEER\nb\nc\nd\n\ndropping\n", "POD\n… 3 more lines\n\nPEER\n… 3 more lines\n\ndropping\n", 8},
		{"a\n\nb\n\nc\n\nd\n", "a\n\n", 3},
	} {
		if got := fitHeight(c.whole, c.height); got != c.want {
			t.Errorf("%q in %d lines: %q, want %q", c.whole, c.height, got, c.want)
		}
	}
	if drawable("dumb") || drawable("") || !drawable("xterm") {
		t.Error("it draws where nobody can, or not where one can")
	}
}
