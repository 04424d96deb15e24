package daemon

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostflow"
	"github.com/penstock-net/penstock/forwarder/hostnet"
)

func TestStartAndStopInOrder(t *testing.T) {
	f := newFake()
	r := run(t, f, "workers: 2\n")
	want := []string{"privileged", "prepare penstock0 2", "forwarder", "peers 0", "host", "apply", "flows", "load", "start"}
	if got := f.deeds(); !slices.Equal(got, want) {
		t.Errorf("start:\n got %q\nwant %q", got, want)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	want = []string{"stop", "flowsclose"}
	if got := f.deeds(); !slices.Equal(got, want) {
		t.Errorf("stop:\n got %q\nwant %q; devices, routes and rules must stay", got, want)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(r.path), "p.sock*")); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestStopDuringBench: a request that would take long is broken off, its client told why, and the workers have all of their time.
func TestStopDuringBench(t *testing.T) {
	f := newFake()
	r := run(t, f, "peers: [{name: node-b, address: 192.0.2.2, podCIDRs: ['10.244.2.0/24']}]\n")
	began := make(chan struct{})
	r.prober.(*fakeProber).benching = began
	told := make(chan error, 1)
	go func() {
		_, err := r.client.Bench(t.Context(), control.BenchRequest{Peer: "node-b", Milliseconds: control.MaxBench})
		told <- err
	}()
	<-began
	if err := r.stop(); err != nil {
		t.Errorf("the unit would fail: %v", err)
	}
	if err := <-told; control.CodeOf(err) != control.NotReady || !strings.Contains(err.Error(), "the daemon is stopping") {
		t.Errorf("the client was told: %v", err)
	}
	if f.stopTime < stopTimeout-500*time.Millisecond {
		t.Errorf("the workers had %s to stop, not %s", f.stopTime, stopTimeout)
	}
}

// Whatever fails at the start, what was done before is undone, in the opposite order, and nothing that a predecessor left is
// touched.
func TestFailedStartUndoes(t *testing.T) {
	broken := errors.New("broken on purpose")
	for _, test := range []struct{ fails, undone string }{
		{"privileged", ""},
		{"prepare", ""},
		{"forwarder", "cleanup penstock0"},
		{"peers", "stop|cleanup penstock0"},
		{"host", "stop|cleanup penstock0"},
		{"apply", "stop|cleanup penstock0"},
		{"flows", "stop|cleanup penstock0"},
		{"load", "flowsclose|stop|cleanup penstock0"},
	} {
		for _, taken := range []bool{false, true} {
			f := newFake()
			f.taken = taken
			f.failing(test.fails, broken)
			path := file(t, "")
			d, err := newDaemon(f, Options{Config: path, Log: io.Discard})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.run(t.Context(), nil); !errors.Is(err, broken) {
				t.Errorf("%s: %v", test.fails, err)
			}
			did := f.deeds()
			at := slices.IndexFunc(did, func(s string) bool { return strings.Fields(s)[0] == test.fails })
			want := test.undone
			if taken {
				want = strings.TrimSuffix(strings.TrimSuffix(want, "cleanup penstock0"), "|")
			}
			if got := strings.Join(did[at+1:], "|"); got != want {
				t.Errorf("%s (predecessor: %v): undone %q, want %q", test.fails, taken, got, want)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "p.sock*")); left != nil {
				t.Errorf("%s: left %v", test.fails, left)
			}
		}
	}
}

func TestStoppedWhileStarting(t *testing.T) {
	f := newFake()
	d, _ := newDaemon(f, Options{Config: file(t, ""), Log: io.Discard})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.run(ctx, nil); err != nil { // it did what it was asked to
		t.Errorf("got %v", err)
	}
	if did := f.deeds(); slices.Contains(did, "start") {
		t.Errorf("workers ran: %q", did)
	}

	// But not if something stays behind, or if the start had failed by itself.
	for _, what := range []string{"cleanup", "forwarder"} {
		f := newFake()
		f.failing(what, errors.New("no"))
		d, _ := newDaemon(f, Options{Config: file(t, ""), Log: io.Discard})
		if err := d.run(ctx, nil); err == nil {
			t.Errorf("%s fails: no error", what)
		}
	}
}

func TestNoConntrackIsNoFailure(t *testing.T) {
	f := newFake()
	f.failing("flows", hostflow.ErrNoConntrack)
	r := run(t, f, "")
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

func TestTwoDaemonsOnOneSocket(t *testing.T) {
	r := run(t, newFake(), "")
	second := newFake()
	d, _ := newDaemon(second, Options{Config: r.path, Log: io.Discard})
	if err := d.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "another penstockd is running") {
		t.Errorf("got %v", err)
	}
	if did := second.deeds(); slices.Contains(did, "forwarder") {
		t.Errorf("the second one did %q", did)
	}
	err := cleanup(t.Context(), second, Options{Config: r.path, Log: io.Discard})
	if err == nil || slices.Contains(second.deeds(), "cleanup penstock0") {
		t.Errorf("cleaned up under a running daemon: %v", err)
	}
	r.stop()
	if err := cleanup(t.Context(), second, Options{Config: r.path, Log: io.Discard}); err != nil || !slices.Contains(second.deeds(), "cleanup penstock0") {
		t.Errorf("not cleaned up: %v", err)
	}
}

// TestTwoDaemonsOnOneState: in two network namespaces, with sockets of their own, and a state that somebody forgot.
func TestTwoDaemonsOnOneState(t *testing.T) {
	r := run(t, newFake(), "")
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	second := newFake()
	other := Options{Config: file(t, "state: "+stateDir(r.path)+"\n"), Log: io.Discard}
	d, _ := newDaemon(second, other)
	want := "another penstockd works with the directory " + stateDir(r.path)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // or it would run
	defer cancel()
	if err := d.run(ctx, nil); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if did := second.deeds(); slices.Contains(did, "forwarder") {
		t.Errorf("the second one did %q", did)
	}
	if err := cleanup(t.Context(), second, other); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("cleaned up another one's pods: %v", err)
	}
	if _, err := os.Stat(filepath.Join(stateDir(r.path), "pods", a.Device+".json")); err != nil {
		t.Error(err)
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if err := cleanup(t.Context(), second, other); err != nil {
		t.Error(err)
	}
}

func TestBrokenConfigurations(t *testing.T) {
	for yaml, want := range map[string]string{
		"nonsense: 1\n": "nonsense",
		"node: {name: a, address: 192.0.2.77, podCIDRs: [10.244.1.0/24]}\n": "node.address",
		"encap: {mtu: 1451}\n": "encap.mtu: 1451 does not fit",
		"peers:\n- {name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}\nencap: {type: udp, mtu: 1473}\n": "leaves 1472",
	} {
		f := newFake()
		d, _ := newDaemon(f, Options{Config: file(t, yaml), Log: io.Discard})
		if err := d.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", yaml, err, want)
		}
		if did := f.deeds(); slices.Contains(did, "forwarder") {
			t.Errorf("%q: did %q", yaml, did)
		}
	}
}

func TestMTU(t *testing.T) {
	const peers = "peers:\n- {name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}\n- {name: c, address: 192.0.2.3, podCIDRs: [10.244.3.0/24], encap: %s}\n"
	for _, test := range []struct {
		yaml string
		mtu  int
	}{
		{"", 1450},
		{"encap: {type: udp}\n", 1472},
		{"encap: {type: ipip}\n", 1480},
		{"encap: {type: udp}\n" + strings.Replace(peers, "%s", "udp", 1), 1472},
		{"encap: {type: udp}\n" + strings.Replace(peers, "%s", "vxlan", 1), 1450},
		{"encap: {mtu: 1400}\n", 1400},
	} {
		f := newFake()
		r := run(t, f, test.yaml)
		s, err := r.client.Status(t.Context())
		if err != nil || s.MTU != test.mtu || f.settings.PodMTU != test.mtu || f.hostnet.MTU != test.mtu {
			t.Errorf("%q: status %d, forwarder %d, host %d, want %d (%v)", test.yaml, s.MTU, f.settings.PodMTU, f.hostnet.MTU, test.mtu, err)
		}
		r.stop()
	}
}

func TestUnderlayChanges(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	f.deeds()
	u := f.underlay
	u.MTU = 9000
	f.watch(u, nil)
	if s, _ := r.client.Status(t.Context()); s.MTU != 8950 || s.UnderlayMTU != 9000 || f.settings.PodMTU != 8950 || f.settings.UnderlayMTU != 9000 || f.hostnet.MTU != 8950 {
		t.Errorf("MTU: %+v", s)
	}
	f.watch(u, nil) // no news
	if did := f.deeds(); !slices.Equal(did, []string{"reconfigure 8950", "hostreconfigure 8950"}) {
		t.Errorf("did %q", did)
	}
	u.MTU = 1500
	f.failing("hostreconfigure", errors.New("busy"))
	if err := f.watch(u, nil); err == nil {
		t.Error("a change that was not followed is said to be")
	}
	f.failing("hostreconfigure", nil)
	if err := f.watch(u, nil); err != nil || f.settings.PodMTU != 1450 {
		t.Errorf("followed at last: %v, %d", err, f.settings.PodMTU)
	}
	f.watch(hostnet.Underlay{}, unix.EMFILE)
	if s, _ := r.client.Status(t.Context()); !s.Ready || s.MTU != 1450 {
		t.Errorf("an underlay that cannot be looked at is taken for one that is gone: %+v", s)
	}
	f.watch(hostnet.Underlay{}, hostnet.ErrNoAddress)
	if s, _ := r.client.Status(t.Context()); s.Ready || !strings.Contains(s.Reason, "underlay") {
		t.Errorf("ready without an underlay address: %+v", s)
	}
	f.deeds()
	u.Duplicate = true
	f.watch(u, nil)
	if s, _ := r.client.Status(t.Context()); s.Ready || s.Reason != "the underlay address 192.0.2.1 cannot be used, as duplicate address detection has failed, so another machine has it or had it: take it from that machine, then delete it here and add it again" {
		t.Errorf("ready with a duplicate address: %+v", s)
	}
	f.underlay.Tentative = true
	if _, err := r.client.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "node.address: 192.0.2.1 on eth0 cannot be used, as duplicate address detection is still going on: wait") {
		t.Errorf("a start with a tentative address: %v", err)
	}
	f.underlay.Tentative, u.Duplicate = false, false
	f.watch(u, nil)
	if did := f.deeds(); len(did) != 0 {
		t.Errorf("what is only told was followed by %q", did)
	}
	u.Up = false
	f.watch(u, nil)
	if s, _ := r.client.Status(t.Context()); s.Ready || !strings.Contains(s.Reason, "down") {
		t.Errorf("ready with the underlay down: %+v", s)
	}
	u.Up = true
	f.watch(u, nil)
	if s, _ := r.client.Status(t.Context()); !s.Ready || s.Reason != "" {
		t.Errorf("not ready again: %+v", s)
	}
}

// TestUnderlayTooSmallForIPv6: the kernel would take penstock0 out of IPv6; what is left of IPv4 follows, and it is told what is wrong.
func TestUnderlayTooSmallForIPv6(t *testing.T) {
	f := newFake()
	r := run(t, f, "node: {name: node-a, address: 192.0.2.1, podCIDRs: [10.244.1.0/24, fd00:10:244:1::/64]}\nnetwork: {cidrs: [10.244.0.0/16, fd00:10:244::/48]}\n")
	u := f.underlay
	u.MTU = 1320
	if err := f.watch(u, nil); err != nil {
		t.Error(err)
	}
	if s, _ := r.client.Status(t.Context()); s.MTU != 1270 || s.UnderlayMTU != 1320 || f.settings.PodMTU != 1270 || f.settings.UnderlayMTU != 1320 || f.hostnet.MTU != 1280 {
		t.Errorf("status %d of %d, forwarder %d of %d, host %d", s.MTU, s.UnderlayMTU, f.settings.PodMTU, f.settings.UnderlayMTU, f.hostnet.MTU)
	}
}

func TestRoutesAreRepaired(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	f.deeds()
	for range 100 {
		f.routes()
	}
	for deadline := time.Now().Add(30 * time.Second); !slices.Contains(f.deeds(), "apply"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody looked at the routes")
		}
	}
	r.stop()
	if did := f.deeds(); slices.Contains(did, "apply") {
		t.Errorf("a hundred changes at once: %q", did)
	}
}

func TestUnderlayAddressIsFound(t *testing.T) {
	f := newFake()
	f.underlay.Address = netip.MustParseAddr("198.51.100.7")
	r := run(t, f, "node: {name: a, podCIDRs: [10.244.1.0/24]}\n")
	if s, err := r.client.Status(t.Context()); err != nil || s.Address != f.underlay.Address {
		t.Errorf("%v, %v", s.Address, err)
	}
}
