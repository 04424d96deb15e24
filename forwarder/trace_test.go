package forwarder

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/forwarder/hostflow"
	"github.com/penstock-net/penstock/ring"
)

// told is a trace as text.
func told(t *Trace) string {
	var b strings.Builder
	fmt.Fprintln(&b, t.Origin)
	for _, s := range t.Steps {
		fmt.Fprintf(&b, "%s: %s\n", s.Name, s.Text)
	}
	fmt.Fprint(&b, t.Outcome, " ", t.Reason)
	return b.String()
}

// TestTrace: each end that a packet may have is told, with the numbers of its way.
func TestTrace(t *testing.T) {
	outside := netip.MustParseAddr("203.0.113.10")
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			s := testSettings(kind)
			s.Workers = 2
			r := newRig(t, s)
			r.veth("a1", podA1, podA1v6)
			r.attach(AttachTUN, "a2", podA2)
			mtu := encap.PodMTU(1500, kind, false)
			a1 := TraceSpec{Container: "a1", Interface: "eth0"}
			b := TraceSpec{Peer: nodeB}
			for _, c := range []struct {
				name string
				from TraceSpec
				p    TracePacket
				want []string
			}{
				{"to a peer", a1, TracePacket{Src: podA1, Dst: podB, Proto: "tcp", DstPort: 80}, []string{
					"pod a1/eth0", "from: pod a1/eth0 sends it, veth a1, which worker 0 reads", "source: 10.244.1.5 is an address of that pod",
					"route: 10.244.2.0/24 leads to peer node-b 192.0.2.2", "ttl: 64 becomes 63", fmt.Sprintf("mtu: 100 bytes fit %d", mtu), "encap: " + kind.String(), "to-peer none"}},
				{"no route to the peer", TraceSpec{Container: "a1", Interface: "eth0", Unroutable: true}, TracePacket{Src: podA1, Dst: podB, Proto: "udp", Size: 4000}, []string{
					"route: 10.244.2.0/24 leads to peer node-b 192.0.2.2", "drop: underlay_unreachable: ", "remedy: ", "dropped underlay_unreachable"}},
				{"v6", a1, TracePacket{Src: podA1v6, Dst: podBv6, Proto: "udp", Size: 300}, []string{"ttl: 64 becomes 63", "to-peer none"}},
				{"fragments", a1, TracePacket{Src: podA1, Dst: podB, Proto: "udp", Size: 4000}, []string{"may be cut: 3 fragments", "to-peer none"}},
				{"too big", a1, TracePacket{Src: podA1, Dst: podB, Proto: "udp", Size: 4000, DF: true}, []string{
					"drop: too_big: ", "remedy: ", fmt.Sprintf("answer: ICMP fragmentation needed, MTU %d, to pod a1/eth0 (10.244.1.5)", mtu), "dropped too_big"}},
				{"TTL", a1, TracePacket{Src: podA1, Dst: podB, Proto: "icmp", TTL: 1}, []string{"drop: ttl_expired", "answer: ICMP time exceeded", "dropped ttl_expired"}},
				{"spoofed", a1, TracePacket{Src: podA2, Dst: podB, Proto: "udp"}, []string{"drop: spoofed: a pod sent with a source that is not its address\nremedy: ", "dropped spoofed"}},
				{"no route", a1, TracePacket{Src: podA1, Dst: netip.MustParseAddr("10.244.9.9"), Proto: "udp"}, []string{
					"route: 10.244.0.0/16 leads to the pods' network, and no peer has this part of it", "answer: ICMP net unreachable", "dropped no_route"}},
				{"no pod", a1, TracePacket{Src: podA1, Dst: netip.MustParseAddr("10.244.1.77"), Proto: "udp"}, []string{"answer: ICMP host unreachable", "dropped no_pod"}},
				{"local", a1, TracePacket{Src: podA1, Dst: podA2, Proto: "udp"}, []string{"route: 10.244.1.6/32 leads to pod a2/eth0", "deliver: written to pod a2/eth0", "to-pod none"}},
				{"outside", a1, TracePacket{Src: podA1, Dst: outside, Proto: "tcp"}, []string{"203.0.113.10 is outside of the pods' network", "ttl: 64 stays", "handed to the host's stack through penstock0", "to-host none"}},
				{"from the host", TraceSpec{}, TracePacket{Src: outside, Dst: podA2, Proto: "tcp"}, []string{"host\nfrom: the host's stack routes it to penstock0", "to-pod none"}},
				{"inbound", b, TracePacket{Src: podB, Dst: podA1, Proto: "tcp"}, []string{
					"peer node-b\nfrom: peer node-b 192.0.2.2 sends it as " + kind.String(), "source: 10.244.2.5 lies in the prefixes of node-b", "ttl: 64 becomes 63", "to-pod none"}},
				{"inbound v6", b, TracePacket{Src: podBv6, Dst: podA1v6, Proto: "icmp"}, []string{"to-pod none"}},
				{"inbound forged", b, TracePacket{Src: podA2, Dst: podA1, Proto: "udp"}, []string{"drop: inner_source", "dropped inner_source"}},
				{"inbound, no pod", b, TracePacket{Src: podB, Dst: netip.MustParseAddr("10.244.1.77"), Proto: "udp"}, []string{"answer: ICMP host unreachable, to 10.244.2.5", "dropped no_pod"}},
				{"a tunnel in the tunnel", a1, TracePacket{Src: podA1, Dst: nodeB, Proto: "udp", DstPort: kind.DefaultPort()}, []string{map[bool]string{true: "to-host none", false: "drop: tunnel_loop"}[kind == encap.KindIPIP]}},
			} {
				c.from.TracePacket = c.p
				got, err := r.f.Trace(c.from)
				if err != nil {
					t.Errorf("%s: %v", c.name, err)
					continue
				}
				for _, want := range c.want {
					if !strings.Contains(told(got), want) {
						t.Errorf("%s: no %q in\n%s", c.name, want, told(got))
					}
				}
			}
			// IPv6 is sent what it must be able to send, and it is told that the path does not take it.
			r.f.peers[nodeB].state.learn(1280, time.Now())
			a1.TracePacket = TracePacket{Src: podA1v6, Dst: podBv6, Proto: "udp", Size: 1280}
			got, err := r.f.Trace(a1)
			if want := fmt.Sprintf("mtu: 1280 bytes exceed %d (the path's MTU of 1280 was learned from an error) and are sent all the same", encap.PodMTU(1280, kind, false)); err != nil || !strings.Contains(told(got), want) || got.Outcome != "to-peer" {
				t.Errorf("%v: no %q in\n%s", err, want, told(got))
			}
		})
	}
}

// TestTraceLeavesNoTrace: no counter moves, nothing is written or sent, nothing is learned, no descriptor stays.
func TestTraceLeavesNoTrace(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	r.f.TrackFlows()
	pod := r.veth("a1", podA1)
	r.attach(AttachTUN, "a2", podA2)
	for _, q := range r.pods {
		q.Sent() // questions for MACs
	}
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(fds)
	}
	before, fds := r.f.Counters(), count()
	for _, s := range []TraceSpec{
		{Container: "a1", Interface: "eth0", TracePacket: TracePacket{Src: podA1, Dst: podB, Proto: "udp"}},
		{Container: "a1", Interface: "eth0", TracePacket: TracePacket{Src: podA2, Dst: podB, Proto: "udp"}},
		{Container: "a1", Interface: "eth0", TracePacket: TracePacket{Src: podA1, Dst: podA2, Proto: "udp"}},
		{Peer: nodeB, TracePacket: TracePacket{Src: podB, Dst: podA1, Proto: "udp"}},
		{TracePacket: TracePacket{Src: podA1, Dst: podB, Proto: "udp"}}, // as a Service's packet comes back
	} {
		if _, err := r.f.Trace(s); err != nil {
			t.Error(err)
		}
	}
	if after := r.f.Counters(); !reflect.DeepEqual(before, after) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if n := count(); n != fds {
		t.Errorf("%d descriptors became %d", fds, n)
	}
	for name, q := range r.pods {
		if n := len(q.Sent()); n != 0 {
			t.Errorf("%d were written to %s", n, name)
		}
	}
	for _, s := range r.udp {
		if n := len(s.Sent()); n != 0 {
			t.Errorf("%d were sent", n)
		}
	}
	if n := r.f.flows.size(); n != 0 {
		t.Errorf("%d flows were remembered", n)
	}
	// And real packets go on.
	pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, 9)))
	r.turn()
	if c := r.f.Counters(); c.Peers[0].Sent.Packets != 1 {
		t.Errorf("%+v", c.Peers[0])
	}
}

// TestTraceSees: what holds for packets now holds for traces: flows that the host has translated, a learned MTU, other peers.
func TestTraceSees(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	r.veth("a1", podA1)
	sink := r.f.HostFlows()
	sink.Preload(hostflow.Tuple{Src: podB, Dst: podA1, Proto: encap.ProtoTCP, SrcPort: 80, DstPort: 4000})
	in := TraceSpec{Peer: nodeB, TracePacket: TracePacket{Src: podB, Dst: podA1, Proto: "tcp", SrcPort: 80, DstPort: 4000}}
	got, err := r.f.Trace(in)
	if err != nil || got.Outcome != "to-host" || !strings.Contains(told(got), "flow: it answers a flow") {
		t.Fatalf("%v %v", told(got), err)
	}
	for _, c := range []struct {
		s    TraceSpec
		want string
	}{
		{TraceSpec{Container: "zz", Interface: "eth0", TracePacket: in.TracePacket}, "not attached"},
		{TraceSpec{Peer: stranger, TracePacket: in.TracePacket}, "is no peer"},
		{TraceSpec{TracePacket: TracePacket{Src: podB, Dst: podA1v6, Proto: "tcp"}}, "one family"},
		{TraceSpec{TracePacket: TracePacket{Src: podB, Dst: podA1, Proto: "gre"}}, "neither tcp"},
		{TraceSpec{TracePacket: TracePacket{Src: podB, Dst: podA1, Proto: "tcp", Size: 39}}, "impossible"},
		{TraceSpec{TracePacket: TracePacket{Src: podB, Dst: podA1, Proto: "tcp", Size: 70000}}, "impossible"},
		{TraceSpec{TracePacket: TracePacket{Src: podB, Dst: podA1, Proto: "tcp", TTL: 300}}, "impossible"},
		{TraceSpec{Peer: nodeB, TracePacket: TracePacket{Src: podB, Dst: podA1, Proto: "udp", Size: 65535}}, "no datagram holds"},
	} {
		if _, err := r.f.Trace(c.s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c.s, err)
		}
	}
}

// TestTraceNative: of a peer that frames go to as the native stream the trace says so, and that the rest is how they would go without it.
func TestTraceNative(t *testing.T) {
	for _, by := range []native.Carrier{native.TCP, native.UDP} {
		x := newNativePairBy(t, encap.KindVXLAN, by)
		spec := TraceSpec{Container: "a1", Interface: "eth0", TracePacket: TracePacket{Src: podA1, Dst: podB, Proto: "tcp"}}
		for _, goes := range []bool{false, true} {
			if goes {
				x.wayBy(by, false, 0)
			}
			got, err := x.a.f.Trace(spec)
			if err != nil || strings.Contains(told(got), "native: frames to this peer go as the native stream by "+by.String()+": ") != goes {
				t.Errorf("by %s, goes %v: %v\n%s", by, goes, err, told(got))
			}
		}
	}
}

// TestShapeOf: a run is as many datagrams as it has segments, and as long as one.
func TestShapeOf(t *testing.T) {
	one, run := ring.FakeDatagram{Data: make([]byte, 1400)}, ring.FakeDatagram{Data: make([]byte, 2800), Segment: 700}
	for _, c := range []struct {
		sends              []ring.FakeDatagram
		datagrams, longest int
	}{
		{nil, 0, 0},
		{[]ring.FakeDatagram{one}, 1, 1400},
		{[]ring.FakeDatagram{run}, 4, 700},
		{[]ring.FakeDatagram{one, run}, 5, 1400},
		{[]ring.FakeDatagram{run, one}, 5, 1400},
		{[]ring.FakeDatagram{{Data: make([]byte, 2801), Segment: 700}}, 5, 700},
	} {
		if n, longest := shapeOf(c.sends); n != c.datagrams || longest != c.longest {
			t.Errorf("%d sends: %d datagrams of at most %d bytes, want %d of %d", len(c.sends), n, longest, c.datagrams, c.longest)
		}
	}
}
