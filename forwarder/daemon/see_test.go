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
	capture.Open(t.Context(), r.client, capture.Request{Pod: "10.244.2.5"})
	if g := f.tapped; g.Container != "" || len(g.Addresses) != 1 {
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
