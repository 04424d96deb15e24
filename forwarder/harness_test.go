package forwarder

import (
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
	"github.com/penstock-net/penstock/table/feed"
)

// TestMain gives tests the threads that the daemon has: a worker that dozes keeps its own.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(5, runtime.GOMAXPROCS(0)))
	os.Exit(m.Run())
}

// bench is a forwarder on fakes, whose workers do not run: a test turns them by
// hand, so that what happens is in its order.
type rig struct {
	t     testing.TB
	f     *Forwarder
	hosts []*ring.FakeQueue
	pods  map[string]*ring.FakeQueue // by device
	udp   []*ring.FakeSocket         // in the order of opening
	raw   []*ring.FakeSocket
}

var (
	nodeA, nodeB, stranger = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.99")
	podA1, podA2           = netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.1.6")
	podB                   = netip.MustParseAddr("10.244.2.5")
	hostAddr               = netip.MustParseAddr("10.244.1.0")
	podA1v6, podBv6        = netip.MustParseAddr("fd00:10:244:1::5"), netip.MustParseAddr("fd00:10:244:2::5")
	outsideAddr            = netip.MustParseAddr("203.0.113.10")
	macA1                  = encap.MAC{2, 0, 0, 0, 1, 5}
)

func testSettings(kind encap.Kind) Settings {
	return Settings{Address: nodeA,
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
		Cluster:  []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Encap:    kind, Port: kind.DefaultPort(), VNI: 1, UnderlayMTU: 1500, Workers: 1, HostDevice: "penstock0",
		Offload:   Offload{UDPSegment: true, UDPGRO: true, TUNOffload: true, MergeWrites: true},
		PodBuffer: 2 << 20, TotalBuffer: 512 << 20, Log: slog.New(slog.DiscardHandler)}
}

func newRig(t testing.TB, s Settings) *rig {
	t.Helper()
	return newRigOf(t, s, feed.Peer{Name: "node-b", Address: nodeB, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:10:244:2::/64")}})
}

// newRigOf is a node with this one peer.
func newRigOf(t testing.TB, s Settings, p feed.Peer) *rig {
	t.Helper()
	r := &rig{t: t, pods: map[string]*ring.FakeQueue{}}
	all := ring.OffloadCSUM | ring.OffloadTSO4 | ring.OffloadTSO6 | ring.OffloadUSO4 | ring.OffloadUSO6
	env := environment{
		probe: func() []ring.Capability {
			var cs []ring.Capability
			for _, n := range []string{ring.CapTUN, ring.CapTUNOffload, ring.CapTUNUSO, ring.CapPacketV2, ring.CapUDPSegment, ring.CapUDPGRO, ring.CapRawIPIP} {
				cs = append(cs, ring.Capability{Name: n, Found: true})
			}
			return cs
		},
		openUDP: func(c ring.UDPConfig) (ring.Socket, error) {
			s := ring.NewFakeSocket(c.Local)
			r.udp = append(r.udp, s)
			return s, nil
		},
		openIPIP: func(c ring.RawConfig) (ring.Socket, error) {
			s := ring.NewFakeSocket(netip.AddrPortFrom(c.Local, 0))
			r.raw = append(r.raw, s)
			return s, nil
		},
		openPacket: func(c ring.PacketConfig) (ring.Port, func() (ring.Stats, error), error) {
			q := ring.NewFakeQueue()
			r.pods[c.Device] = q
			return q, nil, nil
		},
		createTUN: func(c ring.TUNConfig, offload bool) (ring.Port, ring.Offload, error) {
			q := ring.NewFakeQueue()
			r.pods[c.Name] = q
			if !offload {
				return q, 0, nil
			}
			return q, all, nil
		},
		openHost: func(_ string, _, n int, offload bool) (ps []ring.Port, o ring.Offload, err error) {
			for range n {
				q := ring.NewFakeQueue()
				r.hosts = append(r.hosts, q)
				ps = append(ps, q)
			}
			if offload {
				o = all
			}
			return ps, o, nil
		},
	}
	f, err := newForwarder(s, env)
	if err != nil {
		t.Fatal(err)
	}
	r.f = f
	t.Cleanup(func() { f.Stop(t.Context()) })
	r.peers(p)
	return r
}

func (r *rig) peers(ps ...feed.Peer) {
	r.t.Helper()
	if err := r.f.SetPeers(ps); err != nil {
		r.t.Fatal(err)
	}
}

// veth attaches the pod with these addresses; its device is called name.
func (r *rig) veth(name string, addrs ...netip.Addr) *ring.FakeQueue {
	return r.attach(AttachVeth, name, addrs...)
}

func (r *rig) attach(kind, name string, addrs ...netip.Addr) *ring.FakeQueue {
	r.t.Helper()
	spec := PortSpec{Container: name, Interface: "eth0", Attach: kind, Device: name, Addresses: addrs}
	if kind == AttachVeth {
		spec.MAC = macA1.String()
	}
	if _, err := r.f.Attach(spec); err != nil {
		r.t.Fatal(err)
	}
	return r.pods[name]
}

// turn lets every worker serve everything it has, until nothing moves.
func (r *rig) turn() {
	for range 4 {
		for _, w := range r.f.workers {
			for _, p := range append([]*port{w.host}, w.ports...) {
				if p != nil && (p.throttle == nil || !p.throttle.paused) {
					w.begin()
					w.servePort(p, false)
					w.ledger.publish(&w.tally)
				}
			}
			w.serveAlarms(0)
			for _, l := range w.lanes {
				for i := 0; l != nil && i < l.receiving; i++ {
					w.begin()
					w.serveLane(l, i, true, false)
					w.ledger.publish(&w.tally)
				}
			}
		}
	}
}

// balance is both sides of the conservation law: what came in or was made, and what went out or was dropped.
func balance(c Counters) (in, out uint64) {
	for _, n := range c.Received {
		in += n
	}
	for _, n := range c.Generated {
		in += n
	}
	for _, v := range c.Forwarded {
		out += v.Packets
	}
	for _, n := range c.Dropped {
		out += n
	}
	return in, out
}

// check asserts the conservation law and that exactly these frames were dropped.
func (r *rig) check(drops map[Reason]uint64) {
	r.t.Helper()
	c := r.f.Counters()
	in, out := balance(c)
	if in != out {
		r.t.Errorf("received + generated = %d, forwarded + dropped = %d: %+v", in, out, c)
	}
	for _, reason := range Reasons() {
		if got := c.Dropped[reason.String()]; got != drops[reason] {
			r.t.Errorf("dropped as %s: %d, want %d", reason, got, drops[reason])
		}
	}
	for _, w := range r.f.workers {
		for i := range w.merges.slots {
			if w.merges.slots[i].box != nil {
				r.t.Errorf("merge %d of worker %d is open between batches", i, w.index)
			}
		}
	}
}

// udpPacket is an IP packet with a UDP datagram of n payload bytes.
func udpPacket(src, dst netip.Addr, sport, dport uint16, n int, edit ...func(*layers.IPv4)) []byte {
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(i)
	}
	u := &layers.UDP{SrcPort: layers.UDPPort(sport), DstPort: layers.UDPPort(dport)}
	return ipPacket(src, dst, layers.IPProtocolUDP, u, payload, edit...)
}

func tcpPacket(src, dst netip.Addr, seq uint32, n int, edit ...func(*layers.TCP)) []byte {
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(int(seq) + i)
	}
	tc := &layers.TCP{SrcPort: 40000, DstPort: 80, Seq: seq, Ack: 1, ACK: true, Window: 1000}
	for _, e := range edit {
		e(tc)
	}
	return ipPacket(src, dst, layers.IPProtocolTCP, tc, payload)
}

func ipPacket(src, dst netip.Addr, proto layers.IPProtocol, l4 gopacket.SerializableLayer, payload []byte, edit ...func(*layers.IPv4)) []byte {
	var network gopacket.SerializableLayer
	if src.Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice(), Flags: layers.IPv4DontFragment}
		for _, e := range edit {
			e(ip)
		}
		network = ip
		if c, ok := l4.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			c.SetNetworkLayerForChecksum(ip)
		}
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		network = ip
		if c, ok := l4.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			c.SetNetworkLayerForChecksum(ip)
		}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, network, l4, gopacket.Payload(payload)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// fromPod is the packet as a veth pod sends it: behind an Ethernet header.
func fromPod(ip []byte) ring.FakePacket {
	t := byte(0x00)
	kind := []byte{0x08, t}
	if ip[0]>>4 == 6 {
		kind = []byte{0x86, 0xdd}
	}
	b := append([]byte{}, GatewayMAC[:]...)
	b = append(b, macA1[:]...)
	b = append(b, kind...)
	return ring.FakePacket{Data: append(b, ip...)}
}

// vxlanFrom is the packet as a vxlan peer sends it to node A.
func vxlanFrom(from netip.Addr, ip []byte) []byte {
	h := encap.NewVXLANHeader(1, encap.VTEPMAC(nodeA, 1), encap.VTEPMAC(from, 1))
	b := make([]byte, h.Len(), h.Len()+len(ip))
	h.Put(b, ip[0]>>4 == 6)
	return append(b, ip...)
}

func parse(t testing.TB, b []byte) encap.Packet {
	t.Helper()
	var p encap.Packet
	if f := encap.Parse(b, &p); f != encap.OK {
		t.Fatalf("packet does not parse: %s (% x)", f, b[:min(len(b), 60)])
	}
	return p
}

// await waits for what another goroutine does.
func await(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}
