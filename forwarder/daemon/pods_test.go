package daemon

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

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

func TestLifeOfAPod(t *testing.T) {
	f := newFake()
	r := run(t, f, dual)
	ctx := t.Context()
	a, err := r.client.Allocate(ctx, allocation("c1"))
	if err != nil || fmt.Sprint(a.Addresses) != "[10.244.1.1 fd00:10:244:1::1]" || a.MTU != 1450 || a.Device != control.DeviceName("c1", "eth0") ||
		a.Phase != control.PhaseReserved || a.Gateway4.String() != "169.254.1.1" || a.Gateway6.String() != "fe80::1" || a.GatewayMAC != "ee:ee:ee:ee:ee:ee" {
		t.Fatalf("%+v, %v", a, err)
	}
	file := filepath.Join(stateDir(r.path), "pods", a.Device+".json")
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "reserved") {
		t.Errorf("answered before it was on disk: %s, %v", b, err)
	}
	if b, err := r.client.Allocate(ctx, allocation("c1")); err != nil || fmt.Sprint(b) != fmt.Sprint(a) {
		t.Errorf("the same again: %+v, %v", b, err)
	}
	other := allocation("c1")
	other.NetnsID = "4:9"
	if _, err := r.client.Allocate(ctx, other); control.CodeOf(err) != control.Conflict {
		t.Errorf("another namespace: %v", err)
	}
	if _, err := r.client.Check(ctx, control.CheckRequest{Container: "c1", Interface: "eth0"}); control.CodeOf(err) != control.Conflict || !strings.Contains(err.Error(), "reserved") {
		t.Errorf("check of a reservation: %v", err)
	}
	f.setLink(a.Device, link{Index: 50, Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
	wrong := control.AttachRequest{Container: "c1", Interface: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.9")}}
	if _, err := r.client.Attach(ctx, wrong); control.CodeOf(err) != control.Conflict {
		t.Errorf("other addresses than reserved: %v", err)
	}
	bw := &control.Bandwidth{IngressRate: 1e6, IngressBurst: 1e5}
	attach := control.AttachRequest{Container: "c1", Interface: "eth0", Bandwidth: bw}
	for range 2 {
		p, err := r.client.Attach(ctx, attach)
		if err != nil || p.Network != "n" || p.Bandwidth == nil || *p.Bandwidth != *bw || p.Phase != control.PhaseAttached || len(p.Addresses) != 2 {
			t.Fatalf("%+v, %v", p, err)
		}
	}
	if f.ports[0].Bandwidth.IngressRate != 1e6 {
		t.Error("the forwarder does not know of the bandwidth")
	}
	check := control.CheckRequest{Container: "c1", Interface: "eth0", Network: "n", Attach: "veth", NetnsID: "4:c1", Addresses: a.Addresses, MTU: 1450, Device: a.Device}
	if _, err := r.client.Check(ctx, check); err != nil {
		t.Error(err)
	}
	check.MTU, check.NetnsID = 1400, "4:8"
	fakeHost{f}.UnblockIngress(a.Device)
	if _, err := r.client.Check(ctx, check); err == nil || !strings.Contains(err.Error(), "MTU") || !strings.Contains(err.Error(), "namespace") || !strings.Contains(err.Error(), "drop") {
		t.Errorf("check does not tell all: %v", err)
	}
	i, err := r.client.IPAM(ctx)
	if err != nil || i.CIDRs[0].Allocated != 1 || i.CIDRs[0].Free != 253 || i.CIDRs[0].Source != control.SourceIPAM || i.Addresses[0].Container != "c1" {
		t.Errorf("%+v, %v", i, err)
	}
	for range 2 {
		if err := r.client.Detach(ctx, control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file stays: %v", err)
	}
	if i, _ = r.client.IPAM(ctx); i.CIDRs[0].Waiting != 1 || i.CIDRs[0].Allocated != 0 || i.Addresses[0].State != control.AddressWaiting {
		t.Errorf("%+v", i)
	}
	// The wait outlives the daemon.
	r = r.again(t)
	if i, _ = r.client.IPAM(ctx); i.CIDRs[0].Waiting != 1 {
		t.Errorf("after a restart: %+v", i)
	}
	if b, err := r.client.Allocate(ctx, allocation("c2")); err != nil || b.Addresses[0] == a.Addresses[0] {
		t.Errorf("given again at once: %+v, %v", b, err)
	}
	if _, err := r.client.Check(ctx, control.CheckRequest{Container: "c9", Interface: "eth0"}); control.CodeOf(err) != control.NotFound {
		t.Errorf("check of nobody: %v", err)
	}
}

func TestAllocateRefuses(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	if _, err := r.plug(t, "own"); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	for name, test := range map[string]struct {
		edit func(*control.AllocateRequest)
		code control.Code
		say  string
	}{
		"no network":       {func(q *control.AllocateRequest) { q.Network = "" }, control.BadRequest, "network"},
		"bad container":    {func(q *control.AllocateRequest) { q.Container = "../x" }, control.BadRequest, "container"},
		"long interface":   {func(q *control.AllocateRequest) { q.Interface = "sixteen_letters_" }, control.BadRequest, "interface"},
		"attach":           {func(q *control.AllocateRequest) { q.Attach = "bridge" }, control.BadRequest, "none of"},
		"family":           {func(q *control.AllocateRequest) { q.Families = []int{5} }, control.BadRequest, "families"},
		"no IPv6 here":     {func(q *control.AllocateRequest) { q.Families = []int{6} }, control.Unsupported, "IPv6"},
		"MTU":              {func(q *control.AllocateRequest) { q.MTU = 20 }, control.BadRequest, "mtu"},
		"taken":            {func(q *control.AllocateRequest) { q.Requested = []netip.Addr{addr("10.244.1.1")} }, control.Conflict, "in use by own/eth0"},
		"host's":           {func(q *control.AllocateRequest) { q.Requested = []netip.Addr{addr("10.244.1.0")} }, control.Unsupported, "host's own"},
		"foreign outside":  {func(q *control.AllocateRequest) { q.Addresses = []netip.Addr{addr("10.9.9.9")} }, control.Unsupported, "podCIDRs"},
		"two IPAMs":        {func(q *control.AllocateRequest) { q.Addresses = []netip.Addr{addr("10.244.1.50")} }, control.Unsupported, "own/eth0"},
		"routed, own IPAM": {func(q *control.AllocateRequest) { q.Attach = "routed" }, control.Unsupported, "missing"},
		"foreign and more": {func(q *control.AllocateRequest) {
			q.Addresses, q.Families = []netip.Addr{addr("10.244.1.50")}, []int{4}
		}, control.BadRequest, "no meaning"},
	} {
		q := allocation("c2")
		test.edit(&q)
		_, err := r.client.Allocate(t.Context(), q)
		if control.CodeOf(err) != test.code || !strings.Contains(fmt.Sprint(err), test.say) {
			t.Errorf("%s: got %v (%s), want %q (%s)", name, err, control.CodeOf(err), test.say, test.code)
		}
	}
	if p := r.phases(t); p != "own attached" {
		t.Errorf("refused requests left %s", p)
	}
	// The other way round.
	f = newFake()
	r = run(t, f, "")
	q := allocation("foreign")
	q.Addresses = []netip.Addr{addr("10.244.1.50")}
	if a, err := r.client.Allocate(t.Context(), q); err != nil || !a.Foreign {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := r.client.Allocate(t.Context(), allocation("c1")); control.CodeOf(err) != control.Unsupported {
		t.Errorf("two IPAMs: %v", err)
	}
	q.Container = "second"
	if _, err := r.client.Allocate(t.Context(), q); control.CodeOf(err) != control.Conflict {
		t.Errorf("one foreign address twice: %v", err)
	}
}

func TestIPv6NeedsItsMTU(t *testing.T) {
	r := run(t, newFake(), dual)
	q := allocation("c1")
	q.MTU = 1200
	if _, err := r.client.Allocate(t.Context(), q); control.CodeOf(err) != control.Unsupported || !strings.Contains(err.Error(), "1280") {
		t.Errorf("%v", err)
	}
	if p := r.phases(t); p != "" {
		t.Errorf("left %s", p)
	}
	q.Families = []int{4}
	if a, err := r.client.Allocate(t.Context(), q); err != nil || len(a.Addresses) != 1 || a.Gateway6.IsValid() {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestExhausted(t *testing.T) {
	r := run(t, newFake(), "node: {name: a, address: 192.0.2.1, podCIDRs: [10.244.1.0/30]}\n")
	for i := range 2 {
		if _, err := r.client.Allocate(t.Context(), allocation(fmt.Sprint("c", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.client.Allocate(t.Context(), allocation("c3")); control.CodeOf(err) != control.Exhausted {
		t.Errorf("%v", err)
	}
}

// A disk that takes nothing more is a clear error, and nothing has changed; a delete works all the same.
func TestFullDisk(t *testing.T) {
	f := newFake()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32k,nr_inodes=12"); err != nil {
		t.Skip("no tmpfs can be mounted here")
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	r := run(t, f, "state: "+dir+"\n")
	n := 0
	var err error
	for ; n < 30 && err == nil; n++ {
		_, err = r.plug(t, fmt.Sprint("c", n))
	}
	if control.CodeOf(err) != control.NoSpace || !strings.Contains(err.Error(), dir) {
		t.Fatalf("after %d pods: %v (%s)", n, err, control.CodeOf(err))
	}
	pods, _ := r.client.Pods(t.Context())
	i, _ := r.client.IPAM(t.Context())
	if int(i.CIDRs[0].Allocated) != len(pods) {
		t.Errorf("%d pods, %d addresses", len(pods), i.CIDRs[0].Allocated)
	}
	for _, p := range pods {
		if err := r.client.Detach(t.Context(), control.DetachRequest{Container: p.Container, Interface: "eth0"}); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.plug(t, "again"); err != nil {
		t.Error(err)
	}
}

func TestGC(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	for _, c := range []string{"keep", "drop", "stuck"} {
		if _, err := r.plug(t, c); err != nil {
			t.Fatal(err)
		}
	}
	q := allocation("other")
	q.Network = "m"
	reserved := allocation("reserved")
	r.client.Allocate(t.Context(), q)
	r.client.Allocate(t.Context(), reserved)
	f.setLink("ps0123456789a", link{Index: 70, Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
	f.setLink("ps0123456789b", link{Index: 71, Ethernet: true, Type: "veth"}) // somebody's own
	if _, err := r.client.GC(t.Context(), control.GCRequest{}); control.CodeOf(err) != control.BadRequest {
		t.Error(err)
	}
	f.failing("rmlink", errors.New("broken on purpose"))
	g, err := r.client.GC(t.Context(), control.GCRequest{Network: "n", Valid: []control.PodKey{{Container: "keep", Interface: "eth0"}, {Container: "drop", Interface: "eth0"}, {Container: "reserved", Interface: "eth0"}}})
	if err != nil || len(g.Failed) != 1 || g.Failed[0].Container != "stuck" || len(g.Removed) != 0 {
		t.Errorf("%+v, %v", g, err)
	}
	f.failing("rmlink", nil)
	g, err = r.client.GC(t.Context(), control.GCRequest{Network: "n", Valid: []control.PodKey{{Container: "keep", Interface: "eth0"}}})
	if err != nil || len(g.Removed) != 3 || len(g.Failed) != 0 {
		t.Errorf("%+v, %v", g, err)
	}
	if p := r.phases(t); p != "keep attached, other reserved" {
		t.Error(p)
	}
	links, _ := f.Links()
	var names []string
	for _, l := range links {
		if ourName(l.Name) {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	want := []string{"ps0123456789b", control.DeviceName("keep", "eth0")}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("devices %v, want %v", names, want)
	}
}

func TestRouted(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	a := netip.MustParseAddr("10.244.1.40")
	q := allocation("r")
	q.Attach, q.Addresses = control.AttachRouted, []netip.Addr{a}
	got, err := r.client.Allocate(t.Context(), q)
	if err != nil || got.Device != "" {
		t.Fatalf("%+v, %v", got, err)
	}
	attach := control.AttachRequest{Container: "r", Interface: "eth0", Attach: control.AttachRouted}
	if _, err := r.client.Attach(t.Context(), attach); control.CodeOf(err) != control.Unsupported {
		t.Errorf("the host's route goes round: %v", err)
	}
	f.mu.Lock()
	f.routes4[a] = "cni0"
	f.mu.Unlock()
	if p, err := r.client.Attach(t.Context(), attach); err != nil || p.Attach != control.AttachRouted {
		t.Errorf("%+v, %v", p, err)
	}
	if len(f.blocked) > 0 {
		t.Errorf("blocked %v", f.blocked)
	}
	// A veth whose address the bridge's route covers is out of reach.
	f.mu.Lock()
	f.routes4[netip.MustParseAddr("10.244.1.2")] = "cni0"
	f.mu.Unlock()
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.2")); control.CodeOf(err) != control.Unsupported || !strings.Contains(err.Error(), "cni0") {
		t.Errorf("%v", err)
	}
	// And so is a bridge that would take a veth's address away.
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.3")); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.routes4[netip.MustParseAddr("10.244.1.3")] = "cni0"
	f.routes4[netip.MustParseAddr("10.244.1.41")] = "cni0"
	f.mu.Unlock()
	q = allocation("r2")
	q.Attach, q.Addresses = control.AttachRouted, []netip.Addr{netip.MustParseAddr("10.244.1.41")}
	r.client.Allocate(t.Context(), q)
	attach.Container = "r2"
	if _, err := r.client.Attach(t.Context(), attach); control.CodeOf(err) != control.Unsupported || !strings.Contains(err.Error(), "c1/eth0") {
		t.Errorf("%v", err)
	}
}

// Many at once, on their own and on each other's pods: every address has one owner, and in the end nothing is left.
func TestConcurrentPods(t *testing.T) {
	f := newFake()
	r := run(t, f, "node: {name: a, address: 192.0.2.1, podCIDRs: [10.244.1.0/26]}\n")
	var wg sync.WaitGroup
	var mu sync.Mutex
	held := map[netip.Addr]string{}
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(g)))
			for i := range 25 {
				own := fmt.Sprintf("own-%d", g)
				a, err := r.plug(t, own)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if o := held[a.Addresses[0]]; o != "" {
					t.Errorf("%s is given to %s and %s", a.Addresses[0], o, own)
				}
				held[a.Addresses[0]] = own
				mu.Unlock()
				shared := fmt.Sprintf("shared-%d", rnd.IntN(3))
				switch i % 4 {
				case 0, 1:
					r.plug(t, shared)
				case 2:
					if err := r.client.Detach(t.Context(), control.DetachRequest{Container: shared, Interface: "eth0"}); err != nil {
						t.Error(err)
					}
				case 3:
					q := allocation(shared)
					r.client.GC(t.Context(), control.GCRequest{Network: "none"})
					r.client.Check(t.Context(), control.CheckRequest{Container: q.Container, Interface: "eth0"})
					r.client.Pods(t.Context())
					r.client.IPAM(t.Context())
				}
				mu.Lock()
				delete(held, a.Addresses[0])
				mu.Unlock()
				if err := r.client.Detach(t.Context(), control.DetachRequest{Container: own, Interface: "eth0"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := r.client.GC(t.Context(), control.GCRequest{Network: "n"}); err != nil {
		t.Error(err)
	}
	if p := r.phases(t); p != "" || len(f.blocked) > 0 || len(f.ports) > 0 || len(r.pods.keys.m) > 0 {
		t.Errorf("left %s, %v, %v, %d locks", p, f.blocked, f.ports, len(r.pods.keys.m))
	}
	if left, _ := filepath.Glob(filepath.Join(stateDir(r.path), "pods", "*.json")); left != nil {
		t.Errorf("left %v", left)
	}
}

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
	r = restartUntil(t, f, r.path, func(s control.Status) bool {
		return !s.Ready && s.Waiting == 1 && strings.Contains(s.Reason, "penstock adopt")
	})
	if p := r.phases(t); p != "lost waiting, stored attached, unmoved attached" {
		t.Error(p)
	}
	if did := f.deeds(); !slices.Contains(did, "unstore psffffffffff0") || !slices.Contains(did, "adopt "+control.DeviceName("stored", "eth0")) {
		t.Errorf("did %q", did)
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
	if s, err := r.client.Status(t.Context()); err != nil || !s.Ready || s.Waiting != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := r.client.Adopt(t.Context(), lost, queue); control.CodeOf(err) != control.Conflict {
		t.Error(err)
	}
	if err := r.client.Adopt(t.Context(), control.PodKey{Container: "x", Interface: "y"}, queue); control.CodeOf(err) != control.NotFound {
		t.Error(err)
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
	f.setLink("ps0123456789a", link{Index: 70, Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
	f.setLink("ps0123456789b", link{Index: 71, Type: "tuntap"})
	f.setLink("ps0123456789c", link{Index: 72, Ethernet: true, Type: "veth"}) // somebody's own
	f.setLink("psi", link{Index: 73, Group: control.DeviceGroup, Ethernet: true, Type: "veth"})
	run(t, f, "")
	var left []string
	for name := range f.links {
		if strings.HasPrefix(name, "ps") {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	if fmt.Sprint(left) != "[ps0123456789c psi]" {
		t.Errorf("left %v", left)
	}
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
	if _, ok := f.links[a.Device]; ok || control.IsPending(socket, "c1", "eth0") {
		t.Error("the old pod's device or its queued delete stays")
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
	if _, err := os.Stat(filepath.Join(stateDir(r.path), "pods")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the state stays")
	}
}

type testWriter struct{}

func (testWriter) Write(b []byte) (int, error) { return len(b), nil }
