package daemon

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/probe"
)

// TestProbe: peers are found by name and address, probed between first addresses of one family with the pods' MTU, and
// answered as the configuration has them, also after a reload.
func TestProbe(t *testing.T) {
	const node = "node: {name: node-a, address: 192.0.2.1, podCIDRs: [10.244.1.0/24]}\n"
	r := run(t, newFake(), node+"peers: [{name: node-b, address: 192.0.2.2, podCIDRs: ['10.244.2.0/24']}, {name: node-c, address: 192.0.2.3, podCIDRs: ['10.244.3.0/24'], encap: udp}]\n")
	p := r.prober.(*fakeProber)
	a := netip.MustParseAddr
	if !reflect.DeepEqual(p.own, []netip.Addr{a("10.244.1.0")}) || !reflect.DeepEqual(p.peers, []netip.Addr{a("10.244.2.0"), a("10.244.3.0")}) {
		t.Errorf("answers on %v to %v", p.own, p.peers)
	}
	p.path = probe.Path{Node: true, By: probe.ByPenstock, RTT: 1500 * time.Nanosecond, Clock: -2 * time.Second, Passes: 1400, Back: 1300}
	for _, name := range []string{"node-b", "192.0.2.2", "::FFFF:192.0.2.2"} {
		got, err := r.client.Probe(t.Context(), control.ProbeRequest{Peer: name})
		want := control.Probe{Peer: "node-b", Address: a("192.0.2.2"), Host: a("10.244.2.0"), Node: true, AnsweredBy: control.AnsweredByPenstock, RTT: 1, Clock: -2000, MTU: 1450, Passes: 1400, Back: 1300}
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", name, got, err)
		}
		if p.target != (probe.Target{Node: a("192.0.2.2"), NodeFrom: a("192.0.2.1"), Host: a("10.244.2.0"), HostFrom: a("10.244.1.0"), MTU: 1450}) {
			t.Errorf("asked for %+v", p.target)
		}
	}
	if _, err := r.client.Probe(t.Context(), control.ProbeRequest{Peer: "node-x"}); control.CodeOf(err) != control.NotFound {
		t.Errorf("a peer that is none: %v", err)
	}
	rewrite(t, r.path, node+"peers: [{name: node-d, address: 192.0.2.4, podCIDRs: ['10.244.4.0/24']}]\n")
	if _, err := r.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p.peers, []netip.Addr{a("10.244.4.0")}) {
		t.Errorf("after the reload it answers %v", p.peers)
	}
}

// TestBench: its length is bounded, and what was counted is turned into rates.
func TestBench(t *testing.T) {
	r := run(t, newFake(), "peers: [{name: node-b, address: 192.0.2.2, podCIDRs: ['10.244.2.0/24']}]\n")
	for ms, ok := range map[int64]bool{0: true, 99: false, 100: true, -1: false, control.MaxBench: true, control.MaxBench + 1: false} {
		if _, err := r.client.Bench(t.Context(), control.BenchRequest{Peer: "node-b", Milliseconds: ms}); (err == nil) != ok {
			t.Errorf("%d ms: %v", ms, err)
		}
	}
	b, err := r.client.Bench(t.Context(), control.BenchRequest{Peer: "node-b", Milliseconds: 2000})
	if err != nil || b.Bulk.PerSecond != 5 || b.Bulk.BitsSecond != 40_000 || b.Datagrams.PerSecond != 0 {
		t.Errorf("%+v %v", b, err)
	}
	r.prober.(*fakeProber).bench = probe.ErrBusy
	if _, err := r.client.Bench(t.Context(), control.BenchRequest{Peer: "node-b"}); control.CodeOf(err) != control.Conflict {
		t.Errorf("while another runs: %v", err)
	}
}
