package daemon

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

func TestTUNComesBack(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	for _, c := range []string{"stored", "lost", "dead", "unmoved"} {
		q := allocation(c)
		q.Attach = control.AttachTUN
		if _, err := r.client.Allocate(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		if _, err := r.client.Attach(t.Context(), control.AttachRequest{Container: c, Interface: "eth0"}); err != nil {
			t.Fatal(err)
		}
		if c != "dead" {
			f.netns["/ns/"+c] = "4:" + c
		}
	}
	if did := f.deeds(); !slices.Contains(did, "store "+control.DeviceName("stored", "eth0")) {
		t.Errorf("no queue was stored: %q", did)
	}
	f.setLink(control.DeviceName("unmoved", "eth0"), link{Index: 30, Type: "tuntap"})
	f.ports = nil
	null := func() int { fd, _ := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); return fd }
	f.stored = map[string]int{control.DeviceName("stored", "eth0"): null(), "psffffffffff0": null()}
	r.stop()
	f.deeds()
	f.awaits = 0
	r = restartUntil(t, f, r.path, func(s control.Status) bool {
		return !s.Ready && s.Waiting == 1 && strings.Contains(s.Reason, "penstock adopt")
	})
	if p := r.phases(t); p != "lost waiting, stored attached, unmoved attached" {
		t.Error(p)
	}
	if did := f.deeds(); !slices.Contains(did, "unstore psffffffffff0") || !slices.Contains(did, "adopt "+control.DeviceName("stored", "eth0")) {
		t.Errorf("did %q", did)
	}
	awaited := func() int { f.mu.Lock(); defer f.mu.Unlock(); return len(f.awaited) }
	if awaited() != 1 || f.awaits != 1 {
		t.Errorf("the forwarder answers for a pod that waits; it was told %d times and knows of %v", f.awaits, f.awaited)
	}
	if n := gauge(t, r, "penstock_pods_waiting"); n != 1 {
		t.Errorf("penstock_pods_waiting is %v with a pod that waits", n)
	}
	lost := control.PodKey{Container: "lost", Interface: "eth0"}
	queue, _ := os.Open("/dev/null")
	defer queue.Close()
	f.failing("adopt", errors.New("no TUN"))
	if err := r.client.Adopt(t.Context(), lost, queue); control.CodeOf(err) != control.BadRequest {
		t.Error(err)
	}
	f.failing("adopt", nil)
	if err := r.client.Adopt(t.Context(), lost, queue); err != nil {
		t.Fatal(err)
	}
	if s, err := r.client.Status(t.Context()); err != nil || !s.Ready || s.Waiting != 0 || awaited() != 0 {
		t.Errorf("%+v, %v, awaited %v", s, err, f.awaited)
	}
	if err := r.client.Adopt(t.Context(), lost, queue); control.CodeOf(err) != control.Conflict {
		t.Error(err)
	}
	if err := r.client.Adopt(t.Context(), control.PodKey{Container: "x", Interface: "y"}, queue); control.CodeOf(err) != control.NotFound {
		t.Error(err)
	}
}

// TestAttachQueue: a pod whose TUN was made in the pod is attached by the queue, also when a daemon that has died between had
// written it down; a queue is a tun's.
func TestAttachQueue(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	q := allocation("a")
	q.Attach = control.AttachTUN
	lease, err := r.client.Allocate(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	f.netns["/ns/a"] = "4:a"
	queue, _ := os.Open("/dev/null")
	defer queue.Close()
	attach := control.AttachRequest{Container: "a", Interface: "eth0", Bandwidth: &control.Bandwidth{EgressRate: 1e6, EgressBurst: 1e6}}
	bridge := func(device string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.routes4[lease.Addresses[0]] = device
	}
	bridge("cni0")
	if _, err := r.client.AttachQueue(t.Context(), attach, queue); control.CodeOf(err) != control.Unsupported || !strings.Contains(err.Error(), "give cni0 a CIDR") || r.phases(t) != "a reserved" {
		t.Errorf("beside a bridge: %v, %s", err, r.phases(t))
	}
	bridge("penstock0")
	f.failing("attach", errors.New("no TUN"))
	if _, err := r.client.AttachQueue(t.Context(), attach, queue); err == nil || r.phases(t) != "a reserved" {
		t.Errorf("%v, %s", err, r.phases(t))
	}
	f.failing("attach", nil)
	for range 2 { // the second is who has not heard the answer to the first
		if p, err := r.client.AttachQueue(t.Context(), attach, queue); err != nil || p.Attach != control.AttachTUN || p.Phase != control.PhaseAttached || p.QueueLen != 37 {
			t.Errorf("%+v, %v", p, err)
		}
	}
	if did := f.deeds(); !slices.Contains(did, "store "+control.DeviceName("a", "eth0")) {
		t.Errorf("the queue was not stored: %q", did)
	}
	r.stop()
	f.ports = nil
	r = restartUntil(t, f, r.path, func(s control.Status) bool { return s.Waiting == 1 })
	told := func() int { f.mu.Lock(); defer f.mu.Unlock(); return len(f.awaited) }
	opening := -1
	f.opens = func() { r.countWaiting(); opening = told() }
	if _, err := r.client.AttachQueue(t.Context(), attach, queue); err != nil || r.phases(t) != "a attached" {
		t.Errorf("%v, %s", err, r.phases(t))
	}
	f.failing("attach", errors.New("no TUN"))
	hand := control.AttachRequest{Container: "hand", Interface: "eth0", Attach: control.AttachTUN, Device: "tun7", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.77")}}
	if _, err := r.client.Attach(t.Context(), hand); err == nil || told() != 0 {
		t.Errorf("%v, and %d addresses are awaited of a pod that there is not", err, told())
	}
	f.failing("attach", nil)
	f.opens = nil
	if opening != len(lease.Addresses) || told() != 0 {
		t.Errorf("while its port was opened %d addresses were awaited, and then %d", opening, told())
	}
	if s, err := r.client.Status(t.Context()); err != nil || !s.Ready || s.Waiting != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := r.client.Allocate(t.Context(), allocation("v")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.AttachQueue(t.Context(), control.AttachRequest{Container: "v", Interface: "eth0"}, queue); control.CodeOf(err) != control.BadRequest {
		t.Errorf("a veth: %v", err)
	}
	if _, err := r.client.AttachQueue(t.Context(), control.AttachRequest{Container: "x", Interface: "eth0", Network: "n"}, queue); control.CodeOf(err) != control.Conflict {
		t.Errorf("nothing was reserved: %v", err)
	}
}

// TestCollectGone: the queue that we hold would keep the network namespace of a tun pod alive, so a pod whose namespace has lost its
// name is taken away; one whose namespace we never saw is not, as its name may be one in another mount namespace.
func TestCollectGone(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	queue, _ := os.Open("/dev/null")
	defer queue.Close()
	for _, c := range []string{"lives", "gone", "unseen"} {
		q := allocation(c)
		q.Attach = control.AttachTUN
		if _, err := r.client.Allocate(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		if c != "unseen" {
			f.mu.Lock()
			f.netns["/ns/"+c] = "4:" + c
			f.mu.Unlock()
		}
		if _, err := r.client.AttachQueue(t.Context(), control.AttachRequest{Container: c, Interface: "eth0"}, queue); err != nil {
			t.Fatal(err)
		}
	}
	f.mu.Lock()
	delete(f.netns, "/ns/gone")
	f.mu.Unlock()
	r.collectGone(t.Context())
	if p := r.phases(t); p != "lives attached, unseen attached" {
		t.Error(p)
	}
	if did := f.deeds(); !slices.Contains(did, "unstore "+control.DeviceName("gone", "eth0")) {
		t.Errorf("systemd keeps the queue: %q", did)
	}
}

func TestDamagedState(t *testing.T) {
	f := newFake()
	r := run(t, f, dual)
	var all []control.Allocation
	for _, c := range []string{"a", "b", "c", "d"} {
		x, err := r.plug(t, c)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
	}
	r.stop()
	dir := filepath.Join(stateDir(r.path), "pods")
	path := func(i int) string { return filepath.Join(dir, all[i].Device+".json") }
	b, _ := os.ReadFile(path(0))
	os.WriteFile(path(0), b[:len(b)*2/3], 0o600)     // cut
	os.WriteFile(path(1), append(b, "{}"...), 0o600) // another pod's, and more
	os.WriteFile(path(2), nil, 0o600)                // empty
	os.WriteFile(filepath.Join(stateDir(r.path), "released"), []byte("\x00\xffx\n9 9\n"), 0o600)
	f.ports = nil
	r = restart(t, f, r.path)
	if p := r.phases(t); p != "d attached" {
		t.Errorf("%s", p)
	}
	i, _ := r.client.IPAM(t.Context())
	if i.CIDRs[0].Leaked != 1 || i.CIDRs[0].Allocated != 1 {
		t.Errorf("%+v", i)
	}
	got, err := r.client.Allocate(t.Context(), allocation("e"))
	if err != nil || got.Addresses[0] == all[0].Addresses[0] {
		t.Errorf("a damaged file's address was given again: %+v, %v", got, err)
	}
	if _, err := r.client.Allocate(t.Context(), allocation("a")); control.CodeOf(err) != control.Conflict || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
	r = r.again(t) // still kept
	if i, _ = r.client.IPAM(t.Context()); i.CIDRs[0].Leaked != 1 {
		t.Errorf("after another start: %+v", i)
	}
	for _, c := range []string{"a", "b", "c"} {
		if err := r.client.Detach(t.Context(), control.DetachRequest{Container: c, Interface: "eth0"}); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "damaged", "*")); left != nil {
		t.Errorf("left %v", left)
	}
	if i, _ = r.client.IPAM(t.Context()); i.CIDRs[0].Leaked != 0 {
		t.Errorf("%+v", i)
	}
}

// A plugin that was killed between the making of a device and its attachment leaves a device that no file claims.
func TestOrphansAtTheStart(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	r.stop()
	f.setLink("ps0123456789a", link{Index: 70, Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
	f.setLink("ps0123456789b", link{Index: 71, Type: "tuntap"})
	f.setLink("ps0123456789c", link{Index: 72, Ethernet: true, Type: "veth"}) // somebody's own
	f.setLink("psi", link{Index: 73, Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
	restart(t, f, r.path)
	if left := f.podLinks(); fmt.Sprint(left) != "[ps0123456789c psi]" {
		t.Errorf("left %v", left)
	}
}

// TestForgottenState: veths that stand there when the state directory is brand-new are more likely those of pods that run than what a
// killed plugin has left: neither the start nor a GC takes them, and one warning says what to do.
func TestForgottenState(t *testing.T) {
	f := newFake()
	f.setLink("ps0123456789a", link{Index: 70, Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
	f.setLink("ps0123456789b", link{Index: 71, Type: "tuntap"}) // in the node: it was never in a pod
	f.blocked["ps0123456789a"] = true
	path := file(t, "")
	f.failing("load", errors.New("broken on purpose"))
	d, _ := newDaemon(f, Options{Config: path, Log: io.Discard})
	if err := d.run(t.Context(), nil); err == nil {
		t.Fatal("it started")
	}
	f.failing("load", nil)
	r := restart(t, f, path) // the start that failed has not made the directory an old one
	if _, err := r.client.GC(t.Context(), control.GCRequest{Network: "n"}); err != nil {
		t.Error(err)
	}
	if left := f.podLinks(); fmt.Sprint(left) != "[ps0123456789a]" {
		t.Errorf("left %v", left)
	}
	if l, _ := (fakeHost{f}).Blocked(); fmt.Sprint(l) != "[ps0123456789a]" {
		t.Errorf("the host's stack has the pod's packets; drops: %v", l)
	}
	r.stop()
	var log strings.Builder
	os.RemoveAll(stateDir(path))
	d, _ = newDaemon(f, Options{Config: path, Log: &log})
	f.failing("load", errors.New("broken on purpose"))
	if err := d.run(t.Context(), nil); err == nil || strings.Count(log.String(), "the state directory is new") != 1 || !strings.Contains(log.String(), "ps0123456789a") {
		t.Errorf("%v, %s", err, log.String())
	}
}

// podLinks are the devices that stand there under names such as ours.
func (f *fake) podLinks() (left []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.links {
		if strings.HasPrefix(name, "ps") {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	return left
}

func TestAnotherBoot(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	if _, err := r.plug(t, "c1"); err != nil {
		t.Fatal(err)
	}
	r.stop()
	f.boot, f.ports = "boot-2", nil
	f.links = newFake().links
	r = restart(t, f, r.path)
	if p := r.phases(t); p != "" {
		t.Error(p)
	}
	if a, err := r.client.Allocate(t.Context(), allocation("c1")); err != nil {
		t.Errorf("%+v, %v", a, err)
	}
}

// A delete that was queued is done before its pod is made again.
func TestPendingWhileRunning(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(filepath.Dir(r.path), "p.sock")
	if err := control.WritePending(socket, control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	b, err := r.client.Allocate(t.Context(), allocation("c1"))
	if err != nil || b.Addresses[0] == a.Addresses[0] || b.Phase != control.PhaseReserved {
		t.Errorf("%+v, %v", b, err)
	}
	if _, ok := f.links[a.Device]; ok || control.IsPending(socket, control.DeviceName("c1", "eth0")) {
		t.Error("the old pod's device or its queued delete stays")
	}
}

// TestPendingMeanwhileDone: a delete that was read as queued, and was done by the ADD that came first, does not take that ADD's pod.
func TestPendingMeanwhileDone(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	if _, err := r.plug(t, "c1"); err != nil {
		t.Fatal(err)
	}
	k := control.PodKey{Container: "c1", Interface: "eth0"}
	unlock, err := r.pods.keys.lock(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	waiting := func(n int) func() bool {
		return func() bool {
			r.pods.keys.mu.Lock()
			defer r.pods.keys.mu.Unlock()
			return r.pods.keys.m[k].users > n
		}
	}
	added := make(chan error, 1)
	go func() { _, err := r.Allocate(t.Context(), allocation("c1")); added <- err }()
	soon(t, "the ADD waits", waiting(1)) // who waits first goes first
	socket := filepath.Join(filepath.Dir(r.path), "p.sock")
	if err := control.WritePending(socket, control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	finished := make(chan error, 1)
	go func() { finished <- r.finishAllPending(t.Context()) }()
	soon(t, "the queued delete waits behind it", waiting(2))
	unlock()
	if err := errors.Join(<-added, <-finished); err != nil {
		t.Fatal(err)
	}
	soon(t, "the daemon's own look is over too", func() bool {
		r.pods.keys.mu.Lock()
		defer r.pods.keys.mu.Unlock()
		return len(r.pods.keys.m) == 0
	})
	if p := r.phases(t); p != "c1 reserved" || control.IsPending(socket, control.DeviceName("c1", "eth0")) {
		t.Errorf("after an ADD that succeeded there is %q", p)
	}
}

func TestReservationsAtTheStart(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	f.netns["/ns/young"], f.netns["/ns/old"] = "4:young", "4:old"
	for _, c := range []string{"young", "old", "gone"} {
		if _, err := r.client.Allocate(t.Context(), allocation(c)); err != nil {
			t.Fatal(err)
		}
	}
	r.stop()
	path := filepath.Join(stateDir(r.path), "pods", control.DeviceName("old", "eth0")+".json")
	b, _ := os.ReadFile(path)
	year := time.Now().UTC().Format("2006")
	os.WriteFile(path, []byte(strings.Replace(string(b), `"created": "`+year, `"created": "2001`, 1)), 0o600)
	r = restart(t, f, r.path)
	if p := r.phases(t); p != "young reserved" {
		t.Error(p)
	}
}

func TestCleanupRemovesPods(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	if err := cleanup(t.Context(), f, Options{Config: r.path, Log: testWriter{}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := f.links[a.Device]; ok {
		t.Error("the pod's device stays")
	}
	if left, err := os.ReadDir(stateDir(r.path)); len(left) > 0 {
		t.Errorf("of the state stays %v, %v", left, err)
	}
}

type testWriter struct{}

func (testWriter) Write(b []byte) (int, error) { return len(b), nil }

// TestPodsReturnTogether: the kernel has all ports of a start wait for the same grace periods, and each pod that fails is told, in their
// order, and counted.
func TestPodsReturnTogether(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	names := []string{"a", "bb", "ccc"} // their devices' indexes are from their length
	for _, c := range names {
		if _, err := r.plug(t, c); err != nil {
			t.Fatal(err)
		}
	}
	r.stop()
	f.ports = nil
	var inside atomic.Int32
	all := make(chan struct{})
	f.opens = func() {
		if inside.Add(1) == int32(len(names)) {
			close(all)
		}
		select {
		case <-all:
		case <-time.After(5 * time.Second):
			t.Error("it is not opened together with the others")
		}
	}
	f.failing("attach", errors.New("no ring"))
	f.failing("load", errors.New("broken on purpose")) // it ends behind that
	var log strings.Builder
	d, _ := newDaemon(f, Options{Config: r.path, Log: &log})
	if err := d.run(t.Context(), nil); err == nil {
		t.Fatal("it started")
	}
	if n := f.expected[len(f.expected)-2:]; n[0] != len(names) || n[1] != 0 {
		t.Errorf("the forwarder is told of %v pods", n)
	}
	var told []string
	for line := range strings.Lines(log.String()) {
		if _, pod, ok := strings.Cut(line, `"a pod was not brought back","pod":{"container":"`); ok {
			told = append(told, pod[:strings.IndexByte(pod, '"')])
		}
	}
	if fmt.Sprint(told) != "[a bb ccc]" || !strings.Contains(log.String(), `"restored":0,"waiting":0,"reserved":0,"gone":0,"failed":3`) {
		t.Errorf("told %v\n%s", told, log.String())
	}
}
