package lab

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The lab is checked without Penstock first: kernel against kernel and endpoint against endpoint. What fails
// here must not be blamed on the daemon.

func TestKernelAgainstKernel(t *testing.T) {
	Require(t)
	cases := []struct {
		name string
		Config
	}{
		{"plain routing", Config{Roles: []Role{PlainRouting, PlainRouting}}},
		{"plain routing direct", Config{Roles: []Role{PlainRouting, PlainRouting}, Wiring: Direct}},
		{"plain routing cut", Config{Roles: []Role{PlainRouting, PlainRouting}, Kind: Cut}},
		{"vxlan", Config{Roles: []Role{KernelVXLAN, KernelVXLAN}}},
		{"vxlan checksum", Config{Roles: []Role{KernelVXLAN, KernelVXLAN}, OuterChecksum: true}},
		{"vxlan outer IPv6", Config{Roles: []Role{KernelVXLAN, KernelVXLAN}, Outer6: true}},
		{"vxlan routed", Config{Roles: []Role{KernelVXLAN, KernelVXLAN}, Wiring: Routed}},
		{"vxlan tso", Config{Roles: []Role{KernelVXLAN, KernelVXLAN}, Kind: TSO}},
		{"vxlan cut", Config{Roles: []Role{KernelVXLAN, KernelVXLAN}, Kind: Cut, VNI: 77, Port: 4789}},
		{"vxlan jumbo", Config{Roles: []Role{KernelVXLAN, KernelVXLAN}, MTU: 9000}},
		{"udp", Config{Roles: []Role{FlannelUDP, FlannelUDP}, Encap: "udp"}},
		{"udp outer IPv6", Config{Roles: []Role{FlannelUDP, FlannelUDP}, Encap: "udp", Outer6: true}},
		{"ipip", Config{Roles: []Role{GopacketIPIP, GopacketIPIP}, Encap: "ipip"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := New(t, c.Config)
			a, b := l.Nodes[0].AddPod(t, Veth), l.Nodes[1].AddPod(t, Veth)
			exercise(t, &a.Host, &b.Host, a.MTU)
			for _, n := range l.Nodes {
				if n.Malformed() != 0 {
					t.Errorf("%s got %d malformed outer packets", n.Name, n.Malformed())
				}
			}
		})
	}
}

// exercise runs every traffic tool between two hosts, once each.
func exercise(t *testing.T, a, b *Host, mtu int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for _, v6 := range []bool{false, true} {
		for _, dir := range [][2]*Host{{a, b}, {b, a}} {
			if err := dir[0].Ping(dir[1].Addr(v6)); err != nil {
				t.Fatal(err)
			}
		}
		r, err := TransferTCP(ctx, a, b, v6, 4<<20, 4<<20)
		if err != nil {
			t.Error(err)
		} else if r.Server != b.Name || r.SeenAs.Addr() != a.Addr(v6) {
			t.Errorf("served by %s, seen as %v", r.Server, r.SeenAs)
		}
		s, err := b.ServeUDP(0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := a.DialUDP(netip.AddrPortFrom(b.Addr(v6), s.Port()))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Echo(ctx, 100); err != nil {
			t.Error(err)
		}
		sizes := FragmentBorders(mtu, v6, 20000)
		e, err := c.EchoSizes(ctx, sizes, 8)
		if err != nil || !e.OK() {
			t.Errorf("IPv6 %v: echoes of %d sizes: %+v %v", v6, len(sizes), e, err)
		}
		if who, seen, err := c.Who(ctx); err != nil || who != b.Name || seen.Addr() != a.Addr(v6) {
			t.Errorf("who: %s %v %v", who, seen, err)
		}
		c.Close()
		s.Close()
		sink, err := b.ReceiveStream(0)
		if err != nil {
			t.Fatal(err)
		}
		to := netip.AddrPortFrom(b.Addr(v6), sink.Port())
		for _, stream := range []Stream{
			{Sizes: []int{64, 570, 1300}, Count: 3000, Burst: 16, Flows: 4, Sink: sink},
			{Segment: 500, Count: 2000, Burst: 30, Sink: sink},
			{Segment: 1200, Count: 1000, Burst: 30, Rate: 50000},
		} {
			n, err := a.SendStream(ctx, to, stream)
			if err != nil || n != stream.Count {
				t.Errorf("stream %+v: %d sent, %v", stream, n, err)
			}
		}
		if got := sink.WaitFor(6000, 20*time.Second); !got.Perfect(6000) {
			t.Errorf("IPv6 %v: streams arrived as %+v", v6, got)
		}
		sink.Close()
		// Path MTU: too big for the tunnel, with DF, is answered by somebody on the way or by the own stack.
		p, err := a.PingWith(b.Addr(v6), Echo{Size: 60000, Timeout: 20 * time.Second})
		if err != nil || p.Received != 1 {
			t.Errorf("a fragmented ping of 60000 bytes: %+v %v", p.Errors, err)
		}
		p, err = a.PingWith(b.Addr(v6), Echo{TTL: 1, Timeout: 10 * time.Second})
		if err != nil || len(p.Errors) != 1 {
			t.Errorf("a ping with TTL 1 got %d answers and the errors %v, %v", p.Received, p.Errors, err)
		}
		p, err = a.PingWith(b.Addr(v6), Echo{TOS: 0xb8, Count: 2})
		if err != nil || p.Received != 2 || p.TTL == 0 || p.TTL == 64 {
			t.Errorf("ping with a TOS: %+v %v", p, err)
		}
	}
	for _, c := range []Throughput{{}, {Proto: "udp"}} {
		c.Duration = 200 * time.Millisecond
		r, err := Measure(ctx, a, b, c)
		if err != nil {
			t.Error(err)
		}
		t.Logf("%s: %.2f Gbit/s, %.0f datagrams/s", c.Proto, r.Bits/1e9, r.Packets)
	}
	for name, ns := range map[string]*NS{"a": a.NS, "b": b.NS} {
		ext, err := ns.TcpExt()
		snmp, err2 := ns.Snmp()
		if err != nil || err2 != nil || ext["TCPHPHits"] == 0 && ext["TCPPureAcks"] == 0 || snmp["Udp.InDatagrams"] == 0 && snmp["Udp.OutDatagrams"] == 0 || snmp["Icmp6.InMsgs"] == 0 {
			t.Errorf("counters of %s: %v %v %v", name, err, err2, snmp)
		}
	}
}

func TestUnderlayKinds(t *testing.T) {
	Require(t)
	ctx := t.Context()
	for _, wiring := range []Wiring{Bridged, Direct} {
		for _, k := range []Kind{Whole, TSO, Cut} {
			t.Run(fmt.Sprint(wiring, k), func(t *testing.T) {
				l := New(t, Config{Roles: []Role{PlainRouting, PlainRouting}, Kind: k, Wiring: wiring})
				a, b := &l.Nodes[0].Host, &l.Nodes[1].Host
				// What leaves a: read on the wire beside the device of b.
				var bigTCP, bigUDP atomic.Int64 // apart: on a busy machine the capture is read long after a transfer is over
				c, err := b.Capture("eth0", func(f []byte) bool {
					if ip := IPPayload(f); len(f) > 1514 && len(ip) >= 20 && ip[0]>>4 == 4 {
						switch ip[9] {
						case unix.IPPROTO_TCP:
							bigTCP.Add(1)
						case unix.IPPROTO_UDP:
							bigUDP.Add(1)
						}
					}
					return false
				})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := TransferTCP(ctx, a, b, false, 8<<20, 0); err != nil {
					t.Fatal(err)
				}
				sink, err := b.ReceiveStream(0)
				if err != nil {
					t.Fatal(err)
				}
				defer sink.Close()
				if _, err := a.SendStream(ctx, netip.AddrPortFrom(b.IP4, sink.Port()), Stream{Segment: 1000, Count: 640, Rate: 100000}); err != nil {
					t.Fatal(err)
				}
				sink.WaitFor(640, time.Second)
				time.Sleep(20 * time.Millisecond)
				for end := time.Now().Add(5 * time.Second); (bigTCP.Load() == 0 || k == Whole && bigUDP.Load() == 0) && time.Now().Before(end); {
					time.Sleep(5 * time.Millisecond)
				}
				tcp, udp := bigTCP.Load(), bigUDP.Load()
				c.Close()
				t.Logf("superframes at the receiver: TCP %d, UDP runs %d", tcp, udp)
				if tcp == 0 {
					t.Error("no TCP superframe arrives, neither passed nor coalesced")
				}
				if want := k == Whole; (udp > 0) != want {
					t.Errorf("UDP runs that pass uncut: %d", udp)
				}
				// On cut the sender's kernel makes single segments; they are counted where nothing coalesces yet.
				before, err := a.LinkStats("eth0")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := TransferTCP(ctx, a, b, false, 8<<20, 0); err != nil {
					t.Fatal(err)
				}
				after, err := a.LinkStats("eth0")
				if err != nil {
					t.Fatal(err)
				}
				perFrame := float64(after.TxBytes-before.TxBytes) / float64(after.TxPackets-before.TxPackets)
				if cut := perFrame < 1515; cut != (k == Cut) {
					t.Errorf("the sender's device counts %.0f bytes a frame", perFrame)
				}
			})
		}
	}
}
