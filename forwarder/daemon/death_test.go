package daemon

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

// image is what a daemon that died at some moment has left.
type image struct {
	at      string
	ended   bool // c1's end had begun: the next start finishes it
	dir     string
	links   map[string]link
	blocked map[string]bool
	netns   map[string]string
}

// TestDeathAtEveryStep kills the daemon before each of its deeds in each operation, starts another one on what is there, and
// then lets a DEL and a GC end it: nothing may be left, and no address may have two owners.
func TestDeathAtEveryStep(t *testing.T) {
	for _, op := range []string{"attach", "detach", "gc", "pending", "tun"} {
		f := newFake()
		r := run(t, f, "")
		if _, err := r.plug(t, "bystander"); err != nil {
			t.Fatal(err)
		}
		if op == "detach" || op == "gc" || op == "pending" {
			if _, err := r.plug(t, "c1"); err != nil {
				t.Fatal(err)
			}
		}
		socket := filepath.Join(filepath.Dir(r.path), "p.sock")
		var images []image
		take := func() {
			i := image{fmt.Sprint(op, " ", len(images)), len(images) > 0 && (op == "detach" || op == "gc" || op == "pending"), t.TempDir(), maps.Clone(f.links), maps.Clone(f.blocked), maps.Clone(f.netns)}
			for _, sub := range []string{"state", pendingOf} {
				if _, err := os.Stat(filepath.Join(filepath.Dir(r.path), sub)); err == nil {
					if err := os.CopyFS(filepath.Join(i.dir, sub), os.DirFS(filepath.Join(filepath.Dir(r.path), sub))); err != nil {
						t.Error(err)
					}
				}
			}
			images = append(images, i)
		}
		f.mu.Lock()
		f.step = take
		take()
		f.mu.Unlock()
		var err error
		switch op {
		case "attach":
			_, err = r.plug(t, "c1")
		case "tun":
			q := allocation("c1")
			q.Attach = control.AttachTUN
			if _, err = r.client.Allocate(t.Context(), q); err == nil {
				_, err = r.client.Attach(t.Context(), control.AttachRequest{Container: "c1", Interface: "eth0", Attach: control.AttachTUN})
			}
		case "detach":
			err = r.client.Detach(t.Context(), control.DetachRequest{Container: "c1", Interface: "eth0"})
		case "gc":
			_, err = r.client.GC(t.Context(), control.GCRequest{Network: "n", Valid: []control.PodKey{{Container: "bystander", Interface: "eth0"}}})
		case "pending":
			control.WritePending(socket, control.DetachRequest{Container: "c1", Interface: "eth0"})
			f.mu.Lock()
			take()
			f.mu.Unlock()
			_, err = r.client.Check(t.Context(), control.CheckRequest{Container: "c1", Interface: "eth0"})
			if control.CodeOf(err) == control.NotFound {
				err = nil
			}
		}
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		f.mu.Lock()
		take()
		f.step = nil
		f.mu.Unlock()
		r.stop()
		if len(images) < 3 {
			t.Errorf("%s: only %d moments", op, len(images))
		}
		for _, i := range images {
			i.recover(t)
		}
	}
}

func (i image) recover(t *testing.T) {
	t.Helper()
	f := newFake()
	f.links, f.blocked, f.netns = i.links, i.blocked, i.netns
	path := file(t, "")
	for _, sub := range []string{"state", pendingOf} {
		if _, err := os.Stat(filepath.Join(i.dir, sub)); err == nil {
			if err := os.CopyFS(filepath.Join(filepath.Dir(path), sub), os.DirFS(filepath.Join(i.dir, sub))); err != nil {
				t.Fatal(err)
			}
		}
	}
	os.WriteFile(filepath.Join(stateDir(path), "pods", ".new-123"), []byte(`{"vers`), 0o600) // it died while it wrote
	r := restart(t, f, path)
	pods, err := r.client.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]bool{}
	for _, p := range pods {
		if i.ended && p.Container == "c1" {
			t.Errorf("%s: c1 is back: %+v", i.at, p)
		}
		for _, a := range p.Addresses {
			if seen[a] {
				t.Errorf("%s: %s twice", i.at, a)
			}
			seen[a] = true
		}
		open := slices.ContainsFunc(f.ports, func(o portInfo) bool { return o.PortSpec.Container == p.Container })
		if open != (p.Phase == control.PhaseAttached) || open && p.Attach == control.AttachVeth && !f.blocked[p.Device] || p.Problem != "" && p.Phase != control.PhaseWaiting {
			t.Errorf("%s: %+v, port %v, blocked %v", i.at, p, open, f.blocked)
		}
	}
	if !slices.ContainsFunc(pods, func(p control.Pod) bool { return p.Container == "bystander" && p.Phase == control.PhaseAttached }) {
		t.Errorf("%s: the bystander was not brought back: %+v", i.at, pods)
	}
	// What the plugin's DEL does, and a GC for all.
	for _, c := range []string{"c1", "bystander"} {
		if err := r.client.Detach(t.Context(), control.DetachRequest{Container: c, Interface: "eth0"}); err != nil {
			t.Errorf("%s: %v", i.at, err)
		}
		f.RemoveLink(control.DeviceName(c, "eth0"))
	}
	if _, err := r.client.GC(t.Context(), control.GCRequest{Network: "n"}); err != nil {
		t.Errorf("%s: %v", i.at, err)
	}
	if left, _ := filepath.Glob(filepath.Join(stateDir(path), "pods", "*.*")); len(left) > 0 {
		t.Errorf("%s: left %v", i.at, left)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), pendingOf, "*")); len(left) > 0 {
		t.Errorf("%s: left %v", i.at, left)
	}
	for name := range f.links {
		if ourName(name) {
			t.Errorf("%s: left device %s", i.at, name)
		}
	}
	if len(f.blocked) > 0 || len(f.ports) > 0 {
		t.Errorf("%s: left %v, %v", i.at, f.blocked, f.ports)
	}
	if u := r.pods.alloc.Usage(netip.MustParsePrefix("10.244.1.0/24")); u.Owned != 0 {
		t.Errorf("%s: %d addresses leaked", i.at, u.Owned)
	}
	r.stop()
}
