package daemon

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

const withPeer = dual + "peers:\n- {name: node-b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}\n"

// TestTraceFindsItsOrigin: the packet comes from whoever has its source, unless somebody is named.
func TestTraceFindsItsOrigin(t *testing.T) {
	f := newFake()
	r := run(t, f, withPeer)
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	own := a.Addresses[0].String()
	nodeB := netip.MustParseAddr("192.0.2.2")
	for _, c := range []struct {
		q         control.TraceRequest
		container string
		peer      netip.Addr
		src, dst  string
	}{
		{control.TraceRequest{Src: own, Dst: "10.244.2.5"}, "c1", netip.Addr{}, own, "10.244.2.5"},
		{control.TraceRequest{Src: "c1", Dst: "fd00:10:244:2::5"}, "c1", netip.Addr{}, a.Addresses[1].String(), "fd00:10:244:2::5"},
		{control.TraceRequest{Src: "10.244.2.5", Dst: "c1/eth0"}, "", nodeB, "10.244.2.5", own},
		{control.TraceRequest{Src: "10.244.2.5", Dst: a.Device, From: "host"}, "", netip.Addr{}, "10.244.2.5", own},
		{control.TraceRequest{Src: "10.244.9.9", Dst: own, From: "peer node-b"}, "", nodeB, "10.244.9.9", own},
		{control.TraceRequest{Src: "10.244.9.9", Dst: own, From: "peer ::ffff:c000:202"}, "", nodeB, "10.244.9.9", own},
		{control.TraceRequest{Src: "10.244.9.9", Dst: "10.244.2.5", From: "c1/eth0"}, "c1", netip.Addr{}, "10.244.9.9", "10.244.2.5"},
		{control.TraceRequest{Src: "203.0.113.1", Dst: own}, "", netip.Addr{}, "203.0.113.1", own},
	} {
		got, err := r.client.Trace(t.Context(), c.q)
		s := f.traced
		if err != nil || s.Container != c.container || s.Peer != c.peer || s.Src.String() != c.src || s.Dst.String() != c.dst || s.Proto != "icmp" {
			t.Errorf("%+v: %+v, %v", c.q, s, err)
		}
		if got.Reason != "spoofed" || len(got.Steps) != 1 {
			t.Errorf("%+v", got)
		}
	}
	for _, c := range []struct {
		q    control.TraceRequest
		code control.Code
		want string
	}{
		{control.TraceRequest{Src: "10.244.1.99", Dst: own}, control.NotFound, "none has it"},
		{control.TraceRequest{Src: "nobody", Dst: own}, control.NotFound, "nobody"},
		{control.TraceRequest{Src: "fd00::1", Dst: "10.1.1.1"}, control.BadRequest, "one family"},
		{control.TraceRequest{Src: own, Dst: own, From: "peer x"}, control.NotFound, `no peer "x"`},
		{control.TraceRequest{Src: own, Dst: own, From: "x"}, control.NotFound, `no pod "x"`},
	} {
		if _, err := r.client.Trace(t.Context(), c.q); control.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.q, err)
		}
	}
}

// TestTraceAsksTheKernel: where the host's stack does not send a packet to us, the trace says where, and not what would happen here;
// and a peer that this node has no route to is told to the forwarder.
func TestTraceAsksTheKernel(t *testing.T) {
	f := newFake()
	r := run(t, f, withPeer)
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	own := a.Addresses[0].String()
	f.mu.Lock()
	for to, device := range map[string]string{"10.244.2.1": "flannel.1", own: "cni0", "10.244.2.2": "", "198.51.100.1": "eth0", "198.51.100.2": "", "10.244.1.0": "lo", "192.0.2.1": "lo"} {
		f.routes4[netip.MustParseAddr(to)] = device
	}
	f.mu.Unlock()
	for to, want := range map[string]string{
		"10.244.2.1":   "elsewhere: the host's stack routes it to flannel.1 and not to penstock0, so it never comes here",
		own:            "elsewhere: the host's stack routes it to cni0 and not to penstock0, so it never comes here",
		"10.244.2.2":   "elsewhere: the host's stack has no route to 10.244.2.2, so it never comes here",
		"198.51.100.1": "to-host: the host's stack routes it to eth0, as it does by itself: it does not come to penstock0",
		"198.51.100.2": "elsewhere: the host's stack has no route to 198.51.100.2, so it never comes here",
		"10.244.1.0":   "to-host: the host's stack routes it to lo, as it does by itself: it does not come to penstock0",
		"192.0.2.1":    "to-host: the host's stack routes it to lo, as it does by itself: it does not come to penstock0",
		"10.244.2.3":   "dropped: x",
	} {
		got, err := r.client.Trace(t.Context(), control.TraceRequest{Src: "10.244.1.0", Dst: to, From: "host"})
		if err != nil || len(got.Steps) == 0 || got.Outcome+": "+got.Steps[0].Text != want || (got.Reason != "") != (got.Outcome == "dropped") {
			t.Errorf("%s: %+v, %v", to, got, err)
		}
		if f.traced.Unroutable {
			t.Errorf("%s: the peer is taken for one without a route", to)
		}
	}
	f.mu.Lock()
	f.routes4[netip.MustParseAddr("192.0.2.2")] = ""
	f.mu.Unlock()
	if _, err := r.client.Trace(t.Context(), control.TraceRequest{Src: own, Dst: "10.244.2.1"}); err != nil || !f.traced.Unroutable {
		t.Errorf("%+v, %v", f.traced, err)
	}
}

// TestTraceOfRouted: a routed pod is the host's to reach, and its packets come out of the host's routing.
func TestTraceOfRouted(t *testing.T) {
	f := newFake()
	r := run(t, f, withPeer)
	behind := netip.MustParseAddr("10.244.1.40")
	f.mu.Lock()
	f.routes4[behind], f.routes4[netip.MustParseAddr("10.244.2.1")] = "cni0", "flannel.1"
	f.mu.Unlock()
	q := allocation("r")
	q.Attach, q.Addresses = control.AttachRouted, []netip.Addr{behind}
	if _, err := r.client.Allocate(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Attach(t.Context(), control.AttachRequest{Container: "r", Interface: "eth0", Attach: control.AttachRouted}); err != nil {
		t.Fatal(err)
	}
	if got, err := r.client.Trace(t.Context(), control.TraceRequest{Src: "10.244.1.0", Dst: behind.String(), From: "host"}); err != nil || got.Outcome != "to-host" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := r.client.Trace(t.Context(), control.TraceRequest{Src: behind.String(), Dst: "10.244.2.1"}); err != nil || got.Outcome != control.OutcomeElsewhere {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestPodByPrefix: the start of a container's id names it, if it is long enough and no other's starts so.
func TestPodByPrefix(t *testing.T) {
	f := newFake()
	r := run(t, f, withPeer)
	const one, two = "d859695b6cdd5eee5b8b", "d859695baaaa5eee5b8b"
	for _, c := range []string{one, two} {
		if _, err := r.plug(t, c); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"d859695b6":         "",
		"d859695b6cdd/eth0": "",
		one:                 "",
		"d859695b":          `"d859695b" is the start of several containers' ids, write more of the one you mean: ` + one + "/eth0, " + two + "/eth0",
		"d859695b/eth0":     "several containers' ids",
		"d859695":           "no pod",
		"d859695b6cdd/eth1": "no pod",
	} {
		_, err := r.client.Trace(t.Context(), control.TraceRequest{Src: name, Dst: "10.244.2.5"})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if want == "" && f.traced.Container != one {
			t.Errorf("%s is %s", name, f.traced.Container)
		}
	}
}

// TestCaptureFilter: names become what the forwarder looks for.
func TestCaptureFilter(t *testing.T) {
	f := newFake()
	r := run(t, f, withPeer)
	a, err := r.plug(t, "c1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"c1/eth0", "c1", a.Device, a.Addresses[0].String()} {
		_, err := capture.Open(t.Context(), r.client, capture.Request{Pod: name, Peer: "node-b", Reason: "spoofed", Snap: 9})
		if err == nil || !strings.Contains(err.Error(), "pretended") {
			t.Errorf("%v", err)
		}
		if g := f.tapped; g.Container != "c1" || g.Interface != "eth0" || len(g.Addresses) != 2 || g.Peer.String() != "192.0.2.2" || g.Reason != "spoofed" || g.Snap != 9 {
			t.Errorf("%s: %+v", name, g)
		}
	}
	capture.Open(t.Context(), r.client, capture.Request{Pod: "10.244.2.5", Peer: "::ffff:c000:202"})
	if g := f.tapped; g.Container != "" || len(g.Addresses) != 1 || g.Peer.String() != "192.0.2.2" {
		t.Errorf("%+v", g)
	}
	capture.Open(t.Context(), r.client, capture.Request{Protocol: "udp", Port: 53})
	if g := f.tapped; g.Protocol != 17 || g.Port != 53 {
		t.Errorf("%+v", g)
	}
	for _, q := range []capture.Request{{Pod: "nobody"}, {Peer: "nobody"}} {
		if _, err := capture.Open(t.Context(), r.client, q); control.CodeOf(err) != control.NotFound {
			t.Errorf("%+v: %v", q, err)
		}
	}
	for _, q := range []capture.Request{{Snap: -1}, {Port: -1}, {Port: 65536}, {Protocol: "quic"}, {Protocol: "0"}, {Protocol: "256"}} {
		if _, err := capture.Open(t.Context(), r.client, q); control.CodeOf(err) != control.BadRequest {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// TestPeersRejected: what doctor goes by when a peer does not answer reaches it, with what to do; where there is none of it, nothing is shown.
func TestPeersRejected(t *testing.T) {
	f := newFake()
	f.counters = forwarder.Counters{Peers: []forwarder.PeerCounters{{Address: "192.0.2.2", Got: forwarder.Volume{Packets: 5}, LastSeen: 90,
		Rejected: 2, LastRejected: 100, RejectedAs: forwarder.DropWrongVNI, NobodyListens: 110}}}
	r := run(t, f, withPeer)
	list, err := r.client.Peers(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	why := forwarder.DropWrongVNI
	want := control.Rejected{Packets: 2, Last: time.Unix(100, 0).UTC(), Reason: "wrong_vni", Meaning: why.Meaning(), Remedy: why.Remedy()}
	if p := list[0]; p.Rejected == nil || *p.Rejected != want || p.LastSeen.Unix() != 90 || p.NobodyListens == nil || p.NobodyListens.Unix() != 110 {
		t.Errorf("%+v, %+v", p, p.Rejected)
	}
	list, err = run(t, newFake(), withPeer).client.Peers(t.Context())
	if err != nil || len(list) != 1 || list[0].Rejected != nil || list[0].NobodyListens != nil || list[0].LastSeen != nil {
		t.Errorf("%+v, %v", list, err)
	}
}
