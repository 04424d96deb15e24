package doctor

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/control"
)

// TestSilentPeer: why a peer does not answer is taken from what its packets met here and from what its node's kernel says, and no
// firewall is blamed where either tells.
func TestSilentPeer(t *testing.T) {
	b := netip.MustParseAddr("192.0.2.2")
	ago := func(d time.Duration) *time.Time { at := time.Now().Add(-d); return &at }
	rejected := func(n uint64, reason, remedy string, before time.Duration) *control.Rejected {
		return &control.Rejected{Packets: n, Last: *ago(before), Reason: reason, Meaning: "what it means", Remedy: remedy}
	}
	known := control.Peer{Name: "node-b", Address: b, Encap: "vxlan", Port: 8472, VNI: 1, MAC: encap.VTEPMAC(b, 1).String()}
	with := func(got uint64, r *control.Rejected, seen, closed *time.Time) control.Peer {
		p := known
		p.Received.Packets, p.Rejected, p.LastSeen, p.NobodyListens = got, r, seen, closed
		return p
	}
	soon := ago(-time.Minute) // of the probe that is yet to come
	ipip := with(0, nil, nil, soon)
	ipip.Encap, ipip.Port, ipip.MAC = "ipip", 0, ""
	flannel := known
	flannel.MAC = "02:00:00:00:00:02"
	for _, c := range []struct {
		name            string
		before, now     control.Peer
		node            bool
		result          Result
		finding, remedy string
		never           string // in neither
	}{
		{"another VNI under traffic", with(10, rejected(10, "wrong_vni", "make encap.vni of both nodes agree", time.Minute), nil, nil), with(60, rejected(60, "wrong_vni", "make encap.vni of both nodes agree", 0), nil, nil),
			true, Failure, "s ago as wrong_vni (what it means)", "make encap.vni of both nodes agree", "firewall"},
		{"other podCIDRs under traffic", with(10, nil, ago(time.Hour), nil), with(60, rejected(50, "inner_source", "compare the peer's podCIDRs", 0), ago(time.Hour), nil),
			true, Failure, "as inner_source (what it means), and nobody behind the tunnel (10.244.2.0) answers; last heard 1h0m", "compare the peer's podCIDRs", "firewall"},
		{"its probes were dropped a while ago", with(6, rejected(6, "inner_source", "compare podCIDRs", 20*time.Second), nil, nil), with(6, rejected(6, "inner_source", "compare podCIDRs", 20*time.Second), nil, nil),
			false, Failure, "s ago as inner_source (what it means), and nobody behind the tunnel (10.244.2.0) answers; nothing from it was ever accepted", "compare podCIDRs", "firewall"},
		{"so long ago that it says nothing", with(6, rejected(6, "inner_source", "compare podCIDRs", time.Hour), nil, nil), with(6, rejected(6, "inner_source", "compare podCIDRs", time.Hour), nil, nil),
			true, Failure, "the node 192.0.2.2 answers, but nobody", "penstockctl doctor there", "inner_source"},
		{"before it was heard", with(6, rejected(6, "inner_source", "compare podCIDRs", time.Minute), ago(time.Second), nil), with(6, rejected(6, "inner_source", "compare podCIDRs", time.Minute), ago(time.Second), nil),
			true, Failure, "the node 192.0.2.2 answers, but nobody", "penstockctl doctor there", "inner_source"},
		{"some are accepted", with(10, nil, nil, nil), with(60, rejected(49, "no_pod", "it has gone", 0), ago(0), nil),
			true, Warning, "packets from it arrive and are accepted", "iifname penstock0", "no_pod"},
		{"counted anew", with(60, rejected(10, "no_pod", "it has gone", time.Second), nil, nil), with(1, nil, nil, nil),
			true, Failure, "the node 192.0.2.2 answers, but nobody", "penstockctl doctor there", "no_pod"},
		{"nobody listens", known, with(0, nil, ago(4*time.Second), soon),
			true, Failure, "node-b answers that nobody holds UDP 8472 there: penstockd is not running on it, or has another encap.type or port; last heard ", "on node-b: start penstockd", "nobody behind"},
		{"nobody takes ipip", ipip, ipip, true, Failure, "node-b answers that nobody takes IP protocol 4 there", "encap.type", "nobody behind"},
		{"nobody listened before", known, with(0, nil, nil, ago(time.Minute)),
			true, Failure, "the node 192.0.2.2 answers, but nobody", "penstockctl doctor there", "nobody holds"},
		{"silence", known, known, true, Failure, "the node 192.0.2.2 answers, but nobody",
			"do encapsulation, port, VNI and podCIDRs agree (penstockctl peers on both nodes), does it drop what comes from here (penstockctl drops there), does a firewall on it or on the way drop the tunnel (vxlan, UDP port 8472)? penstockctl doctor there says more; if it runs flannel or a kernel's vxlan, give its VTEP's MAC", "systemctl"},
		{"silence of a flannel node", flannel, flannel, true, Failure, "the node 192.0.2.2 answers, but nobody", "penstockctl doctor there says more", "flannel"},
	} {
		x := fakeDaemon(t, c.before, c.now, control.Probe{Host: netip.MustParseAddr("10.244.2.0"), Node: c.node, MTU: 1450})
		x.probePeers(t.Context())
		got := x.report.Checks[0]
		if got.Result != c.result || !strings.Contains(got.Finding, c.finding) || !strings.Contains(got.Remedy, c.remedy) || strings.Contains(got.Finding+got.Remedy, c.never) {
			t.Errorf("%s: %s: %s (%s)", c.name, got.Result, got.Finding, got.Remedy)
		}
	}
}

// fakeDaemon is an examination that has found one peer, whose daemon says other things of it once it has been probed.
func fakeDaemon(t *testing.T, before, now control.Peer, probe control.Probe) *examination {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var probed atomic.Bool
	answer := func(v func() any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v()) }
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/probe", answer(func() any { probed.Store(true); return probe }))
	mux.Handle("/v1/drops", answer(func() any { return map[string]any{"drops": []control.Drop{}} }))
	mux.Handle("/v1/ports", answer(func() any { return map[string]any{"ports": []control.Port{}} }))
	mux.Handle("/v1/peers", answer(func() any {
		if !probed.Load() {
			t.Error("the peers are asked for before the probe")
		}
		return map[string]any{"peers": []control.Peer{now}}
	}))
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	x := &examination{}
	x.client, x.up, x.peers = control.New(socket), true, []control.Peer{before}
	return x
}
