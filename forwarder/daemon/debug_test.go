package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// freePort is a loopback address that nobody listens on just now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func get(t *testing.T, address, path string) (int, string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	a, err := c.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(b)
}

func TestListeners(t *testing.T) {
	f := newFake()
	f.counters = forwarder.Counters{
		Received:  map[string]uint64{"pod": 10, "wire": 7, "host": 0},
		Generated: map[string]uint64{"icmp": 1},
		Forwarded: map[forwarder.ForwardedKey]forwarder.Volume{{Direction: "wire", Encap: "vxlan"}: {Packets: 9, Bytes: 900}, {Direction: "pod", Encap: "none"}: {Packets: 6, Bytes: 600}},
		Dropped:   map[string]uint64{"ttl_expired": 3, "no_route": 0},
		Peers:     []forwarder.PeerCounters{{Name: "b", Address: "192.0.2.2", MTU: 1450}},
		Ports:     []forwarder.PortCounters{{Container: "c1", Interface: "eth0", Device: "ve1"}},
	}
	debug, metrics := freePort(t), freePort(t)
	run(t, f, fmt.Sprintf("debug: {listen: %q}\nmetrics: {listen: %q}\n", debug, metrics))

	for _, address := range []string{debug, metrics} {
		status, body := get(t, address, "/metrics")
		for _, want := range []string{
			`penstock_received_packets_total{direction="pod"} 10`,
			`penstock_generated_packets_total{kind="icmp"} 1`,
			`penstock_forwarded_packets_total{direction="wire",encap="vxlan"} 9`,
			`penstock_forwarded_bytes_total{direction="pod",encap="none"} 600`,
			`penstock_dropped_packets_total{reason="ttl_expired"} 3`,
			`penstock_dropped_packets_total{reason="no_route"} 0`,
			`penstock_peer_mtu_bytes{address="192.0.2.2",peer="b"} 1450`,
			`penstock_port_packets_total{container="c1",device="ve1",interface="eth0",way="sent"} 0`,
			"penstock_ready 1", "penstock_pod_mtu_bytes 1450", "penstock_build_info{", "penstock_host_flows_preloaded_total 3", "go_goroutines ",
		} {
			if status != 200 || !strings.Contains(body, "\n"+want) {
				t.Errorf("%s: status %d, no %q", address, status, want)
			}
		}
		if status, _ := get(t, address, "/healthz"); status != 200 {
			t.Errorf("healthz: %d", status)
		}
		if status, _ := get(t, address, "/readyz"); status != 200 {
			t.Errorf("readyz: %d", status)
		}
	}
	if status, body := get(t, debug, "/debug/pprof/goroutine?debug=1"); status != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("pprof: %d", status)
	}
	if status, _ := get(t, metrics, "/debug/pprof/goroutine?debug=1"); status != 404 {
		t.Errorf("profiles on metrics.listen: %d", status)
	}
	f.watch(hostnet.Underlay{}, hostnet.ErrNoAddress)
	if status, body := get(t, debug, "/readyz"); status != 503 || !strings.Contains(body, "underlay") {
		t.Errorf("readyz without an underlay: %d %q", status, body)
	}
	if status, _ := get(t, debug, "/healthz"); status != 200 {
		t.Errorf("healthz without an underlay: %d", status)
	}
}

func TestDebugStaysOnLoopback(t *testing.T) {
	f := newFake()
	d, _ := newDaemon(f, Options{Config: file(t, "debug: {listen: \"0.0.0.0:0\"}\n"), Log: io.Discard})
	if err := d.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "debug") {
		t.Errorf("got %v", err)
	}
	var undo undoList
	for _, address := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:0", ":0", "localhost:0"} {
		if err := d.listenHTTP("debug.listen", address, true, nil, &undo); err == nil || !strings.Contains(err.Error(), "allowRemote") {
			t.Errorf("%s: %v", address, err)
		}
	}
	undo.because(nil)
}

func TestStatus(t *testing.T) {
	r := run(t, newFake(), peerB)
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.2")); err != nil {
		t.Fatal(err)
	}
	s, err := r.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// printf '192.0.2.1|1' | sha256sum
	if s.VTEPMAC != "02:01:dd:0b:1c:70" {
		t.Errorf("VTEP MAC %s", s.VTEPMAC)
	}
	if s.Node != "node-a" || s.Peers != 1 || s.Ports != 1 || s.Encap != "vxlan" || s.Underlay != "eth0" || len(s.Capabilities) != 2 || s.Version == "" || s.Workers < 1 {
		t.Errorf("%+v", s)
	}
	routes, err := r.client.Routes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range routes {
		got = append(got, x.Prefix.String()+" "+x.Kind)
	}
	want := "10.244.0.0/16 unreachable, 10.244.1.0/24 unreachable, 10.244.1.0/32 host, 10.244.1.2/32 port, 10.244.2.0/24 peer"
	if strings.Join(got, ", ") != want {
		t.Errorf("routes %s\nwant %s", strings.Join(got, ", "), want)
	}
}

func TestDropsSayWhatToDo(t *testing.T) {
	f := newFake()
	f.counters.Dropped = map[string]uint64{"no_route": 1, "spoofed": 5}
	r := run(t, f, "")
	d, err := r.client.Drops(t.Context())
	if err != nil || len(d) != 2 || d[0].Reason != "spoofed" || d[1].Reason != "no_route" || d[0].Meaning == "" || d[0].Remedy == "" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestLoggerWritesJSONToFiles(t *testing.T) {
	var b bytes.Buffer
	var level slog.LevelVar
	log := newLogger(&b, &level)
	log.Debug("hidden")
	log.Info("shown", "n", 1)
	level.Set(slog.LevelDebug)
	log.Debug("now shown")
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	var first map[string]any
	if len(lines) != 2 || json.Unmarshal([]byte(lines[0]), &first) != nil || first["msg"] != "shown" {
		t.Errorf("%q", lines)
	}
}

func TestRefusedWhileStarting(t *testing.T) {
	d, err := newDaemon(newFake(), Options{Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := d.Attach(ctx, request("c1", "ve1", "10.244.1.2")); control.CodeOf(err) != control.NotReady {
		t.Errorf("attach: %v", err)
	}
	if _, err := d.Reload(t.Context()); control.CodeOf(err) != control.NotReady {
		t.Errorf("reload: %v", err)
	}
}

// TestListenersAreBounded: whoever reaches a listener holds as many connections as it has and no more, none for long, and keeps nobody from a scrape by not reading.
func TestListenersAreBounded(t *testing.T) {
	debug, metrics := freePort(t), freePort(t)
	run(t, newFake(), fmt.Sprintf("debug: {listen: %q}\nmetrics: {listen: %q}\n", debug, metrics))
	files := func() int { l, _ := os.ReadDir("/proc/self/fd"); return len(l) }
	dial := func(address, request string) net.Conn {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		return c
	}
	// Answers that nobody reads.
	for range 8 {
		c := dial(metrics, "")
		go io.WriteString(c, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 3000))
	}
	time.Sleep(100 * time.Millisecond)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if status, _ := get(t, metrics, "/metrics"); status == http.StatusOK {
			break
		}
		if time.Now().After(end) {
			t.Fatal("clients that do not read keep others from metrics")
		}
	}
	// Bodies that do not come: those beyond the limit wait in the kernel, and cost the daemon nothing.
	const body = "POST /debug/pprof/symbol HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
	before := files()
	first := dial(debug, body)
	const clients = 3 * listenConnections
	for range clients - 1 {
		dial(debug, body)
	}
	time.Sleep(200 * time.Millisecond)
	if n := files() - before - clients; n > listenConnections+8 { // the other listener's are closed meanwhile, if anything
		t.Errorf("the daemon holds %d connections", n)
	}
	first.SetReadDeadline(time.Now().Add(listenRead + 20*time.Second))
	if _, err := io.ReadAll(first); err != nil {
		t.Errorf("a body that does not come is waited for: %v", err)
	}
}

// TestProfileOutlastsReads: a profile runs as long as it was asked to, past the time that its request had to be read in.
func TestProfileOutlastsReads(t *testing.T) {
	l := newDebugListener("debug.listen", "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(300 * time.Millisecond):
			io.WriteString(w, "whole")
		}
	}), slog.New(slog.DiscardHandler))
	l.server.ReadTimeout = 50 * time.Millisecond
	open := l.listen()
	go l.serve(t.Context())
	defer l.close()
	if status, body := get(t, open.Addr().String(), "/"); status != 200 || body != "whole" {
		t.Errorf("%d %q", status, body)
	}
}

// TestListenerHeld: one that somebody else has is told, and opened when it is free.
func TestListenerHeld(t *testing.T) {
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := held.Addr().String()
	r := run(t, newFake(), fmt.Sprintf("debug: {listen: %q}\n", address))
	s, err := r.client.Status(t.Context())
	if err != nil || len(s.Unopened) != 1 || !strings.Contains(s.Unopened[0], "debug.listen cannot be opened") || !s.Ready {
		t.Fatalf("%+v %v", s, err)
	}
	held.Close()
	for end := time.Now().Add(30 * time.Second); len(s.Unopened) > 0; time.Sleep(50 * time.Millisecond) {
		if s, err = r.client.Status(t.Context()); err != nil || time.Now().After(end) {
			t.Fatalf("%+v %v", s, err)
		}
	}
	if status, _ := get(t, address, "/healthz"); status != 200 {
		t.Error(status)
	}
}

// TestNotifyWithoutDescriptors: the watchdog is fed by the socket that the first word went by.
func TestNotifyWithoutDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	t.Setenv("NOTIFY_SOCKET", path)
	listen := func() *net.UnixConn {
		c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	heard := func(c *net.UnixConn) string {
		b := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(time.Second))
		n, _ := c.Read(b)
		return string(b[:n])
	}
	c := listen()
	log := slog.New(slog.DiscardHandler)
	notify(log, "STATUS=Starting")
	if got := heard(c); got != "STATUS=Starting" {
		t.Errorf("%q", got)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	notify(log, "WATCHDOG=1")
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if got := heard(c); got != "WATCHDOG=1" {
		t.Errorf("%q", got)
	}
	c.Close()
	os.Remove(path)
	c = listen()
	defer c.Close()
	notify(log, "READY=1") // whoever listens has begun anew
	if got := heard(c); got != "READY=1" {
		t.Errorf("%q", got)
	}
}

// hungUp is a client that has gone.
type hungUp struct{ http.ResponseWriter }

func (hungUp) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// TestHangUpIsNoNews: who collects metrics and logs what goes wrong does not notice that a client hangs up, which anybody may do as often as he likes.
func TestHangUpIsNoNews(t *testing.T) {
	asked := false
	h := fromMemory(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked = true
		if _, err := io.WriteString(w, "metric 1"); err != nil {
			t.Error(err)
		}
	}))
	if h.ServeHTTP(hungUp{httptest.NewRecorder()}, httptest.NewRequest("GET", "/metrics", nil)); !asked {
		t.Error("nobody was asked")
	}
}
