package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a Backend with a memory.
type fake struct {
	mu    sync.Mutex
	ports map[string]control.Port
	level string
	err   error // answered to everything, if set
	block chan struct{}

	adopted []string

	attaching, attach chan struct{} // of AttachQueue: closed when it has begun; it goes on when that is closed

	source *fakeSource
}

func newFake() *fake { return &fake{ports: map[string]control.Port{}, level: "info"} }

func (f *fake) Status(ctx context.Context) (control.Status, error) {
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return control.Status{}, ctx.Err()
		}
	}
	return control.Status{Node: "node-a", Address: netip.MustParseAddr("192.0.2.1"), VTEPMAC: "02:00:00:00:00:01", Encap: "vxlan", MTU: 1450,
		Ready: true, Capabilities: []control.Capability{{Name: "tun", Found: true, Used: true}}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}, f.err
}

func (f *fake) Attach(_ context.Context, r control.AttachRequest) (control.Port, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return control.Port{}, f.err
	}
	if len(r.Addresses) == 0 {
		return control.Port{}, control.Errorf(control.BadRequest, "no addresses")
	}
	p := control.Port{Container: r.Container, Interface: r.Interface, Attach: r.Attach, Device: r.Device, Addresses: r.Addresses, MTU: 1450}
	f.ports[r.Container+"/"+r.Interface] = p
	return p, nil
}

func (f *fake) Detach(_ context.Context, r control.DetachRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.ports, r.Container+"/"+r.Interface)
	return f.err
}

func (f *fake) Ports(context.Context) ([]control.Port, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l []control.Port
	for _, p := range f.ports {
		l = append(l, p)
	}
	return l, f.err
}

func (f *fake) Peers(context.Context) ([]control.Peer, error)   { return nil, f.err }
func (f *fake) Routes(context.Context) ([]control.Route, error) { panic("deliberate") }
func (f *fake) Drops(context.Context) ([]control.Drop, error) {
	return []control.Drop{{Reason: "ttl", Packets: 3}, {Reason: "no_route", Packets: 1}}, f.err
}
func (f *fake) Probe(_ context.Context, r control.ProbeRequest) (control.Probe, error) {
	return control.Probe{Peer: r.Peer, AnsweredBy: control.AnsweredByHost}, f.err
}
func (f *fake) Bench(_ context.Context, r control.BenchRequest) (control.Bench, error) {
	return control.Bench{Peer: r.Peer, Latency: control.Latency{Sent: int(r.Milliseconds)}}, f.err
}
func (f *fake) Trace(_ context.Context, r control.TraceRequest) (control.Trace, error) {
	return control.Trace{Src: r.Src, Outcome: "to-pod"}, f.err
}
func (f *fake) FDB(context.Context) ([]control.FDBEntry, error) {
	return []control.FDBEntry{{MAC: "02:00:00:00:00:02"}}, f.err
}
func (f *fake) Reasons(context.Context) ([]control.Drop, error) {
	return []control.Drop{{Reason: "ttl", Meaning: "over"}}, f.err
}
func (f *fake) Capture(_ context.Context, r capture.Request) (capture.Source, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.source, nil
}
func (f *fake) Reload(context.Context) (control.Reloaded, error) {
	return control.Reloaded{Changed: []string{"encap.copyDSCP"}}, f.err
}
func (f *fake) LogLevel() string { f.mu.Lock(); defer f.mu.Unlock(); return f.level }
func (f *fake) SetLogLevel(l string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l != "debug" && l != "info" {
		return control.Errorf(control.BadRequest, "%q is not a log level", l)
	}
	f.level = l
	return nil
}

func (f *fake) Allocate(_ context.Context, r control.AllocateRequest) (control.Allocation, error) {
	return control.Allocation{Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, Gateway4: netip.MustParseAddr("169.254.1.1"), MTU: 1450,
		Device: control.DeviceName(r.Container, r.Interface), Phase: control.PhaseReserved}, f.err
}
func (f *fake) Check(context.Context, control.CheckRequest) (control.Port, error) {
	return control.Port{}, f.err
}
func (f *fake) GC(_ context.Context, r control.GCRequest) (control.GCResult, error) {
	return control.GCResult{Removed: r.Valid, Failed: []control.GCFailure{}}, f.err
}
func (f *fake) Pods(context.Context) ([]control.Pod, error) {
	return []control.Pod{{Container: "c1", Phase: control.PhaseWaiting}}, f.err
}
func (f *fake) IPAM(context.Context) (control.IPAM, error) {
	return control.IPAM{CIDRs: []control.IPAMCIDR{{Free: 1<<64 - 1}}}, f.err
}
func (f *fake) Adopt(_ context.Context, k control.PodKey, fd int) error {
	defer unix.Close(fd)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	b := make([]byte, 16)
	n, err := unix.Pread(fd, b, 0)
	f.adopted = append(f.adopted, fmt.Sprintf("%s %s %v", k, b[:n], err))
	return nil
}

func (f *fake) AttachQueue(ctx context.Context, r control.AttachRequest, fd int) (control.Attached, error) {
	if f.attaching != nil {
		close(f.attaching)
		<-f.attach
	}
	err := f.Adopt(ctx, control.PodKey{Container: r.Container, Interface: r.Interface}, fd)
	return control.Attached{Port: control.Port{Container: r.Container, Interface: r.Interface}, QueueLen: 37}, err
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// start serves a fake on a real socket and returns a client for it.
func start(t *testing.T, f *fake) (*control.Client, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "run", "p.sock")
	l, err := Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	s := New(f, quiet())
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := l.Release(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(filepath.Dir(socket)); len(left) != 0 {
			t.Errorf("left beside the socket: %v", left)
		}
	})
	return control.New(socket), socket
}

// over is what curl --unix-socket is: anybody's HTTP over the socket.
func over(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

func TestEverythingOnce(t *testing.T) {
	f := newFake()
	c, socket := start(t, f)
	ctx := t.Context()
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v; want mode 0600", fi.Mode(), err)
	}
	got, err := c.Status(ctx)
	want, _ := f.Status(ctx)
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); err != nil || d != "" {
		t.Errorf("Status: %v\n%s", err, d)
	}
	p, err := c.Attach(ctx, control.AttachRequest{Container: "c1", Interface: "eth0", Attach: control.AttachVeth, Device: "ps1",
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00::2")}})
	if err != nil || p.MTU != 1450 || len(p.Addresses) != 2 {
		t.Errorf("Attach: %+v, %v", p, err)
	}
	if l, err := c.Ports(ctx); err != nil || len(l) != 1 || l[0].Device != "ps1" {
		t.Errorf("Ports: %+v, %v", l, err)
	}
	for range 2 {
		if err := c.Detach(ctx, control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
			t.Error(err)
		}
	}
	if l, err := c.Ports(ctx); err != nil || l == nil || len(l) != 0 {
		t.Errorf("Ports after Detach: %+v, %v; want an empty list, not null", l, err)
	}
	if l, err := c.Drops(ctx); err != nil || len(l) != 2 || l[0] != (control.Drop{Reason: "ttl", Packets: 3}) {
		t.Errorf("Drops: %+v, %v", l, err)
	}
	if l, err := c.Peers(ctx); err != nil || len(l) != 0 {
		t.Errorf("Peers: %+v, %v", l, err)
	}
	if r, err := c.Reload(ctx); err != nil || len(r.Changed) != 1 {
		t.Errorf("Reload: %+v, %v", r, err)
	}
	if p, err := c.Probe(ctx, control.ProbeRequest{Peer: "node-b"}); err != nil || p.Peer != "node-b" || p.AnsweredBy != control.AnsweredByHost {
		t.Errorf("Probe: %+v, %v", p, err)
	}
	if b, err := c.Bench(ctx, control.BenchRequest{Peer: "node-b", Milliseconds: 7}); err != nil || b.Latency.Sent != 7 {
		t.Errorf("Bench: %+v, %v", b, err)
	}
	if pid, err := c.Process(ctx); err != nil || pid != os.Getpid() {
		t.Errorf("Process: %d, %v", pid, err)
	}
	if err := c.SetLogLevel(ctx, "debug"); err != nil {
		t.Error(err)
	}
	if l, err := c.LogLevel(ctx); err != nil || l != "debug" {
		t.Errorf("LogLevel: %q, %v", l, err)
	}
}

func TestErrorsCrossTheSocket(t *testing.T) {
	f := newFake()
	c, _ := start(t, f)
	ctx := t.Context()
	if _, err := c.Attach(ctx, control.AttachRequest{Container: "c", Interface: "eth0"}); control.CodeOf(err) != control.BadRequest || err.Error() != "no addresses" {
		t.Errorf("got %v (%s)", err, control.CodeOf(err))
	}
	if err := c.SetLogLevel(ctx, "loud"); control.CodeOf(err) != control.BadRequest {
		t.Errorf("got %v (%s)", err, control.CodeOf(err))
	}
	f.err = fmt.Errorf("the pod cannot be attached: %w", control.Errorf(control.Conflict, "address 10.244.1.2 is in use"))
	_, err := c.Attach(ctx, control.AttachRequest{})
	if control.CodeOf(err) != control.Conflict || err.Error() != "the pod cannot be attached: address 10.244.1.2 is in use" {
		t.Errorf("a wrapped error: got %v (%s)", err, control.CodeOf(err))
	}
	f.err = errors.New("the disk is on fire")
	if _, err = c.Reload(ctx); control.CodeOf(err) != control.Internal || err.Error() != "the disk is on fire" {
		t.Errorf("a plain error: got %v (%s)", err, control.CodeOf(err))
	}
	f.err = nil
	if _, err = c.Routes(ctx); control.CodeOf(err) != control.Internal { // the fake panics
		t.Errorf("a panic: got %v (%s)", err, control.CodeOf(err))
	}
	if _, err = c.Status(ctx); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	f := newFake()
	_, socket := start(t, f)
	for _, test := range []struct {
		name, method, path, body string
		status                   int
		code                     control.Code
	}{
		{"unknown path", "GET", "/v1/nonsense", "", 404, control.NotFound},
		{"unversioned", "GET", "/status", "", 404, control.NotFound},
		{"wrong method", "POST", "/v1/status", "", 405, control.BadMethod},
		{"body where none is taken", "GET", "/v1/ports", `{"a":1}`, 400, control.BadRequest},
		{"empty body", "POST", "/v1/attach", "", 400, control.BadRequest},
		{"null", "POST", "/v1/attach", "null", 400, control.BadRequest},
		{"list", "POST", "/v1/attach", "[]", 400, control.BadRequest},
		{"unknown key", "POST", "/v1/attach", `{"container":"c","adresses":[]}`, 400, control.BadRequest},
		{"bad address", "POST", "/v1/attach", `{"addresses":["10.244.1"]}`, 400, control.BadRequest},
		{"wrong type", "POST", "/v1/attach", `{"mtu":"x"}`, 400, control.BadRequest},
		{"cut", "POST", "/v1/detach", `{"container":"c"`, 400, control.BadRequest},
		{"two objects", "POST", "/v1/detach", `{"container":"c"}{}`, 400, control.BadRequest},
		{"rubbish behind", "POST", "/v1/detach", `{"container":"c"}x`, 400, control.BadRequest},
		{"too long for a GC", "POST", "/v1/gc", `{"network":"` + strings.Repeat("x", control.MaxGC) + `"}`, 413, control.TooLarge},
		{"too long", "POST", "/v1/attach", `{"container":"` + strings.Repeat("x", control.MaxBody) + `"}`, 413, control.TooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			q, err := http.NewRequestWithContext(t.Context(), test.method, "http://x"+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			a, err := over(socket).Do(q)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Body.Close()
			var e control.Envelope
			if err := json.NewDecoder(a.Body).Decode(&e); err != nil || e.Error == nil {
				t.Fatalf("no JSON error: %v", err)
			}
			if a.StatusCode != test.status || e.Error.Code != test.code || e.Error.Message == "" {
				t.Errorf("got %d %+v, want %d %s", a.StatusCode, e.Error, test.status, test.code)
			}
			if test.status == 405 && a.Header.Get("Allow") == "" {
				t.Error("no Allow header")
			}
		})
	}
	if len(f.ports) != 0 {
		t.Errorf("a bad request reached the backend: %v", f.ports)
	}
}

func TestClientWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	_, err := control.New(filepath.Join(dir, "none.sock")).Status(ctx)
	if !errors.Is(err, control.ErrUnreachable) || !errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "\n") {
		t.Errorf("no socket: %v", err)
	}
	dead := filepath.Join(dir, "dead.sock")
	die(t, dead)
	if _, err = control.New(dead).Status(ctx); !errors.Is(err, control.ErrUnreachable) || !strings.Contains(err.Error(), "has died") {
		t.Errorf("dead socket: %v", err)
	}
}

func TestClientGivesUp(t *testing.T) {
	f := newFake()
	f.block = make(chan struct{})
	c, _ := start(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := c.Status(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, control.ErrUnreachable) {
		t.Errorf("got %v; a request that was sent is not unreachable", err)
	}
	close(f.block)
}

// TestLateRequest: a daemon that hung does not do what its client has given up.
func TestLateRequest(t *testing.T) {
	f := newFake()
	_, socket := start(t, f)
	for late, want := range map[string]control.Code{"1": control.NotReady, strconv.FormatInt(time.Now().Add(time.Minute).UnixMilli(), 10): "", "": "", "soon": ""} {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x/v1/attach", strings.NewReader(`{"container":"c","interface":"eth0","addresses":["10.244.1.2"]}`))
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set(control.DeadlineHeader, late)
		a, err := over(socket).Do(q)
		if err != nil {
			t.Fatal(err)
		}
		var e control.Envelope
		err = json.NewDecoder(a.Body).Decode(&e)
		a.Body.Close()
		got := control.Code("")
		if e.Error != nil {
			got = e.Error.Code
		}
		if err != nil || got != want || want != "" && len(f.ports) != 0 {
			t.Errorf("deadline %q: %v, %v", late, e.Error, err)
		}
		delete(f.ports, "c/eth0")
	}
}

func TestClientMeetsAnotherServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler()}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	defer func() { s.Close(); <-done }()
	if _, err := control.New(socket).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "is not penstockd") {
		t.Errorf("got %v", err)
	}
}

func TestConcurrentClients(t *testing.T) {
	c, _ := start(t, newFake())
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			id := fmt.Sprint("c", i)
			a := []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 1, byte(i)})}
			if _, err := c.Attach(t.Context(), control.AttachRequest{Container: id, Interface: "eth0", Addresses: a}); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := c.Detach(t.Context(), control.DetachRequest{Container: id, Interface: "eth0"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l, err := c.Ports(t.Context()); err != nil || len(l) != 16 {
		t.Errorf("%d ports, %v; want 16", len(l), err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, `{"container":"c","interface":"eth0","addresses":["10.0.0.1","fe80::1%eth0"],"mtu":1}`, `{"addresses":[""]}`,
		`{"mtu":1e400}`, `{"container":"` + "\xff" + `"}`, `{"a":`, `null`, ` {} {}`} {
		f.Add([]byte(s))
	}
	h := handler(newFake(), quiet(), context.Background(), new(sync.WaitGroup))
	f.Fuzz(func(t *testing.T, body []byte) {
		var a control.AttachRequest
		if err := decode(body, &a); err != nil {
			if control.CodeOf(err) != control.BadRequest || strings.Contains(err.Error(), "\n") {
				t.Fatalf("not one sentence with a code: %q", err)
			}
			return
		}
		// What was understood says the same when it is written and read again.
		b, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		var again control.AttachRequest
		if err := decode(b, &again); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if d := cmp.Diff(a, again, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Fatal(d)
		}
		q, _ := http.NewRequest("POST", "/v1/attach", strings.NewReader(string(body)))
		w := &recorder{header: http.Header{}}
		h.ServeHTTP(w, q)
		if w.status == 0 || w.status >= 500 {
			t.Fatalf("status %d for %q", w.status, body)
		}
	})
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }
func (r *recorder) WriteHeader(s int)           { r.status = s }
