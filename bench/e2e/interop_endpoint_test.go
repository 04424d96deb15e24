package e2e

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestInteropEndpoints: ipip against an endpoint that builds and parses with gopacket over raw sockets (this machine's
// kernels may lack the ipip device), udp against one that speaks flannel's format; neither shares code with Penstock.
func TestInteropEndpoints(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, c := range []lab.Config{
		{Encap: "ipip", Kind: lab.Whole}, {Encap: "ipip", Kind: lab.Cut},
		{Encap: "udp", Kind: lab.Whole}, {Encap: "udp", Kind: lab.Cut}, {Encap: "udp", Kind: lab.Cut, Outer6: true},
		{Encap: "udp", Kind: lab.Whole, Outer6: true}, {Encap: "ipip", Kind: lab.TSO}, {Encap: "udp", Kind: lab.TSO},
		{Encap: "udp", Kind: lab.Whole, Port: 9999},
	} {
		if !matrix() && (c.Kind == lab.TSO || c.Port != 0 || c.Outer6 && c.Kind == lab.Whole) {
			continue
		}
		name := c.Encap + " " + c.Kind.String()
		if c.Outer6 {
			name += " outer IPv6"
		}
		if c.Port != 0 {
			name += " port 9999"
		}
		t.Run(name, func(t *testing.T) {
			role := lab.FlannelUDP
			if c.Encap == "ipip" {
				role = lab.GopacketIPIP
			}
			c.Roles = []lab.Role{lab.Penstock, role}
			l := lab.New(t, c)
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			ep := b.AddPod(t, lab.Plain)
			pods := []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)}
			wire, err := b.Capture("eth0", nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range pods {
				pingBoth(t, &p.Host, &ep.Host)
				for _, v6 := range []bool{false, true} {
					// One hop a node, both ways: the kernel's at b, ours at a.
					for _, way := range [][2]*lab.Host{{&p.Host, &ep.Host}, {&ep.Host, &p.Host}} {
						r, err := way[0].PingWith(way[1].Addr(v6), lab.Echo{TOS: 0, Timeout: patience})
						if err != nil || r.Received != 1 || r.TTL != 62 {
							t.Errorf("ping %s → %s: %+v %v; expected TTL 62 across two nodes", way[0].Name, way[1].Addr(v6), r, err)
						}
					}
				}
			}
			for _, v6 := range []bool{false, true} {
				if err := a.Ping(ep.Addr(v6)); err != nil {
					t.Error(err)
				}
				for _, p := range pods {
					if err := b.Ping(p.Addr(v6)); err != nil {
						t.Error(err)
					}
				}
			}
			judgeWire(t, l, wire.Frames())
			wire.Close()

			size := int64(1 << 20) // these endpoints move one packet a system call
			if matrix() {
				size = 16 << 20
			}
			for _, p := range pods {
				for _, v6 := range []bool{false, true} {
					transfer(t, &p.Host, &ep.Host, v6, size, size)
					echoes(t, &p.Host, &ep.Host, v6, lab.FragmentBorders(p.MTU, v6, 6000))
					for _, way := range [][2]*lab.Host{{&p.Host, &ep.Host}, {&ep.Host, &p.Host}} {
						messages(t, way[0], way[1], v6, lab.Stream{Segment: 500, Count: 192})
						messages(t, way[0], way[1], v6, lab.Stream{Segment: 1200, Count: 192})
					}
				}
				setMTU(t, p, 2000)
				for _, v6 := range []bool{false, true} {
					tooBig(t, &p.Host, &ep.Host, v6, a.PodMTU(), a.HostAddr(v6))
				}
				setMTU(t, p, a.PodMTU())
				forgetPaths(t, p)
			}
			if n := b.Malformed(); n != 0 {
				t.Errorf("the endpoint could not parse %d packets", n)
			}
			conserved(t, l)
		})
	}
}

// judgeWire holds what crossed the underlay between pods against design section 5: ipip is protocol 4 with IPv4 inside
// and 41 with IPv6; udp is a bare IP packet, one common port at both ends; DF is set outside, and ours is not longer
// than it says.
func judgeWire(t *testing.T, l *lab.Lab, frames [][]byte) {
	t.Helper()
	seen := map[string]int{}
	a := l.Nodes[0].Underlay()
	for _, f := range frames {
		ip := lab.IPPayload(f)
		if ip == nil {
			continue
		}
		var proto byte
		var from, to netip.Addr
		payload := ip[20:]
		if ip[0]>>4 == 4 {
			proto, from, to = ip[9], netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
		} else {
			proto, from, to = ip[6], netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
			payload = ip[40:]
		}
		if from != a && to != a || proto == 58 || proto == 1 {
			continue // neighbour discovery of the nodes
		}
		way := "in"
		if from == a {
			way = "out"
			if ip[0]>>4 == 4 && ip[6]&0x40 == 0 {
				t.Errorf("outer packet without DF: %x", ip[:20])
			}
		}
		switch {
		case l.Config.Encap == "udp" && proto == 17:
			for _, at := range []int{0, 2} {
				if port := binary.BigEndian.Uint16(payload[at:]); port != l.Config.Port {
					t.Errorf("outer port %d, expected %d at both ends", port, l.Config.Port)
				}
			}
			payload = payload[8:]
		case l.Config.Encap == "ipip" && (proto == 4 || proto == 41):
			if (payload[0]>>4 == 6) != (proto == 41) {
				t.Errorf("protocol %d with an inner packet of version %d", proto, payload[0]>>4)
			}
		default:
			t.Errorf("protocol %d between the nodes: %x", proto, ip[:min(len(ip), 60)])
			continue
		}
		if v := payload[0] >> 4; v != 4 && v != 6 {
			t.Errorf("no IP packet inside: %x", payload[:min(len(payload), 20)])
		}
		seen[way+" "+family(payload[0]>>4 == 6)]++
	}
	for _, w := range []string{"in IPv4", "in IPv6", "out IPv4", "out IPv6"} {
		if seen[w] < 2 {
			t.Errorf("on the wire were %v; too few of %s", seen, w)
		}
	}
}
