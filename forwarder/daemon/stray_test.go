package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Requests of plugins that were killed, which come in behind the DEL that followed.

func TestStrayAttachMakesNothing(t *testing.T) {
	f := newFake()
	r := run(t, f, dual)
	if _, err := r.plug(t, "c1"); err != nil {
		t.Fatal(err)
	}
	pods, _ := r.client.Pods(t.Context())
	if err := r.client.Detach(t.Context(), control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	for _, attach := range []string{control.AttachVeth, control.AttachTUN, control.AttachRouted} {
		_, err := r.client.Attach(t.Context(), control.AttachRequest{Container: "c1", Interface: "eth0", Network: "n", Attach: attach, Addresses: pods[0].Addresses})
		if control.CodeOf(err) != control.Conflict {
			t.Errorf("%s: %v", attach, err)
		}
	}
	if p := r.phases(t); p != "" {
		t.Errorf("there is %s", p)
	}
}

func TestRequestOfTheDead(t *testing.T) {
	r := run(t, newFake(), dual)
	k := control.PodKey{Container: "c1", Interface: "eth0"}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if done, err := r.begin(ctx, k); err == nil {
		done()
		t.Error("work began for somebody who is gone")
	}
	done, err := r.begin(t.Context(), k)
	if err != nil {
		t.Fatalf("the key stayed locked: %v", err)
	}
	done()
}

func TestReservationOfNobody(t *testing.T) {
	f := newFake()
	r := run(t, f, dual)
	for _, c := range []string{"stale", "young", "device"} {
		a, err := r.client.Allocate(t.Context(), allocation(c))
		if err != nil {
			t.Fatal(err)
		}
		if c == "device" {
			f.setLink(a.Device, link{Index: 9, Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
		}
		if c != "young" {
			p := r.pods.get(control.PodKey{Container: c, Interface: "eth0"})
			rec := *p.rec
			rec.Created = time.Now().Add(-reservedGrace - time.Second)
			p.rec = &rec
			r.pods.put(p)
		}
	}
	r.collectReservations(t.Context())
	if p := r.phases(t); p != "device reserved, young reserved" {
		t.Errorf("there is %q", p)
	}
}

func TestHalfQueuedDelete(t *testing.T) {
	r := run(t, newFake(), dual)
	dir := control.PendingDir(r.state.Load().cfg.Control.Socket)
	os.MkdirAll(dir, 0o700)
	half := filepath.Join(dir, ".new-1")
	os.WriteFile(half, nil, 0o600)
	there := func() bool { _, err := os.Lstat(half); return err == nil }
	if err := r.finishAllPending(t.Context()); err != nil || !there() {
		t.Errorf("one that may still be written: there %v, %v", there(), err)
	}
	old := time.Now().Add(-2 * pendingAge)
	os.Chtimes(half, old, old)
	if err := r.finishAllPending(t.Context()); err != nil || there() {
		t.Errorf("an old one: there %v, %v", there(), err)
	}
	os.WriteFile(half, nil, 0o600)
	if _, err := r.client.GC(t.Context(), control.GCRequest{Network: "n"}); err != nil || there() {
		t.Errorf("after GC: there %v, %v", there(), err)
	}
}

// TestLostTUN: the file said attached, and the daemon died before it had made the TUN.
func TestLostTUN(t *testing.T) {
	f := newFake()
	r := run(t, f, dual)
	a, err := r.plugTUN(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	attach := control.AttachRequest{Container: "c1", Interface: "eth0", Network: "n", Attach: control.AttachTUN}
	lost := control.DetachRequest{Container: "c1", Interface: "eth0", Lost: true}
	if err := r.client.Detach(t.Context(), lost); err != nil || r.phases(t) != "c1 attached" {
		t.Errorf("a pod that does not wait: %v, %s", err, r.phases(t))
	}
	r.stop()
	f.mu.Lock()
	delete(f.links, a.Device)
	f.mu.Unlock()
	r = restartUntil(t, f, r.path, func(s control.Status) bool { return s.Waiting == 1 })
	for range 2 {
		if err := r.client.Detach(t.Context(), lost); err != nil || r.phases(t) != "c1 reserved" {
			t.Errorf("%v, %s", err, r.phases(t))
		}
	}
	if s, err := r.client.Status(t.Context()); err != nil || !s.Ready {
		t.Errorf("%+v, %v", s, err)
	}
	if p, err := r.client.Attach(t.Context(), attach); err != nil || len(p.Addresses) != 2 || r.phases(t) != "c1 attached" {
		t.Errorf("the ADD that goes on: %+v, %v, %s", p, err, r.phases(t))
	}
}

// TestNamespaceGoneWhileWaiting: a pod that goes while it waits for its queue does not keep the daemon from being ready.
func TestNamespaceGoneWhileWaiting(t *testing.T) {
	f := newFake()
	r := run(t, f, dual)
	a, err := r.plugTUN(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	f.mu.Lock()
	delete(f.links, a.Device) // it is in the pod
	f.mu.Unlock()
	r = restartUntil(t, f, r.path, func(s control.Status) bool { return s.Waiting == 1 })
	f.mu.Lock()
	delete(f.netns, "/ns/c1")
	f.mu.Unlock()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if s, err := r.client.Status(t.Context()); err == nil && s.Ready && r.phases(t) == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("there is still %s", r.phases(t))
		}
	}
}

// TestAddressOfQueuedDelete: a pod may have the address of another one as soon as that one's DEL has succeeded, queued or not.
func TestAddressOfQueuedDelete(t *testing.T) {
	r := run(t, newFake(), dual)
	old, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	q := allocation("c2")
	q.Requested = old.Addresses
	if _, err := r.client.Allocate(t.Context(), q); control.CodeOf(err) != control.Conflict {
		t.Errorf("in use: %v", err)
	}
	if err := control.WritePending(r.state.Load().cfg.Control.Socket, control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if a, err := r.client.Allocate(t.Context(), q); err != nil || a.Addresses[0] != old.Addresses[0] {
		t.Errorf("%+v, %v", a, err)
	}
	if p := r.phases(t); p != "c2 reserved" {
		t.Errorf("there is %s", p)
	}
}
