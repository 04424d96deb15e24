package daemon

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// soon waits for what the next look, or the one after it, brings about.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 5 s: " + what)
		}
	}
}

func (r *running) moved() {
	r.f.mu.Lock()
	fn := r.f.rules
	r.f.mu.Unlock()
	fn()
}

func (r *running) problem(t *testing.T, container string) string {
	t.Helper()
	pods, err := r.client.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		if p.Container == container {
			return p.Problem
		}
	}
	return "no such pod"
}

// TestDropsComeBack: what somebody removes from nftables is put back, and nothing else is added.
func TestDropsComeBack(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	clear(f.blocked)
	f.mu.Unlock()
	r.moved()
	soon(t, "the drop is back", func() bool { l, _ := fakeHost{f}.Blocked(); return slices.Equal(l, []string{a.Device}) })
	if err := r.client.Detach(t.Context(), control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	f.deeds()
	r.moved()
	soon(t, "a look", func() bool { return slices.Contains(f.deeds(), "apply") })
	if l, _ := (fakeHost{f}).Blocked(); len(l) != 0 {
		t.Errorf("drops without a pod: %v", l)
	}
}

// TestProberFollowsTheDevice: what answers probes is bound to penstock0 by its number, and opened again when that is another one.
func TestProberFollowsTheDevice(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	f.mu.Lock()
	f.remade = []string{"penstock0"}
	f.mu.Unlock()
	r.moved()
	soon(t, "the prober is opened again", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.proberClosed == 1 })
}

// TestRepairIsRetried: a look that fails is repeated without anything that moves, until it succeeds.
func TestRepairIsRetried(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	f.failing("keep", errors.New("busy"))
	f.deeds()
	r.moved()
	looks := 0
	soon(t, "a second look", func() bool {
		for _, d := range f.deeds() {
			if d == "apply" {
				looks++
			}
		}
		return looks >= 2
	})
	f.failing("keep", nil)
}

// TestDeviceOfAPod: a veth that goes is said of its pod, and one that is made anew under its name is the pod's port again.
func TestDeviceOfAPod(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	old := f.links[a.Device]
	delete(f.links, a.Device)
	f.mu.Unlock()
	r.moved()
	soon(t, "the pod has a problem", func() bool { return strings.Contains(r.problem(t, "c1"), "has gone") })
	anew := old
	anew.Index = 777
	f.deeds()
	f.failing("attach", errors.New("not yet"))
	f.setLink(a.Device, anew)
	r.moved()
	soon(t, "the failure is its problem", func() bool { return strings.Contains(r.problem(t, "c1"), "not yet") })
	f.failing("attach", nil)
	soon(t, "it is attached again", func() bool { return r.problem(t, "c1") == "" })
	if _, err := r.client.Check(t.Context(), control.CheckRequest{Container: "c1", Interface: "eth0"}); err != nil {
		t.Error(err)
	}
	if l, _ := (fakeHost{f}).Blocked(); !slices.Equal(l, []string{a.Device}) {
		t.Errorf("drops: %v", l)
	}
	f.mu.Lock()
	f.links["elsewhere"] = f.links[a.Device]
	delete(f.links, a.Device)
	f.mu.Unlock()
	r.moved()
	soon(t, "the new name is said", func() bool { return strings.Contains(r.problem(t, "c1"), "renamed to elsewhere") })

	// Who follows the remedy is done with it, and loses no packet by that.
	move := func(from, to string) {
		f.deeds()
		f.mu.Lock()
		f.links[to] = f.links[from]
		delete(f.links, from)
		f.mu.Unlock()
		r.moved()
	}
	move("elsewhere", a.Device)
	soon(t, "it has its name back", func() bool { return r.problem(t, "c1") == "" })
	if did := f.deeds(); slices.Contains(did, "detach c1/eth0") {
		t.Errorf("its port was closed: %q", did)
	}
	if _, err := r.client.Check(t.Context(), control.CheckRequest{Container: "c1", Interface: "eth0"}); err != nil {
		t.Error(err)
	}
	// One that was in another namespace meanwhile comes back with its number, but what was bound to it is not any more.
	f.mu.Lock()
	away := f.links[a.Device]
	delete(f.links, a.Device)
	f.mu.Unlock()
	r.moved()
	soon(t, "the pod has a problem", func() bool { return strings.Contains(r.problem(t, "c1"), "has gone") })
	f.deeds()
	f.setLink(a.Device, away)
	r.moved()
	soon(t, "it is back", func() bool { return r.problem(t, "c1") == "" })
	if did := f.deeds(); !slices.Contains(did, "attach "+a.Device) {
		t.Errorf("it was not attached again: %q", did)
	}
}

// TestDeletedTUN: a TUN that was deleted in its pod, of which no message comes, is told to who asks at once and not with the next look.
func TestDeletedTUN(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	if _, err := r.plugTUN(t, "c1"); err != nil {
		t.Fatal(err)
	}
	check := func() error {
		_, err := r.client.Check(t.Context(), control.CheckRequest{Container: "c1", Interface: "eth0"})
		return err
	}
	if err := check(); err != nil || r.problem(t, "c1") != "" {
		t.Errorf("%v, %q", err, r.problem(t, "c1"))
	}
	f.mu.Lock()
	f.ports[0].Lost = true
	f.mu.Unlock()
	if err := check(); err == nil || !strings.Contains(err.Error(), tunDeleted) || r.problem(t, "c1") != tunDeleted {
		t.Errorf("%v, %q", err, r.problem(t, "c1"))
	}
}

// TestMTUComesBack: the node's end of a veth that the plugin has made is not left smaller than the pod's; one made by hand is its owner's.
func TestMTUComesBack(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.plug(t, "another")
	if err != nil {
		t.Fatal(err)
	}
	mtu := func(device string) int { l, _ := f.Link(device); return l.MTU }
	set := func(device string, group uint32) {
		l, _ := f.Link(device)
		l.MTU, l.Group = 1000, group
		f.setLink(device, l)
	}
	set(b.Device, 0)
	set(a.Device, control.DeviceGroup)
	r.moved()
	soon(t, "the MTU is back", func() bool { return mtu(a.Device) == 1450 })
	if got := mtu(b.Device); got != 1000 {
		t.Errorf("the MTU of somebody else's device is %d now", got)
	}
}

// TestLostDelete: a veth pod whose device and namespace are gone is taken away at the second look in a row; one that has either is not.
func TestLostDelete(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	for _, c := range []string{"belated", "device", "lost", "netns"} {
		if _, err := r.plug(t, c); err != nil {
			t.Fatal(err)
		}
	}
	r.stop() // who looks is we alone
	away := func(container string, device, netns bool) {
		if device {
			delete(f.links, control.DeviceName(container, "eth0"))
		}
		if netns {
			delete(f.netns, "/ns/"+container)
		}
	}
	look := func(want string) {
		t.Helper()
		if err := r.repairPods(t.Context()); err != nil {
			t.Error(err)
		}
		var have []string
		for _, p := range r.pods.list() {
			have = append(have, p.rec.Container)
		}
		if got := strings.Join(have, " "); got != want {
			t.Errorf("there is %q, want %q", got, want)
		}
	}
	away("lost", true, true)
	away("device", true, false)
	away("netns", false, true)
	look("belated device lost netns")
	away("belated", true, true)
	look("belated device netns")
	f.netns["/ns/belated"] = "4:belated" // it was only out of sight: two looks in a row
	look("belated device netns")
	away("belated", false, true)
	look("belated device netns")
	look("device netns")
	if records, _, err := r.pods.store.Load(); len(records) != 2 || err != nil {
		t.Errorf("on disk: %d, %v", len(records), err)
	}
	if len(f.ports) != 2 {
		t.Errorf("ports: %v", f.ports)
	}
}

// TestHostLacks: what cannot be kept on the host for ten seconds keeps the daemon from being ready, from the first look that is well
// again it is ready, and what fails for less does nothing.
func TestHostLacks(t *testing.T) {
	d, err := newDaemon(newFake(), Options{Config: file(t, ""), Log: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	d.health.set(phase, "")
	broken := errors.Join(errors.New("no device"), errors.New("no route"))
	start := time.Now()
	for _, c := range []struct {
		after time.Duration
		err   error
		ready bool
	}{
		{0, broken, true},
		{9 * time.Second, broken, true},
		{9*time.Second + 1, nil, true},
		{10 * time.Second, broken, true},
		{19 * time.Second, broken, true},
		{20 * time.Second, broken, false},
		{21 * time.Second, broken, false},
		{22 * time.Second, nil, true},
		{23 * time.Second, broken, true},
	} {
		d.judgeHost(c.err, start.Add(c.after))
		if ok, why := d.health.ready(); ok != c.ready || !ok && !strings.HasSuffix(why, "cannot be kept: no device; no route") {
			t.Errorf("%+v: %v, %q", c, ok, why)
		}
	}
}

// TestHostLacksIsAsked: a look judges the host by what it finds there, and no pod by that.
func TestHostLacksIsAsked(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	r.stop() // who looks is we alone
	for what, host := range map[string]bool{"apply": true, "devices": true, "keep": false} {
		f.failing(what, errors.New("on purpose"))
		if r.repair(t.Context()) == nil || r.lacking.IsZero() == host {
			t.Errorf("%s: the host is lacking since %v", what, r.lacking)
		}
		f.failing(what, nil)
		if err := r.repair(t.Context()); err != nil || !r.lacking.IsZero() {
			t.Errorf("after %s: %v, the host is lacking since %v", what, err, r.lacking)
		}
	}
}

// TestPodsWithoutRoom: pods for which there is no memory are counted, cost no change of nftables at each look, and are a short line in the
// log; when there is room they are attached. They hold up no look for long.
func TestPodsWithoutRoom(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	for _, c := range []string{"a", "bb", "ccc", "dddd", "eeeee"} {
		if _, err := r.plug(t, c); err != nil {
			t.Fatal(err)
		}
	}
	f.failing("canattach", errors.New("no packet buffer left"))
	f.failing("attach", errors.New("no packet buffer left"))
	r = r.again(t)
	f.deeds()
	err := r.repairPods(t.Context())
	if err == nil || strings.Count(err.Error(), "no packet buffer left") != maxTold || !strings.HasSuffix(err.Error(), "and so with 2 more pods: penstockctl pods") {
		t.Errorf("error %v", err)
	}
	for _, did := range f.deeds() {
		if strings.HasPrefix(did, "block") || strings.HasPrefix(did, "unblock") || strings.HasPrefix(did, "attach") {
			t.Errorf("it did %s", did)
		}
	}
	if s, err := r.client.Status(t.Context()); err != nil || s.Failed != 5 || s.Ports != 0 {
		t.Errorf("%d pods without network, %d ports, %v", s.Failed, s.Ports, err)
	}
	f.failing("canattach", nil)
	f.failing("attach", nil)
	r.moved()
	soon(t, "the pods are attached", func() bool { return r.pods.failed() == 0 })
	if got := pauseAfter(9 * time.Second); got != repairPause {
		t.Errorf("after a look of 9 s there is none for %s", got)
	}
}
