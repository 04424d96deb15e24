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
	"strings"
	"testing"
	"time"

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
