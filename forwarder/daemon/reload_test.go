package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

const peerB = "peers:\n- {name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}\n"

func TestReload(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	f.deeds()
	rewrite(t, r.path, peerB+"host: {masquerade: true}\nencap: {mtu: 1400, copyDSCP: true}\n")
	got, err := r.client.Reload(t.Context())
	want := []string{"encap.mtu", "encap.copyDSCP", "peers", "host.masquerade"}
	if err != nil || !slices.Equal(got.Changed, want) {
		t.Fatalf("changed %q, want %q (%v)", got.Changed, want, err)
	}
	if did := f.deeds(); !slices.Equal(did, []string{"replace 1400 1", "hostreconfigure 1400"}) {
		t.Errorf("did %q", did)
	}
	if len(f.peers) != 1 || !f.settings.CopyDSCP || !f.hostnet.Masquerade {
		t.Errorf("%v, %v, %v", f.peers, f.settings.CopyDSCP, f.hostnet.Masquerade)
	}
	if got, err = r.client.Reload(t.Context()); err != nil || len(got.Changed) != 0 {
		t.Errorf("the same again: %q, %v", got.Changed, err)
	}
	if did := f.deeds(); len(did) != 0 {
		t.Errorf("the same again did %q", did)
	}
	if p, err := r.client.Peers(t.Context()); err != nil || len(p) != 1 || p[0].Encap != "vxlan" || p[0].Port != 8472 || p[0].VNI != 1 || p[0].MAC == "" || p[0].MTU != 1450 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestHangupReloads(t *testing.T) {
	r := run(t, newFake(), "")
	rewrite(t, r.path, peerB)
	r.hangup <- syscall.SIGHUP
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if s, err := r.client.Status(t.Context()); err == nil && s.Peers == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("not reloaded")
		}
	}
}

// A reload that comes while another is under way begins when that one is whole.
func TestReloadsDoNotOverlap(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	f.deeds()
	reloaded := make(chan error)
	reload := func() { _, err := r.Reload(t.Context()); reloaded <- err }
	peers := func(n int, patience time.Duration) bool {
		for deadline := time.Now().Add(patience); len(r.state.Load().peers) != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				return false
			}
		}
		return true
	}
	rewrite(t, r.path, peerB)
	r.reloads.mu.Lock() // where a reload passes between taking the file over and telling the feed
	go reload()
	first := peers(1, 30*time.Second)
	rewrite(t, r.path, peerB+"- {name: c, address: 192.0.2.3, podCIDRs: [10.244.3.0/24]}\n")
	go reload()
	overlapped := peers(2, 50*time.Millisecond)
	r.reloads.mu.Unlock()
	if err := errors.Join(<-reloaded, <-reloaded); err != nil || !first || overlapped {
		t.Errorf("the first was taken over: %v, the second before the first was whole: %v, %v", first, overlapped, err)
	}
	if did := f.deeds(); !slices.Equal(did, []string{"peers 1", "hostreconfigure 1450", "peers 2", "hostreconfigure 1450"}) {
		t.Errorf("did %q", did)
	}
}

// A reload that nobody waits for any more, or that a stop breaks off, says nothing of the file.
func TestReloadBrokenOff(t *testing.T) {
	r := run(t, newFake(), "")
	r.reader.busy <- struct{}{} // somebody reads, and the disk hangs
	ctx, cancel := context.WithCancel(t.Context())
	broken := make(chan error)
	go func() { _, err := r.Reload(ctx); broken <- err }()
	time.Sleep(10 * time.Millisecond)
	cancel()
	if err := <-broken; control.CodeOf(err) != control.NotReady {
		t.Errorf("broken off: %v", err)
	}
	if _, err := r.Reload(ctx); control.CodeOf(err) != control.NotReady {
		t.Errorf("before it began: %v", err)
	}
	<-r.reader.busy
	if s, err := r.client.Status(t.Context()); err != nil || s.Rejected != "" {
		t.Errorf("%q, %v", s.Rejected, err)
	}
	if _, err := r.Reload(t.Context()); err != nil {
		t.Errorf("the next one: %v", err)
	}
}

func TestRejectedReloadChangesNothing(t *testing.T) {
	f := newFake()
	r := run(t, f, "encap: {mtu: 1400}\n")
	before := r.state.Load()
	f.deeds()
	for yaml, code := range map[string]control.Code{
		"nonsense: 1\n":                       control.InvalidConfig,
		"encap: {mtu: 1451}\n":                control.InvalidConfig,
		"encap: {mtu: 1400, type: udp}\n":     control.RestartRequired,
		"encap: {mtu: 1400}\nworkers: 3\n":    control.RestartRequired,
		"encap: {mtu: 1400}\n" + peerB + "\t": control.InvalidConfig,
	} {
		rewrite(t, r.path, yaml)
		_, err := r.client.Reload(t.Context())
		if control.CodeOf(err) != code {
			t.Errorf("%q: got %v (%s), want %s", yaml, err, control.CodeOf(err), code)
		}
		if code == control.RestartRequired && !strings.Contains(err.Error(), "needs a restart") {
			t.Errorf("%q: %v", yaml, err)
		}
	}
	if did := f.deeds(); len(did) != 0 || r.state.Load() != before {
		t.Errorf("did %q", did)
	}
}

// A step of a reload that fails takes the earlier ones back.
func TestFailedReloadIsTakenBack(t *testing.T) {
	const mtu = "encap: {mtu: 1400}\n"
	for _, c := range []struct {
		step, yaml, want string
		changed          int
	}{
		{"peers", peerB, "peers 1", 1},
		{"reconfigure", mtu, "reconfigure 1400", 1},
		{"replace", peerB + mtu, "replace 1400 1", 2},
		{"hostreconfigure", mtu, "reconfigure 1400|hostreconfigure 1400|hostreconfigure 1450|reconfigure 1450", 1},
		{"hostreconfigure", peerB + mtu, "replace 1400 1|hostreconfigure 1400|hostreconfigure 1450|replace 1450 0", 2},
	} {
		step, want := c.step, c.want
		f := newFake()
		r := run(t, f, "")
		before := r.state.Load()
		f.deeds()
		f.failing(step, errors.New("broken on purpose"))
		rewrite(t, r.path, c.yaml)
		if _, err := r.client.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "broken on purpose") {
			t.Errorf("%s: %v", step, err)
		}
		if got := strings.Join(f.deeds(), "|"); got != want {
			t.Errorf("%s: did %q, want %q", step, got, want)
		}
		if r.state.Load() != before {
			t.Errorf("%s: the state was published", step)
		}
		f.failing(step, nil)
		if got, err := r.client.Reload(t.Context()); err != nil || len(got.Changed) != c.changed {
			t.Errorf("%s: afterwards %q, %v", step, got.Changed, err)
		}
		r.stop()
	}
}

func TestLogLevel(t *testing.T) {
	r := run(t, newFake(), "")
	if err := r.client.SetLogLevel(t.Context(), "debug"); err != nil || r.LogLevel() != "debug" {
		t.Errorf("%s, %v", r.LogLevel(), err)
	}
	for _, bad := range []string{"", "DEBUG", "loud", "debug+1"} {
		if err := r.client.SetLogLevel(t.Context(), bad); control.CodeOf(err) != control.BadRequest {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
