package forwarder

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

func (r *rig) tap(filter TapFilter) *Tap {
	r.t.Helper()
	tap, err := r.f.Tap(filter)
	if err != nil {
		r.t.Fatal(err)
	}
	return tap
}

// story tells in short what a tap has seen.
func story(tap *Tap) (lines []string, records []TapRecord) {
	tap.Read(func(r *TapRecord) {
		o := *r
		o.Data = slices.Clone(r.Data)
		records = append(records, o)
		line := r.Stage.String()
		if r.Stage == Dropped {
			line += " " + r.Reason.String()
		}
		for _, who := range []string{r.Pod, r.Peer} {
			if who != "" {
				line += " " + who
			}
		}
		lines = append(lines, line)
	})
	return lines, records
}

func (r *rig) fromNodeB(ips ...[]byte) {
	for _, ip := range ips {
		r.udp[0].Inject(ring.FakeDatagram{Data: vxlanFrom(nodeB, ip), Addr: netip.AddrPortFrom(nodeB, 4444), TOS: 1})
	}
}

// TestTapStages: each way through the forwarder shows where it begins and where it ends, with its bytes.
func TestTapStages(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.veth("a1", podA1)
	r.attach(AttachTUN, "a2", podA2)
	out := udpPacket(podA1, podB, 1, 2, 100)
	ttl := func(ip *layers.IPv4) { ip.TTL = 1 }
	big := tcpPacket(podA1, podB, 1, 20000)
	for _, c := range []struct {
		name   string
		inject func()
		want   []string
	}{
		{"to a peer", func() { pod.Inject(fromPod(out)) }, []string{"from-pod a1/eth0", "to-peer a1/eth0 node-b"}},
		{"to a pod", func() { pod.Inject(fromPod(udpPacket(podA1, podA2, 1, 2, 9))) }, []string{"from-pod a1/eth0", "to-pod a2/eth0"}},
		{"to the host", func() { pod.Inject(fromPod(udpPacket(podA1, outsideAddr, 1, 2, 9))) }, []string{"from-pod a1/eth0", "to-host a1/eth0"}},
		{"from the host", func() { r.hosts[0].Inject(ring.FakePacket{Data: udpPacket(hostAddr, podA2, 1, 2, 9)}) }, []string{"from-host", "to-pod a2/eth0"}},
		{"from a peer", func() { r.fromNodeB(udpPacket(podB, podA2, 1, 2, 9)) }, []string{"from-peer node-b", "to-pod a2/eth0 node-b"}},
		{"spoofed", func() { pod.Inject(fromPod(udpPacket(podA2, podB, 1, 2, 9))) }, []string{"from-pod a1/eth0", "dropped spoofed a1/eth0"}},
		{"TTL", func() { pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, 9, ttl))) },
			[]string{"from-pod a1/eth0", "dropped ttl_expired a1/eth0", "to-pod a1/eth0"}}, // the answer
		{"ARP", func() {
			pod.Inject(ring.FakePacket{Data: append(append(bytes.Repeat([]byte{0xff}, 6), macA1[:]...), 8, 6, 0, 1)})
		}, []string{"from-pod a1/eth0", "dropped not_ip a1/eth0"}},
		{"a superframe", func() { inject(pod, AttachVeth, big, partial(big, 1300), 0) }, []string{"from-pod a1/eth0", "to-peer a1/eth0 node-b"}},
		{"fragments", func() {
			pod.Inject(fromPod(udpPacket(podA1, podB, 1, 2, 3000, func(ip *layers.IPv4) { ip.Flags = 0 })))
		}, []string{"from-pod a1/eth0", "to-peer a1/eth0 node-b"}},
		{"a stranger", func() {
			r.udp[0].Inject(ring.FakeDatagram{Data: vxlanFrom(stranger, out), Addr: netip.AddrPortFrom(stranger, 7)})
		}, []string{"dropped unknown_peer"}},
		{"too short for VXLAN", func() { r.udp[0].Inject(ring.FakeDatagram{Data: []byte{1, 2, 3}, Addr: netip.AddrPortFrom(nodeB, 7)}) }, []string{"dropped short node-b"}},
		{"inner source", func() { r.fromNodeB(udpPacket(podA1, podA2, 1, 2, 9)) }, []string{"from-peer node-b", "dropped inner_source node-b"}},
		{"the kernel refuses", func() { r.udp[1].Fail(0, errAgain); pod.Inject(fromPod(out)) },
			[]string{"from-pod a1/eth0", "to-peer a1/eth0 node-b", "dropped send_full node-b"}},
		{"the pod's queue is full", func() { r.pods["a2"].Fail(0, errAgain); r.fromNodeB(udpPacket(podB, podA2, 1, 2, 9)) },
			[]string{"from-peer node-b", "to-pod a2/eth0 node-b", "dropped port_full a2/eth0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tap := r.tap(TapFilter{})
			defer tap.Close()
			c.inject()
			r.turn()
			got, records := story(tap)
			if !slices.Equal(got, c.want) {
				t.Fatalf("%s", strings.Join(got, "\n"))
			}
			for _, o := range records {
				if o.Length != len(o.Data) || o.Nanos == 0 {
					t.Errorf("%s: %d bytes of %d at %d", o.Stage, len(o.Data), o.Length, o.Nanos)
				}
				if o.Ethernet || len(o.Data) < 20 {
					continue
				}
				if p := parse(t, o.Data); o.Outer != (p.Dst == nodeA) {
					t.Errorf("%s: outer %v, to %s", o.Stage, o.Outer, p.Dst)
				}
			}
			switch last := records[len(records)-1]; c.name {
			case "to a peer":
				if want := append([]byte{}, out...); last.Data[8] != want[8]-1 || !bytes.Equal(last.Data[12:], want[12:]) {
					t.Errorf("% x", last.Data)
				}
			case "a superframe":
				if last.Length != len(big) || last.Segment != 1300 {
					t.Errorf("%d bytes, segments of %d", last.Length, last.Segment)
				}
			case "the kernel refuses":
				if !bytes.Equal(last.Data, records[1].Data) {
					t.Errorf("% x", last.Data)
				}
			case "a stranger":
				o := decode(t, last.Data)
				if o.ip4.SrcIP.String() != stranger.String() || o.udp.SrcPort != 7 || o.udp.DstPort != 8472 {
					t.Errorf("%+v", o)
				}
			}
		})
	}
}

// TestPeekPieces: a frame is read where its headers are, and nothing else for one.
func TestPeekPieces(t *testing.T) {
	b := udpPacket(podA1, podB, 7, 53, 100)
	eth := func(kind uint16) []byte {
		return append(append(make([]byte, 12), byte(kind>>8), byte(kind)), b...)
	}
	for _, c := range []struct {
		name     string
		pieces   [][]byte
		ethernet bool
		port     uint16
	}{
		{"one", [][]byte{b}, false, 53},
		{"payload apart", [][]byte{b[:28], b[28:]}, false, 53},
		{"IP header apart", [][]byte{b[:20], b[20:]}, false, 53},
		{"cut in the header", [][]byte{b[:19], b[19:]}, false, 53},
		{"alone", [][]byte{b[:20]}, false, 0},
		{"Ethernet", [][]byte{eth(0x0800)}, true, 53},
		{"a VLAN", [][]byte{eth(0x8100)}, true, 0},
		{"half an Ethernet header", [][]byte{eth(0x0800)[:13]}, true, 0},
	} {
		var in encap.Packet
		if peek(&tapSlot{ethernet: c.ethernet}, c.pieces, &in); in.DstPort != c.port {
			t.Errorf("%s: port %d", c.name, in.DstPort)
		}
	}
}

// TestTapFilter: by pod, by peer, by reason, and how much.
func TestTapFilter(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	one := r.veth("a1", podA1)
	two := r.attach(AttachTUN, "a2", podA2)
	for _, c := range []struct {
		filter TapFilter
		want   []string
	}{
		{TapFilter{Container: "a2", Interface: "eth0", Addresses: addrs(podA2)},
			[]string{"from-pod a2/eth0", "dropped spoofed a2/eth0", "from-pod a1/eth0", "to-pod a2/eth0", "from-peer node-b", "to-pod a2/eth0 node-b"}},
		{TapFilter{Peer: nodeB}, []string{"from-pod a1/eth0", "to-peer a1/eth0 node-b", "from-peer node-b", "to-pod a2/eth0 node-b"}},
		{TapFilter{Reason: "spoofed"}, []string{"dropped spoofed a2/eth0"}},
		{TapFilter{Container: "a1", Interface: "eth0", Addresses: addrs(podA1), Reason: "spoofed"}, nil},
		{TapFilter{Peer: stranger}, nil},
		{TapFilter{Protocol: encap.ProtoUDP, Port: 2, Peer: nodeB}, []string{"from-pod a1/eth0", "to-peer a1/eth0 node-b", "from-peer node-b", "to-pod a2/eth0 node-b"}},
		{TapFilter{Port: 1, Reason: "spoofed"}, []string{"dropped spoofed a2/eth0"}},
		{TapFilter{Port: 3}, nil},
		{TapFilter{Protocol: encap.ProtoTCP}, nil},
	} {
		tap := r.tap(c.filter)
		two.Inject(ring.FakePacket{Data: udpPacket(podB, podA2, 1, 2, 9)}) // forged
		r.turn()
		one.Inject(fromPod(udpPacket(podA1, podA2, 1, 2, 9)))
		r.turn()
		one.Inject(fromPod(udpPacket(podA1, podB, 1, 2, 9)))
		r.turn()
		r.fromNodeB(udpPacket(podB, podA2, 1, 2, 9))
		r.turn()
		got, _ := story(tap)
		// What is forged in the name of a peer's pod shows where that peer is asked for.
		if c.filter.Peer == nodeB {
			got = slices.DeleteFunc(got, func(s string) bool { return strings.Contains(s, "a2/eth0") && !strings.Contains(s, "node-b") })
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v:\n%s", c.filter, strings.Join(got, "\n"))
		}
		tap.Close()
	}

	// What a stranger's datagram carries is not known, and it is not of the pods.
	for _, c := range []struct {
		filter TapFilter
		want   int
	}{{TapFilter{}, 1}, {TapFilter{Protocol: encap.ProtoUDP}, 0}, {TapFilter{Port: 4789}, 0}} {
		tap := r.tap(c.filter)
		r.udp[0].Inject(ring.FakeDatagram{Data: vxlanFrom(nodeB, udpPacket(podB, podA2, 1, 2, 9)), Addr: netip.AddrPortFrom(stranger, 4789)})
		r.turn()
		if got, _ := story(tap); len(got) != c.want {
			t.Errorf("%+v of a stranger's: %q", c.filter, got)
		}
		tap.Close()
	}

	tap := r.tap(TapFilter{Snap: 40})
	one.Inject(fromPod(udpPacket(podA1, podB, 1, 2, 900)))
	r.turn()
	_, records := story(tap)
	for _, o := range records {
		if len(o.Data) != 40 || o.Length < 900 {
			t.Errorf("%d of %d bytes", len(o.Data), o.Length)
		}
	}
	tap.Close()

	if _, err := r.f.Tap(TapFilter{Reason: "nonsense"}); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Error(err)
	}
	var open []*Tap
	for range maxTaps {
		open = append(open, r.tap(TapFilter{}))
	}
	if _, err := r.f.Tap(TapFilter{}); err == nil {
		t.Error("there is no end of captures")
	}
	for _, o := range open {
		o.Close()
		o.Close()
	}
	if r.f.taps.Load() != nil {
		t.Error("a tap is left")
	}
}

// TestTapFull: what finds no room is counted, forwarding goes on, and what was queued is whole, also where memory wraps.
func TestTapFull(t *testing.T) {
	r := newRig(t, testSettings(encap.KindVXLAN))
	pod := r.attach(AttachTUN, "a1", podA1)
	tap := r.tap(TapFilter{})
	big := udpPacket(podA1, podB, 1, 2, 1300)
	sent := 0
	send := func(n int) {
		for range n {
			pod.Inject(ring.FakePacket{Data: big})
			if sent++; sent%200 == 0 {
				r.turn()
				r.udp[1].Sent()
			}
		}
		r.turn()
	}
	check := func(o *TapRecord) {
		if o.Length != len(big) || !bytes.Equal(o.Data[12:], big[12:]) {
			t.Fatalf("%s: % x", o.Stage, o.Data[:40])
		}
	}
	send(2000)
	if full := tap.Read(check); full != tapBytes/len(big) || tap.Lost() != uint64(2*2000-full) {
		t.Errorf("%d were queued, %d lost", full, tap.Lost())
	}
	lost := tap.Lost()
	for range 7 {
		send(700)
		if n := tap.Read(check); n != 1400 || tap.Lost() != lost {
			t.Errorf("%d of 1400, %d lost", n, tap.Lost()-lost)
		}
	}
	if tap.Lost() == 0 {
		t.Error("nothing was lost")
	}
	if c := r.f.Counters(); c.Received["pod"] != uint64(sent) || c.Peers[0].Sent.Packets != uint64(sent) {
		t.Errorf("of %d, %d were read and %d sent", sent, c.Received["pod"], c.Peers[0].Sent.Packets)
	}
}

// TestTapLive: taps come and go under load, with a reader each; for the race detector.
func TestTapLive(t *testing.T) {
	s := testSettings(encap.KindVXLAN)
	s.Workers = 2
	r := newRig(t, s)
	pods := []*ring.FakeQueue{r.attach(AttachTUN, "a1", podA1), r.attach(AttachTUN, "a2", podA2)}
	for _, sock := range r.udp {
		sock.OnSend(func(ring.FakeDatagram) {})
	}
	r.f.Start()
	stop := make(chan struct{})
	var load, readers sync.WaitGroup
	for i, pod := range pods {
		load.Go(func() {
			ip := udpPacket([]netip.Addr{podA1, podA2}[i], podB, 1, 2, 100)
			for {
				select {
				case <-stop:
					return
				default:
					pod.Inject(ring.FakePacket{Data: ip})
					time.Sleep(10 * time.Microsecond)
				}
			}
		})
	}
	var mu sync.Mutex
	seen := 0
	for i := range 3 {
		readers.Go(func() {
			for range 10 {
				tap, err := r.f.Tap(TapFilter{Container: fmt.Sprint("a", 1+i%2), Interface: "eth0"})
				if err != nil {
					t.Error(err)
					return
				}
				n := 0
				for end := time.Now().Add(10 * time.Second); n == 0 && time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
					n += tap.Read(func(o *TapRecord) {
						if o.Length < 128 || o.Data[0] != 0x45 {
							t.Errorf("%+v", o)
						}
					})
				}
				tap.Close()
				n += tap.Read(func(*TapRecord) {})
				mu.Lock()
				seen += n
				mu.Unlock()
			}
		})
	}
	readers.Wait()
	close(stop)
	load.Wait()
	if seen < 30 {
		t.Errorf("30 taps have seen %d packets", seen)
	}
}
