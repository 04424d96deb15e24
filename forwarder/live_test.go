package forwarder

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/hostflow"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table/feed"
)

// settleDown waits until the workers have nothing left to do.
func (r *rig) settleDown() {
	r.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for last := []uint64(nil); time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
		turns, waiting := r.f.Progress()
		quiet := last != nil
		for i := range turns {
			quiet = quiet && waiting[i] && turns[i] == last[i]
		}
		if last = turns; quiet {
			return
		}
	}
	r.t.Error("the workers do not come to rest")
}

// TestLive: real workers under load, while pods come and go, peers change their
// encapsulation, settings are reloaded and flows forgotten. Run it with -race.
// The pod that stays sends numbered datagrams; they must leave in order.
func TestLive(t *testing.T) {
	for _, kind := range []encap.Kind{encap.KindVXLAN, encap.KindUDP} {
		t.Run(kind.String(), func(t *testing.T) {
			s := testSettings(kind)
			s.Workers = 3
			r := newRig(t, s)
			sink := r.f.HostFlows()
			stays := r.attach(AttachTUN, "stays", podA1, podA1v6)
			var mu sync.Mutex
			seen := map[uint16]uint16{}
			var sent atomic.Uint64
			watch := func(d ring.FakeDatagram) {
				mu.Lock()
				defer mu.Unlock()
				for _, b := range datagrams(t, []ring.FakeDatagram{d}) {
					sent.Add(1)
					var p encap.Packet
					at := kind.HeaderLen()
					if d.Addr.Addr() != nodeB || encap.Parse(b[at:], &p) != encap.OK || p.Proto != encap.ProtoUDP || p.SrcPort > 4 {
						continue
					}
					number := binary.BigEndian.Uint16(b[at+4:])
					if number <= seen[p.SrcPort] {
						t.Errorf("flow %d: number %d behind %d", p.SrcPort, number, seen[p.SrcPort])
					}
					seen[p.SrcPort] = number
				}
			}
			opened := append([]*ring.FakeSocket{}, r.udp...)
			for _, s := range opened {
				s.OnSend(watch)
			}
			r.f.Start()

			stop := make(chan struct{})
			var wg sync.WaitGroup
			loop := func(fn func(rnd *rand.Rand)) {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
					for {
						select {
						case <-stop:
							return
						default:
							fn(rnd)
						}
					}
				})
			}
			number := uint16(0)
			loop(func(*rand.Rand) {
				if number == 60000 {
					time.Sleep(time.Millisecond)
					return
				}
				number++
				for flow := range uint16(4) {
					stays.Inject(ring.FakePacket{Data: udpPacket(podA1, podB, 1+flow, 9, int(number)%3*50, identified(number))})
				}
				if number%32 == 0 {
					ip := tcpPacket(podA1, podB, 1, 20000)
					inject(stays, AttachTUN, ip, partial(ip, 1300), 0)
					time.Sleep(100 * time.Microsecond)
				}
			})
			loop(func(rnd *rand.Rand) { // from the wire and from the host
				n := rnd.IntN(len(opened))
				if opened[n].Local().Port() != 0 {
					a, _ := hammerPod(rnd.IntN(4))
					opened[n].Inject(ring.FakeDatagram{Data: fromPeer(kind, nodeB, udpPacket(podB, a, 7, 100, 50)), Addr: netip.AddrPortFrom(nodeB, 1)},
						ring.FakeDatagram{Data: fromPeer(kind, nodeB, udpPacket(podB, podA1, 7, 100, 50)), Addr: netip.AddrPortFrom(nodeB, 1)})
				}
				r.hosts[rnd.IntN(3)].Inject(ring.FakePacket{Data: udpPacket(podA1, podB, uint16(100+rnd.IntN(50)), 7, 10)})
				time.Sleep(50 * time.Microsecond)
			})
			loop(func(rnd *rand.Rand) { // pods
				i := rnd.IntN(4)
				a4, a6 := hammerPod(i)
				name := fmt.Sprint("pod", i)
				if _, err := r.f.Attach(PortSpec{Container: name, Interface: "eth0", Attach: []string{AttachVeth, AttachTUN}[i%2], Device: name, Addresses: addrs(a4, a6)}); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
				r.f.Ports()
				if rnd.IntN(2) == 0 {
					if err := r.f.Detach(name, "eth0"); err != nil {
						t.Error(err)
					}
				}
			})
			loop(func(rnd *rand.Rand) { // peers: B stays as it is, C changes
				b := feed.Peer{Name: "node-b", Address: nodeB, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:10:244:2::/64")}}
				ps := []feed.Peer{b}
				for i := range rnd.IntN(4) {
					ps = append(ps, feed.Peer{Name: fmt.Sprint("c", i), Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}), Encap: []string{"", "udp", "ipip"}[rnd.IntN(3)],
						PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(10 + i), 0}), 24)}})
				}
				if err := r.f.SetPeers(ps); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
			})
			loop(func(rnd *rand.Rand) { // settings and readers
				n := s
				n.CopyDSCP, n.ClampMSS = rnd.IntN(2) == 0, rnd.IntN(2) == 0
				if err := r.f.Reconfigure(n); err != nil {
					t.Error(err)
				}
				r.f.Counters()
				r.f.Capabilities()
				r.f.Descriptors()
				sink.Known(func(k hostflow.Tuple) bool { sink.Forget(k); return rnd.IntN(10) > 0 })
				time.Sleep(time.Millisecond)
			})
			time.Sleep(time.Second)
			close(stop)
			wg.Wait()
			r.settleDown()
			if sent.Load() < 1000 {
				t.Errorf("only %d datagrams left", sent.Load())
			}
			c := r.f.Counters()
			in, out := balance(c)
			if in != out {
				t.Errorf("in %d, out %d: %+v", in, out, c)
			}
			mu.Lock()
			for flow := range uint16(4) {
				if seen[1+flow] != number {
					t.Errorf("flow %d: the last of %d numbers that left is %d", 1+flow, number, seen[1+flow])
				}
			}
			mu.Unlock()
			if err := r.f.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
