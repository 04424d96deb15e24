package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

// TestReloadsUnderLoad: reloads, one after the other, while 50,000 packets a second go through the node and a pod spoofs. Nothing is
// reordered, no spoofed packet passes, and what is lost has overflowed a queue that names it, no more than in the rounds without
// reloads that alternate with those. LOAD_FULL=1 makes it a thousand reloads.
func TestReloadsUnderLoad(t *testing.T) {
	rounds, each, least := 2, 1500*time.Millisecond, 4
	if loadFull() {
		rounds, each, least = 20, 5*time.Second, 1000
	}
	l, a, b := twoNodes(t, lab.Config{YAML: []string{"workers: 2"}})
	bad := a.AddPod(t, lab.Veth)
	var pairs [][2]*lab.Host
	for range 2 {
		av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
		pingBoth(t, &av.Host, &bv.Host)
		pairs = append(pairs, [2]*lab.Host{&av.Host, &bv.Host}, [2]*lab.Host{&bv.Host, &av.Host})
	}
	pingBoth(t, &bad.Host, pairs[0][1])
	victim := pairs[0][1]
	passed, err := victim.Capture("eth0", func(frame []byte) bool { return idOf(frame) >= 0 })
	if err != nil {
		t.Fatal(err)
	}
	defer passed.Close()
	more := netip.MustParsePrefix("10.244.99.0/24")
	variants := []string{"{}", peersYAML(asPeer(b, more)), "encap: {copyDSCP: true}",
		"network: {cidrs: [10.244.0.0/16, 'fd00:10:244::/48', 10.99.0.0/16]}",
		peersYAML(asPeer(b)) + "- name: other\n  address: 192.0.2.78\n  encap: udp\n  podCIDRs: [10.244.98.0/24]\n"}
	reloads := 0
	type tally struct{ sent, lost, overflowed, spoofed uint64 }
	round := func(reloading bool) (r tally) {
		before, full := a.Daemon.AtRest(t), overflows(t, l)
		beforeB := b.Daemon.AtRest(t)
		ctx, cancel := context.WithTimeout(t.Context(), each)
		defer cancel()
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i, p := range pairs {
			sink, err := p[1].ReceiveStream(0)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			wg.Go(func() {
				n, err := p[0].SendStream(ctx, netip.AddrPortFrom(p[1].Addr(i >= 2), sink.Port()), lab.Stream{Rate: 12_500, Count: 1 << 40, Flows: 4, Burst: 16})
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				c := sink.WaitFor(n, 2*time.Second)
				if c.Reordered+c.Duplicated+c.Corrupt+c.BadBorder > 0 {
					t.Errorf("stream %d, reloading %v: %+v", i, reloading, c)
				}
				mu.Lock()
				defer mu.Unlock()
				r.sent += uint64(n)
				r.lost += uint64(n - c.Received)
			})
		}
		spoofed := ipPacket(netip.MustParseAddr("10.244.1.200"), victim.IP4, unix.IPPROTO_UDP, 64, 0, nil, udpTo(netip.MustParseAddr("10.244.1.200"), victim.IP4, badPort, nextPayload(60)))
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := bad.InjectIP(spoofed); err == nil {
					r.spoofed++
				}
				time.Sleep(time.Millisecond)
			}
		})
		for reloading && ctx.Err() == nil {
			a.Daemon.Reload(t, variants[reloads%len(variants)])
			reloads++
		}
		wg.Wait()
		drops, dropsB := a.Daemon.AssertConserved(t).Sub(before).Dropped(), b.Daemon.AssertConserved(t).Sub(beforeB).Dropped()
		if got := drops["spoofed"]; got > r.spoofed || got+100 < r.spoofed/2 {
			t.Errorf("%d spoofed packets were sent, %d dropped as such", r.spoofed, got)
		}
		delete(drops, "spoofed")
		for _, d := range []map[string]uint64{drops, dropsB} {
			for reason, n := range d {
				switch reason {
				case "port_full", "send_full", "send_no_buffers", "truncated":
					r.overflowed += n
				case "multicast", "answered":
				default:
					if n > 0 {
						t.Errorf("reloading %v: %d drops %s", reloading, n, reason)
					}
				}
			}
		}
		for name, n := range overflows(t, l) {
			r.overflowed += n - full[name]
		}
		return r
	}
	var with, without tally
	add := func(to *tally, r tally) {
		to.sent += r.sent
		to.lost += r.lost
		to.overflowed += r.overflowed
		to.spoofed += r.spoofed
	}
	for i := 0; i < rounds || reloads < least; i++ {
		add(&without, round(false))
		add(&with, round(true))
	}
	seconds := each.Seconds() * float64(max(rounds, 1))
	t.Logf("%d reloads: %+v (about %.0f a second); without: %+v", reloads, with, float64(with.sent)/seconds, without)
	for name, r := range map[string]tally{"with reloads": with, "without": without} {
		if r.lost > r.overflowed {
			t.Errorf("%s %d messages were lost, and queues overflowed by %d", name, r.lost, r.overflowed)
		}
	}
	if allowed := 2*without.lost + with.sent/200; with.lost > allowed {
		t.Errorf("with reloads %s were lost, without %s", share(with.lost, with.sent), share(without.lost, without.sent))
	}
	if n := len(passed.Frames()); n > 0 {
		t.Errorf("%d spoofed packets passed", n)
	}
	conserved(t, l)
}

func share(part, all uint64) string { return fmt.Sprintf("%d of %d", part, all) }
