package daemon

import (
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

func request(container, device string, addresses ...string) control.AttachRequest {
	r := control.AttachRequest{Container: container, Interface: "eth0", Device: device}
	for _, a := range addresses {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	return r
}

func TestAttachAndDetach(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	ctx := t.Context()
	f.deeds()
	p, err := r.client.Attach(ctx, request("c1", "ve1", "10.244.1.2"))
	if err != nil || p.MTU != 1450 || p.Attach != control.AttachVeth || p.Device != "ve1" {
		t.Fatalf("%+v, %v", p, err)
	}
	if did := f.deeds(); !slices.Equal(did, []string{"block ve1", "attach ve1"}) {
		t.Errorf("did %q; the drop must come first", did)
	}
	if _, err := r.client.Attach(ctx, request("c1", "ve1", "10.244.1.2")); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if did := f.deeds(); len(did) != 0 {
		t.Errorf("the same again did %q", did)
	}
	f.setLink("ve1", link{Index: 99, Ethernet: true, Type: "veth"}) // made anew under its name
	if _, err := r.client.Attach(ctx, request("c1", "ve1", "10.244.1.2")); err != nil {
		t.Errorf("a new device: %v", err)
	}
	if did := f.deeds(); !slices.Equal(did, []string{"detach c1/eth0", "block ve1", "attach ve1"}) {
		t.Errorf("a new device: did %q", did)
	}
	for range 2 {
		if err := r.client.Detach(ctx, control.DetachRequest{Container: "c1", Interface: "eth0"}); err != nil {
			t.Error(err)
		}
	}
	if did := f.deeds(); !slices.Equal(did, []string{"detach c1/eth0", "unblock ve1"}) {
		t.Errorf("detach: did %q", did)
	}
	if _, err := r.client.Attach(ctx, request("c2", "ve1", "10.244.1.2")); err != nil {
		t.Errorf("address and device are free again: %v", err)
	}
	tun := request("c3", "", "10.244.1.3")
	tun.Attach = control.AttachTUN
	if p, err := r.client.Attach(ctx, tun); err != nil || p.Device != control.DeviceName("c3", "eth0") {
		t.Errorf("%+v, %v", p, err)
	}
	if did := f.deeds(); slices.ContainsFunc(did, func(s string) bool { return strings.HasPrefix(s, "block ps") }) {
		t.Errorf("a tun has no ingress to block: %q", did)
	}
}

func TestAttachRefuses(t *testing.T) {
	f := newFake()
	r := run(t, f, "node: {name: node-a, address: 192.0.2.1, podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}\nnetwork: {cidrs: [10.244.0.0/16, 'fd00:10:244::/48']}\n")
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.2")); err != nil {
		t.Fatal(err)
	}
	f.deeds()
	with := func(edit func(*control.AttachRequest)) control.AttachRequest {
		q := request("c2", "ve2", "10.244.1.3")
		edit(&q)
		return q
	}
	for name, test := range map[string]struct {
		request control.AttachRequest
		code    control.Code
		say     string
	}{
		"no container":       {request("", "ve2", "10.244.1.3"), control.BadRequest, "container"},
		"path in container":  {request("../c", "ve2", "10.244.1.3"), control.BadRequest, "container"},
		"long interface":     {with(func(q *control.AttachRequest) { q.Interface = "sixteen_letters_" }), control.BadRequest, "interface"},
		"no addresses":       {request("c2", "ve2"), control.BadRequest, "addresses"},
		"foreign address":    {request("c2", "ve2", "10.244.2.3"), control.BadRequest, "podCIDRs"},
		"host's address":     {request("c2", "ve2", "10.244.1.0"), control.BadRequest, "host's own"},
		"host's IPv6":        {request("c2", "ve2", "fd00:10:244:1::"), control.BadRequest, "host's own"},
		"zone":               {request("c2", "ve2", "fd00:10:244:1::5%eth0"), control.BadRequest, "plain"},
		"4in6":               {request("c2", "ve2", "::ffff:10.244.1.3"), control.BadRequest, "plain"},
		"twice":              {request("c2", "ve2", "10.244.1.3", "10.244.1.3"), control.BadRequest, "twice"},
		"address in use":     {request("c2", "ve2", "10.244.1.3", "10.244.1.2"), control.Conflict, "in use by c1/eth0"},
		"device in use":      {request("c2", "ve1", "10.244.1.3"), control.Conflict, "in use by c1/eth0"},
		"other spec":         {request("c1", "ve1", "10.244.1.9"), control.Conflict, "attached already"},
		"no such device":     {request("c2", "ve3", "10.244.1.3"), control.NotFound, "there is no device ve3"},
		"long device":        {request("c2", "sixteen_letters_", "10.244.1.3"), control.BadRequest, "device"},
		"underlay":           {request("c2", "eth0", "10.244.1.3"), control.BadRequest, "belongs to the node"},
		"node's TUN":         {request("c2", "penstock0", "10.244.1.3"), control.BadRequest, "belongs to the node"},
		"not Ethernet":       {request("c2", "dummy0", "10.244.1.3"), control.BadRequest, "not an Ethernet"},
		"unknown attachment": {with(func(q *control.AttachRequest) { q.Attach = "bridge" }), control.BadRequest, "none of"},
		"routed by our TUN":  {with(func(q *control.AttachRequest) { q.Attach = "routed" }), control.Unsupported, "needs a route"},
		"broadcast":          {request("c2", "ve2", "10.244.1.255"), control.BadRequest, "broadcast"},
		"rate and no burst":  {with(func(q *control.AttachRequest) { q.Bandwidth = &control.Bandwidth{IngressRate: 1} }), control.BadRequest, "burst"},
		"routed and a rate": {with(func(q *control.AttachRequest) {
			q.Attach, q.Bandwidth = "routed", &control.Bandwidth{IngressRate: 1, IngressBurst: 1}
		}), control.Unsupported, "cannot bound"},
		"TUN over a veth": {with(func(q *control.AttachRequest) { q.Attach = control.AttachTUN }), control.Conflict, "already"},
		"multicast MAC":   {with(func(q *control.AttachRequest) { q.MAC = "01:00:5e:00:00:01" }), control.BadRequest, "mac"},
		"no MAC":          {with(func(q *control.AttachRequest) { q.MAC = "x" }), control.BadRequest, "mac"},
		"small MTU":       {with(func(q *control.AttachRequest) { q.MTU = 500 }), control.BadRequest, "mtu"},
		"small IPv6 MTU": {with(func(q *control.AttachRequest) {
			q.MTU, q.Addresses = 1279, append(q.Addresses, netip.MustParseAddr("fd00:10:244:1::3"))
		}), control.BadRequest, "1280"},
		"large MTU": {with(func(q *control.AttachRequest) { q.MTU = 70000 }), control.BadRequest, "mtu"},
	} {
		_, err := r.client.Attach(t.Context(), test.request)
		if control.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.say) {
			t.Errorf("%s: got %v (%s), want %q (%s)", name, err, control.CodeOf(err), test.say, test.code)
		}
	}
	if did := f.deeds(); len(did) != 0 {
		t.Errorf("refused requests did %q", did)
	}
}

func TestFailedAttachIsUndone(t *testing.T) {
	f := newFake()
	r := run(t, f, "")
	for _, step := range []string{"block", "attach"} {
		f.deeds()
		f.failing(step, errors.New("broken on purpose"))
		if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.2")); err == nil || !strings.Contains(err.Error(), "broken on purpose") {
			t.Errorf("%s: %v", step, err)
		}
		if did := f.deeds(); did[len(did)-1] != "unblock ve1" || len(f.blocked) != 0 {
			t.Errorf("%s: did %q", step, did)
		}
		if left, _ := filepath.Glob(filepath.Join(stateDir(r.path), "pods", "*.json")); left != nil || len(r.pods.list()) > 0 {
			t.Errorf("%s: left %v", step, left)
		}
		f.failing(step, nil)
	}
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.2")); err != nil {
		t.Errorf("after the failures: %v", err)
	}
}

// A predecessor's drops go where no pod is: a pod that is there has a state file, and its drop goes first.
func TestDropsOfAPredecessor(t *testing.T) {
	f := newFake()
	f.blocked["ve1"], f.blocked["gone"] = true, true
	run(t, f, "")
	if did := f.deeds(); !slices.Contains(did, "reconcile []") {
		t.Errorf("did %q", did)
	}
}
