package daemon

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/penstock-net/penstock/forwarder/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// file writes a configuration and returns its path. The socket lies in its directory.
func file(t *testing.T, more string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "penstock.yaml")
	rewrite(t, path, more)
	return path
}

func rewrite(t *testing.T, path, more string) {
	t.Helper()
	base := "network: {cidrs: [10.244.0.0/16]}\ndebug: {listen: \"\"}\ncontrol: {socket: " + filepath.Join(filepath.Dir(path), "p.sock") + "}\n"
	if !strings.Contains(more, "node:") {
		base += "node: {name: node-a, address: 192.0.2.1, podCIDRs: [10.244.1.0/24]}\n"
	}
	if !strings.Contains(more, "state:") {
		base += "state: " + filepath.Join(filepath.Dir(path), "state") + "\n"
	}
	for _, key := range []string{"network:", "debug:"} {
		if strings.Contains(more, key) {
			i := strings.Index(base, key)
			base = base[:i] + base[i+strings.Index(base[i:], "\n")+1:]
		}
	}
	if err := os.WriteFile(path, []byte(base+more), 0o600); err != nil {
		t.Fatal(err)
	}
}

// running is a daemon that runs on a fake machine.
type running struct {
	*Daemon
	f      *fake
	path   string
	client *control.Client
	hangup chan os.Signal
	cancel context.CancelFunc
	ended  chan error
}

func run(t *testing.T, f *fake, yaml string) *running {
	t.Helper()
	return restart(t, f, file(t, yaml))
}

// restart runs a daemon on files that are there.
func restart(t *testing.T, f *fake, path string) *running {
	t.Helper()
	return restartUntil(t, f, path, func(s control.Status) bool { return s.Ready })
}

// restartUntil is restart for a daemon that does not become ready at once.
func restartUntil(t *testing.T, f *fake, path string, until func(control.Status) bool) *running {
	t.Helper()
	f.mu.Lock()
	f.ports = nil // of a daemon that has ended
	f.mu.Unlock()
	r := &running{f: f, path: path, hangup: make(chan os.Signal, 1), ended: make(chan error, 1)}
	d, err := newDaemon(f, Options{Config: r.path, Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	r.Daemon = d
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() { r.ended <- d.run(ctx, r.hangup) }()
	t.Cleanup(func() { r.cancel(); <-r.ended })
	r.client = control.New(filepath.Join(filepath.Dir(r.path), "p.sock"))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if s, err := r.client.Status(t.Context()); err == nil && until(s) && f.watching() {
			break
		}
		select {
		case err := <-r.ended:
			r.ended <- err
			t.Fatalf("the daemon ended: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("not ready after 5 s")
		}
	}
	return r
}

// stop ends the daemon and returns what run returned.
func (r *running) stop() error {
	r.cancel()
	err := <-r.ended
	r.ended <- nil // for the cleanup
	return err
}

var pendingOf = filepath.Base(control.PendingDir("p.sock"))

const dual = "node: {name: node-a, address: 192.0.2.1, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}\nnetwork: {cidrs: [10.244.0.0/16, 'fd00:10:244::/48']}\n"

func allocation(container string) control.AllocateRequest {
	return control.AllocateRequest{Container: container, Interface: "eth0", Network: "n", Netns: "/ns/" + container, NetnsID: "4:" + container}
}

// plug does what the plugin does for a veth.
func (r *running) plug(t testing.TB, container string) (control.Allocation, error) {
	r.f.mu.Lock()
	r.f.netns["/ns/"+container] = "4:" + container
	r.f.mu.Unlock()
	a, err := r.client.Allocate(t.Context(), allocation(container))
	if err != nil {
		return a, err
	}
	r.f.setLink(a.Device, link{Index: 100 + len(container), Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
	_, err = r.client.Attach(t.Context(), control.AttachRequest{Container: container, Interface: "eth0", Attach: control.AttachVeth})
	return a, err
}

// plugTUN is plug for a pod whose queue the daemon makes.
func (r *running) plugTUN(t testing.TB, container string) (control.Allocation, error) {
	r.f.mu.Lock()
	r.f.netns["/ns/"+container] = "4:" + container
	r.f.mu.Unlock()
	q := allocation(container)
	q.Attach = control.AttachTUN
	a, err := r.client.Allocate(t.Context(), q)
	if err != nil {
		return a, err
	}
	_, err = r.client.Attach(t.Context(), control.AttachRequest{Container: container, Interface: "eth0", Attach: control.AttachTUN})
	return a, err
}

func (r *running) phases(t testing.TB) string {
	t.Helper()
	pods, err := r.client.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var l []string
	for _, p := range pods {
		l = append(l, p.Container+" "+p.Phase)
	}
	return strings.Join(l, ", ")
}

func stateDir(path string) string { return filepath.Join(filepath.Dir(path), "state") }

// again starts another daemon on the same files and kernel after this one was killed.
func (r *running) again(t *testing.T) *running {
	t.Helper()
	r.stop()
	return restart(t, r.f, r.path)
}
