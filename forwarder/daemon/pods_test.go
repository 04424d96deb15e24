package daemon

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

func TestLifeOfAPod(t *testing.T) {
	f := newFake()
	r := run(t, f, dual)
	ctx := t.Context()
	a, err := r.client.Allocate(ctx, allocation("c1"))
	if a.Gateway4 != control.Gateway4 || a.Gateway6 != control.Gateway6 { // the plugin's and doctor's; the forwarder, which answers for them, has its own
		t.Errorf("gateways %s and %s", a.Gateway4, a.Gateway6)
	}
	if err != nil || fmt.Sprint(a.Addresses) != "[10.244.1.1 fd00:10:244:1::1]" || a.MTU != 1450 || a.Device != control.DeviceName("c1", "eth0") ||
		a.NodeMTU != 1450 || a.Phase != control.PhaseReserved || a.Gateway4.String() != "169.254.1.1" || a.Gateway6.String() != "fe80::1" || a.GatewayMAC != "ee:ee:ee:ee:ee:ee" {
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
	for device, well := range map[string]bool{"penstock0": false, "": false, "cni0": true} { // the route is another plugin's, and may go
		f.mu.Lock()
		f.routes4[a] = device
		f.mu.Unlock()
		_, err := r.client.Check(t.Context(), control.CheckRequest{Container: "r", Interface: "eth0"})
		if (err == nil) != well || err != nil && !strings.Contains(err.Error(), "the host has lost its route to 10.244.1.40, which the plugin before penstock has made") {
			t.Errorf("route to %q: %v", device, err)
		}
	}
	f.mu.Lock()
	f.routes4[a] = "cni0"
	f.mu.Unlock()
	// A veth whose address the bridge's route covers is out of reach.
	f.mu.Lock()
	f.routes4[netip.MustParseAddr("10.244.1.2")] = "cni0"
	f.mu.Unlock()
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.2")); control.CodeOf(err) != control.Unsupported {
		t.Errorf("%v", err)
	}
	want := "the host's route to 10.244.1.2 leads to cni0, which takes the pod CIDR for itself: attach all pods of this CIDR as routed, or give cni0 a CIDR of its own; if it is left over from flannel: ip link del cni0, when its pods are gone"
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.2")); err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	// The bridge's own address leads to lo, which tells nobody anything.
	f.mu.Lock()
	f.routes4[netip.MustParseAddr("10.244.1.1")] = "lo"
	f.holders[netip.MustParseAddr("10.244.1.1")] = "cni0"
	f.mu.Unlock()
	want = "cni0 of this node has 10.244.1.1, so no pod can have it: take the address from cni0, or the CIDR from node.podCIDRs; if it is left over from flannel: ip link del cni0, when its pods are gone"
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.1")); err == nil || err.Error() != want {
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
