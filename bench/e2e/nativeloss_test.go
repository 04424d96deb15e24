package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables/expr"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// oneIn matches one packet in n, at random.
func oneIn(n uint32) []expr.Any {
	return []expr.Any{&expr.Numgen{Register: 1, Modulus: n, Type: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 0, 0, 0}}}
}

// TestNativeLoss: one packet in a hundred is lost between the nodes, one by one. Data is right, and every frame has an end.
func TestNativeLoss(t *testing.T) {
	lab.Require(t)
	for carrier, match := range map[string][]expr.Any{"udp": toUDPPort(7471), "tcp": toTCPPort(7471)} {
		t.Run(carrier, func(t *testing.T) {
			l := lab.New(t, lab.Config{Wiring: lab.Routed, Kind: lab.Cut, YAML: []string{nativeYAML(carrier)}})
			l.Start(t)
			a, b := l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
			becomesNative(t, true, l.Nodes[0], a, b)
			fabricDrops(t, l, append(match, oneIn(100)...))
			for _, v6 := range []bool{false, true} {
				transfer(t, &a.Host, &b.Host, v6, 8<<20, 2<<20)
			}
			if n := nativeOf(t, l.Nodes[1]); n.Lost == 0 {
				t.Errorf("nothing was lost: %+v", n)
			}
			conserved(t, l)
		})
	}
}

// TestNativeLossCurve: what bulk comes to while single packets are lost, by the standard encapsulation and by each carrier, in networks that stand
// side by side. The stream is not far behind at any rate of loss. LOAD_FULL=1 or CURVE=1 runs it.
func TestNativeLossCurve(t *testing.T) {
	lab.Require(t)
	if !loadFull() && os.Getenv("CURVE") != "1" {
		t.Skip("CURVE=1 draws the curve")
	}
	type network struct {
		name string
		lab  *lab.Lab
		a, b *lab.Pod
	}
	var networks []network
	for _, carrier := range []string{"off", "udp", "tcp"} {
		l := lab.New(t, lab.Config{Wiring: lab.Routed, Kind: lab.Cut, YAML: []string{nativeYAML(carrier)}})
		l.Start(t)
		n := network{carrier, l, l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)}
		for _, p := range []*lab.Pod{n.a, n.b} {
			p.Sysctl(t, "net/ipv4/tcp_no_metrics_save", "1")
		}
		if carrier != "off" {
			becomesNative(t, true, l.Nodes[0], n.a, n.b)
		}
		networks = append(networks, n)
	}
	for _, c := range []struct {
		loss  uint32 // one packet in so many; 0: none
		bytes int64
	}{{0, 256 << 20}, {10_000, 128 << 20}, {1000, 64 << 20}, {100, 16 << 20}} {
		rates := map[string][]float64{}
		for _, n := range networks {
			if c.loss != 0 {
				unmangle(t, n.lab)
				fabricDrops(t, n.lab, oneIn(c.loss))
			}
		}
		for range 5 {
			for _, n := range networks {
				r, err := lab.TransferTCP(within(t), &n.a.Host, &n.b.Host, false, c.bytes, 0)
				if err != nil {
					t.Fatal(err)
				}
				rates[n.name] = append(rates[n.name], r.Rate()/1e9)
			}
		}
		line := "no loss:"
		if c.loss != 0 {
			line = fmt.Sprintf("one packet in %d is lost:", c.loss)
		}
		middle := map[string]float64{}
		for _, n := range networks {
			slices.Sort(rates[n.name])
			middle[n.name] = rates[n.name][len(rates[n.name])/2]
			line += fmt.Sprintf("  %s %.2f Gbit/s (%.2f to %.2f)", n.name, middle[n.name], rates[n.name][0], rates[n.name][len(rates[n.name])-1])
		}
		t.Log(line)
		for _, carrier := range []string{"udp", "tcp"} {
			if middle[carrier] < middle["off"]/3 {
				t.Errorf("%s the carrier %s has less than a third of the encapsulation", line, carrier)
			}
		}
	}
	for _, n := range networks {
		unmangle(t, n.lab)
		conserved(t, n.lab)
	}
}

// relay carries frames between the two nodes instead of the fabric's bridge, until the test ends. It sends one in a hundred twice, and lets one
// in a hundred be overtaken by the next few.
func relay(t *testing.T, l *lab.Lab) {
	t.Helper()
	h := l.Fabric.Netlink()
	var ends [2]*ring.PacketSocket
	for i := range ends {
		link := must(h.LinkByName(fmt.Sprintf("n%d", i)))
		if err := h.LinkSetNoMaster(link); err != nil {
			t.Fatal(err)
		}
		if err := l.Fabric.Do(func() (err error) {
			ends[i], err = ring.OpenPacket(ring.PacketConfig{Device: link.Attrs().Name, RecvBuffer: 16 << 20, NoBypass: true})
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	stop, done := make(chan struct{}), make(chan struct{}, 2)
	for i := range ends {
		go func(in, out *ring.PacketSocket) {
			defer func() { done <- struct{}{} }()
			r := rand.New(rand.NewPCG(uint64(i), 1))
			slab, frames, packets := ring.NewSlab(1<<20), make([]ring.Frame, 12), ring.NewPackets(1, 4)
			var held []byte
			var virtio ring.Virtio
			wait := 0
			send := func(v ring.Virtio, b []byte) {
				packets.Reset()
				if packets.Begin(v) && packets.Append(b) {
					_, _ = out.Write(packets, 0)
				}
			}
			for {
				select {
				case <-stop:
					return
				default:
				}
				slab.Reset()
				n, err := in.Read(slab, frames)
				if err != nil || n == 0 {
					if held != nil { // nothing follows: it was only late
						send(virtio, held)
						held = nil
					}
					time.Sleep(50 * time.Microsecond)
					continue
				}
				for _, f := range frames[:n] {
					if held == nil && r.IntN(100) == 0 {
						held, virtio, wait = slices.Clone(f.Bytes()), f.Virtio, 1+r.IntN(3)
						continue
					}
					send(f.Virtio, f.Bytes())
					if r.IntN(100) == 0 {
						send(f.Virtio, f.Bytes())
					}
					if wait--; held != nil && wait <= 0 {
						send(virtio, held)
						held = nil
					}
				}
				in.Release()
			}
		}(ends[i], ends[1-i])
	}
	t.Cleanup(func() {
		close(stop)
		for _, e := range ends {
			<-done
			defer e.Close()
		}
	})
}

// TestNativeRelay: one packet in a hundred comes twice, one in a hundred out of turn. Data is right, messages come once each and no more
// than some are late, and every frame has an end, by its name.
func TestNativeRelay(t *testing.T) {
	lab.Require(t)
	for _, carrier := range []string{"udp", "tcp"} {
		t.Run(carrier, func(t *testing.T) {
			l := lab.New(t, lab.Config{Wiring: lab.Bridged, Kind: lab.Cut, YAML: []string{nativeYAML(carrier)}})
			relay(t, l)
			l.Start(t)
			a, b := l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
			becomesNative(t, true, l.Nodes[0], a, b)
			for _, v6 := range []bool{false, true} {
				transfer(t, &a.Host, &b.Host, v6, 16<<20, 4<<20)
			}
			becomesNative(t, true, l.Nodes[0], a, b)
			_, before := nativeSent(t, l.Nodes[0])
			sink, err := b.ReceiveStream(0)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			n, err := a.SendStream(within(t), netip.AddrPortFrom(b.Addr(false), sink.Port()), lab.Stream{Sizes: []int{64, 570, 1200, 100}, Count: 12000, Rate: 12000, Flows: 4})
			if err != nil {
				t.Fatal(err)
			}
			if got := sink.WaitFor(n, time.Second); got.Duplicated+got.Corrupt+got.BadBorder+got.Strangers != 0 || got.Received < n*95/100 {
				t.Errorf("%d messages: %+v", n, got)
			}
			if _, after := nativeSent(t, l.Nodes[0]); after > before+100 {
				t.Errorf("%d frames went by the encapsulation", after-before)
			}
			dropped := l.Nodes[1].Daemon.Metrics(t).Dropped()
			if dropped["native_duplicate"] == 0 {
				t.Errorf("no duplicate was noticed: %v", dropped)
			}
			conserved(t, l)
		})
	}
}

// TestNativeForged: a program on a peer's node, of any user, sends pieces of one byte from that node's address, by every tag that there can be: two that
// stand by themselves, of which one lies ahead of wherever the stream is, move nothing; two that follow each other cost a packet or two.
func TestNativeForged(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{YAML: []string{nativeYAML("udp")}})
	l.Start(t)
	a, b := l.Nodes[0].AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
	becomesNative(t, true, l.Nodes[0], a, b)
	spray := func(starts ...uint32) {
		t.Helper()
		if err := l.Nodes[0].Do(func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(l.Nodes[1].Underlay(), 7471).String())
			if err != nil {
				return err
			}
			defer c.Close()
			var d [native.UDPLen + 1]byte
			for tag := uint16(1 << 15); tag != 0; tag++ {
				for _, start := range starts {
					native.PutUDP(d[:], tag, start, 1, 0)
					_, _ = c.Write(d[:]) // what does not get out is not missed
				}
				if tag%64 == 0 {
					time.Sleep(200 * time.Microsecond) // none is to be lost in a buffer that is full
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, starts := range [][]uint32{{1 << 29, 5 << 29}, {3 << 29, 7 << 29}, {1 << 29, 1<<29 + 1}, {5 << 29, 5<<29 + 1}} {
		stray := func() uint64 { return l.Nodes[1].Daemon.Metrics(t).Dropped()["native_stray"] }
		before := stray()
		for try := 0; stray() == before; try++ {
			if try == 5 {
				t.Fatalf("no piece at %#x found the stream: the test tests nothing", starts)
			}
			becomesNative(t, true, l.Nodes[0], a, b) // on a busy machine echoes are late, and a stream without traffic ends
			spray(starts...)
		}
		answers, pings := 0, 10
		for range pings {
			if a.Ping(b.Addr(false)) == nil {
				answers++
			}
		}
		if least := pings - 2; answers < least {
			t.Errorf("behind pieces at %#x %d of %d pings are answered", starts, answers, pings)
		}
	}
	conserved(t, l)
}
