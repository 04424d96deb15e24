package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// nativeYAML turns the stream on by one carrier.
func nativeYAML(carrier string) string { return "native: {carrier: " + carrier + "}" }

// nativeSent is how many frames have left as the native stream, and how many by an encapsulation.
func nativeSent(t *testing.T, n *lab.Node) (stream, standard uint64) {
	t.Helper()
	m := n.Daemon.Metrics(t)
	stream = uint64(m.Sum("penstock_forwarded_packets_total", "direction", "wire", "encap", "native"))
	return stream, uint64(m.Sum("penstock_forwarded_packets_total", "direction", "wire")) - stream
}

// nativeOf is what a node says of the stream to the other.
func nativeOf(t *testing.T, n *lab.Node) control.Native {
	t.Helper()
	peers, err := n.Daemon.Control().Peers(t.Context())
	if err != nil || len(peers) == 0 || peers[0].Native == nil {
		t.Fatalf("%+v, %v", peers, err)
	}
	return *peers[0].Native
}

// becomesNative pings until frames go as the stream, or not any more.
func becomesNative(t *testing.T, want bool, from *lab.Node, a, b *lab.Pod) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		before, _ := nativeSent(t, from)
		if err := a.Ping(b.Addr(false)); err != nil {
			t.Log(err)
		}
		if after, _ := nativeSent(t, from); (after > before) == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("frames from %s go as the native stream: %v is wanted", from.Name, want)
		}
	}
}

// TestNative: two nodes find each other, data and borders of messages are right over either underlay and attachment, and the change
// from the encapsulation loses nothing and turns nothing around.
func TestNative(t *testing.T) {
	lab.Require(t)
	type way struct {
		carrier string
		encap   string
		attach  lab.Attach
		kind    lab.Kind
		outer6  bool
	}
	ways := []way{
		{"udp", "vxlan", lab.Veth, lab.Whole, false}, {"udp", "udp", lab.TUN, lab.Cut, false}, {"udp", "vxlan", lab.TUN, lab.Whole, true},
		{"tcp", "vxlan", lab.Veth, lab.Whole, false}, {"tcp", "udp", lab.TUN, lab.TSO, false}, {"tcp", "udp", lab.Veth, lab.TSO, true},
	}
	if matrix() {
		ways = append(ways, way{"udp", "ipip", lab.Veth, lab.Cut, false}, way{"tcp", "ipip", lab.Veth, lab.Cut, false},
			way{"tcp", "vxlan", lab.TUN, lab.Cut, true}, way{"auto", "vxlan", lab.Veth, lab.Cut, false})
	}
	for _, c := range ways {
		t.Run(fmt.Sprintf("%s/%s/%s/%s/outer6=%v", c.carrier, c.encap, c.attach, c.kind, c.outer6), func(t *testing.T) {
			l := lab.New(t, lab.Config{Encap: c.encap, Kind: c.kind, Outer6: c.outer6, YAML: []string{nativeYAML(c.carrier), "workers: 2"}})
			l.Start(t)
			a, b := l.Nodes[0].AddPod(t, c.attach), l.Nodes[1].AddPod(t, c.attach)
			// Messages from before the change to behind it: on a busy machine the nodes take longer to find each other.
			sink, err := b.ReceiveStream(0)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			n, stream, standard := 0, uint64(0), uint64(0)
			for end := time.Now().Add(10 * time.Second); stream == 0 && time.Now().Before(end); {
				s := lab.Stream{Sizes: []int{64, 570, 1200, 100}, Count: 24000, Rate: 12000, Sink: sink, Flows: 4}
				sent, err := a.SendStream(within(t), netip.AddrPortFrom(b.Addr(false), sink.Port()), s)
				if err != nil {
					t.Fatal(err)
				}
				n += sent
				stream, standard = nativeSent(t, l.Nodes[0])
			}
			if got := sink.WaitFor(n, 5*time.Second); !got.Perfect(n) {
				t.Errorf("%d messages across the change: %+v", n, got)
				whereLost(t, l) // a pod's ring that was full is no fault of the change
			}
			if stream == 0 || standard == 0 {
				t.Errorf("%d frames as the stream, %d by %s: the test needs both; %+v", stream, standard, c.encap, nativeOf(t, l.Nodes[0]))
			}
			for _, v6 := range []bool{false, true} {
				transfer(t, &a.Host, &b.Host, v6, 64<<20, 16<<20)
				echoes(t, &a.Host, &b.Host, v6, []int{1, 1200, l.Nodes[0].PodMTU() - 60, 4000})
			}
			becomesNative(t, true, l.Nodes[1], b, a) // under load a fence may have been given up, which is tried again
			by := c.carrier
			if by == "auto" {
				by = "tcp"
			}
			if got := nativeOf(t, l.Nodes[0]); got.Carrier != by || got.Version != 1 || got.Bursts == 0 || got.GotFrames == 0 {
				t.Errorf("%+v", got)
			}
			conserved(t, l)
		})
	}
}

// TestNativeCluster: two nodes speak the stream, the third is a kernel's vxlan; all reach all.
func TestNativeCluster(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 3, Roles: []lab.Role{lab.Penstock, lab.Penstock, lab.KernelVXLAN}, YAML: []string{nativeYAML("auto")}})
	l.Start(t)
	a, b, k := l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.TUN), l.Nodes[2].AddPod(t, lab.Plain)
	becomesNative(t, true, l.Nodes[0], a, b)
	goesBy(t, l.Nodes[0], "tcp")
	for _, p := range [][2]*lab.Host{{&a.Host, &b.Host}, {&a.Host, &k.Host}, {&k.Host, &b.Host}} {
		pingBoth(t, p[0], p[1])
		transfer(t, p[0], p[1], false, 8<<20, 8<<20)
	}
	_, before := nativeSent(t, l.Nodes[0])
	if err := a.Ping(k.Addr(false)); err != nil {
		t.Error(err)
	}
	if _, after := nativeSent(t, l.Nodes[0]); after == before {
		t.Error("nothing goes to the kernel's node by vxlan")
	}
	conserved(t, l)
}

// TestNativeFallback: a firewall that begins to drop a carrier, and a peer that starts anew, stop the traffic for a second at most. With two
// carriers the other one takes over.
func TestNativeFallback(t *testing.T) {
	lab.Require(t)
	for carrier, drops := range map[string][][]expr.Any{"udp": {toUDPPort(7471)}, "tcp": {toTCPPort(7471)}, "auto": {toTCPPort(7471), toUDPPort(7471)}} {
		t.Run(carrier, func(t *testing.T) {
			l := lab.New(t, lab.Config{Wiring: lab.Routed, YAML: []string{nativeYAML(carrier)}})
			l.Start(t)
			a, b := l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
			becomesNative(t, true, l.Nodes[0], a, b)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			// Pings go on, so that there is traffic.
			pinging := make(chan struct{})
			go func() {
				defer close(pinging)
				for ctx.Err() == nil {
					_ = a.Ping(b.Addr(false))
					time.Sleep(20 * time.Millisecond)
				}
			}()
			if carrier == "auto" {
				goesBy(t, l.Nodes[0], "tcp")
			}
			left := map[string][]string{"udp": {"none"}, "tcp": {"none"}, "auto": {"udp", "none"}}[carrier]
			for i, drop := range drops {
				fabricDrops(t, l, drop)
				if longest := silence(t, a, b, 3*time.Second); longest > time.Second {
					t.Errorf("no packet passed for %v after carrier %d was blocked", longest, i)
				}
				goesBy(t, l.Nodes[0], left[i])
			}
			if before, _ := nativeSent(t, l.Nodes[0]); true {
				time.Sleep(200 * time.Millisecond)
				if after, _ := nativeSent(t, l.Nodes[0]); after != before {
					t.Error("frames still go as the stream")
				}
			}
			if why := nativeOf(t, l.Nodes[0]).Why; !strings.Contains(why, "echo") && !strings.Contains(why, "hello") {
				t.Errorf("why it is not native: %q", why)
			}
			unmangle(t, l)
			becomesNative(t, true, l.Nodes[0], a, b)
			if carrier == "auto" {
				goesBy(t, l.Nodes[0], "tcp")
			}
			cancel()
			<-pinging
			// A restart: the other end is another instance.
			l.Nodes[1].Daemon.Stop(t)
			l.Nodes[1].Start(t)
			becomesNative(t, true, l.Nodes[0], a, b)
			transfer(t, &a.Host, &b.Host, false, 32<<20, 32<<20)
			if n := l.Nodes[1].Daemon.Metrics(t).Dropped()["native_duplicate"]; n > 0 {
				t.Errorf("%d pieces of a peer that we do not know any more were taken for repeats", n)
			}
			conserved(t, l)
		})
	}
}

// goesBy waits until frames to the other node go by a carrier, or none.
func goesBy(t *testing.T, n *lab.Node, carrier string) {
	t.Helper()
	await(t, "frames of "+n.Name+" go by the carrier "+carrier, func() bool { return nativeOf(t, n).Carrier == carrier })
}

// silence sends a message every 10 ms for d and returns the longest time in which none arrived.
func silence(t *testing.T, a, b *lab.Pod, d time.Duration) (longest time.Duration) {
	t.Helper()
	sink, err := b.ReceiveStream(0)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	go a.SendStream(t.Context(), netip.AddrPortFrom(b.Addr(false), sink.Port()), lab.Stream{Count: int(d / (10 * time.Millisecond)), Rate: 100, Burst: 1})
	last, have := time.Now(), sink.Counts().Received
	for end := last.Add(d); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if n := sink.Counts().Received; n > have {
			have, last = n, time.Now()
		}
		longest = max(longest, time.Since(last))
	}
	return longest
}

// fabricDrops makes the router in the middle drop what matches.
func fabricDrops(t *testing.T, l *lab.Lab, match []expr.Any) {
	t.Helper()
	err := l.Fabric.Nftables(func(c *nftables.Conn) error {
		table := c.AddTable(&nftables.Table{Name: "drops", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(append([]expr.Any{}, match...), &expr.Verdict{Kind: expr.VerdictDrop})})
		return nil
	})
	if err != nil {
		t.Fatalf("drops in the fabric: %v", err)
	}
}
