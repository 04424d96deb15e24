package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables/expr"
	"github.com/penstock-net/penstock/bench/lab"
)

// markCE lets the router between the nodes mark congestion on every tunnel packet, as an AQM under load would.
func markCE(t *testing.T, l *lab.Lab, v6 bool, match []expr.Any) {
	t.Helper()
	p := expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 0, Len: 2}
	if v6 {
		mangle(t, l, true, match, p, []byte{0xff, 0xcf}, []byte{0x00, 0x30}) // version, traffic class, flow label
		return
	}
	p.CsumType, p.CsumOffset = expr.CsumTypeInet, 10
	mangle(t, l, false, match, p, []byte{0xff, 0xfc}, []byte{0x00, 0x03})
}

// tos reads TOS or traffic class of an IP packet.
func tos(ip []byte) int {
	if ip[0]>>4 == 4 {
		return int(ip[1])
	}
	return int(ip[0]&15)<<4 | int(ip[1])>>4
}

// TestInteropECN: marks that a router puts on the outer header reach the pods, both ways between Penstock and a kernel
// vxlan node; a packet that cannot carry the mark is dropped (RFC 6040). ECN TCP keeps its superframes.
func TestInteropECN(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, c := range []lab.Config{{Kind: lab.Whole}, {Kind: lab.Cut, Outer6: true}, {Kind: lab.Cut}, {Kind: lab.Whole, Outer6: true}} {
		if c.Outer6 != (c.Kind == lab.Cut) && !matrix() {
			continue
		}
		t.Run(c.Kind.String()+" outer "+family(c.Outer6), func(t *testing.T) {
			c.Roles, c.Wiring = []lab.Role{lab.Penstock, lab.KernelVXLAN}, lab.Routed
			l := lab.New(t, c)
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			av, at, kp := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Plain)
			for _, p := range []*lab.Pod{av, at, kp} {
				p.Sysctl(t, "net.ipv4.tcp_ecn", "1")
			}
			for _, p := range []*lab.Pod{av, at} {
				pingBoth(t, &p.Host, &kp.Host)
				// Unmarked, the field crosses as it is, and so does DSCP inside.
				for _, mark := range []int{1, 0xba} {
					arrivesAs(t, &p.Host, &kp.Host, mark, mark)
					arrivesAs(t, &kp.Host, &p.Host, mark, mark)
				}
			}
			markCE(t, l, c.Outer6, toUDPPort(8472))
			for _, p := range []*lab.Pod{av, at} {
				for _, mark := range []int{1, 2, 0xba} {
					arrivesAs(t, &p.Host, &kp.Host, mark, mark|3)
					arrivesAs(t, &kp.Host, &p.Host, mark, mark|3)
				}
				for _, v6 := range []bool{false, true} {
					before := a.Daemon.AtRest(t)
					r, err := kp.PingWith(p.Addr(v6), lab.Echo{Count: 3, Timeout: 100 * time.Millisecond})
					if err != nil || r.Received != 0 {
						t.Errorf("marked packets without ECN capability: %d of %d were answered, %v", r.Received, r.Sent, err)
					}
					a.Daemon.AssertDrops(t, before, map[string]uint64{"ecn": 3}, "multicast", "answered")
				}
			}
			unmangle(t, l)
			// TCP: the handshake passes unmarked (SYNs are not ECN capable), then every data segment is marked.
			markCE(t, l, c.Outer6, append(toUDPPort(8472), ect(c.Outer6)...))
			for _, p := range []*lab.Pod{av, at} {
				for _, v6 := range []bool{false, true} {
					for _, way := range [][2]*lab.Host{{&p.Host, &kp.Host}, {&kp.Host, &p.Host}} {
						marked := congestionMarks(t, way[1], v6)
						transfer(t, way[0], way[1], v6, 256<<10, 0)
						if now := congestionMarks(t, way[1], v6); now <= marked {
							t.Errorf("tcp %s → %s %s: no mark arrived", way[0].Name, way[1].Name, family(v6))
						}
					}
				}
			}
			unmangle(t, l)
			conserved(t, l)
		})
	}
}

// ect matches packets whose sender is ECN capable.
func ect(v6 bool) []expr.Any {
	p, mask := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 1, Len: 1}, byte(3)
	if v6 {
		mask = 0x30
	}
	return []expr.Any{p,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}}}
}

// congestionMarks is how many packets with CE a host's stack has received.
func congestionMarks(t *testing.T, h *lab.Host, v6 bool) uint64 {
	t.Helper()
	counters, err := h.TcpExt()
	key := "InCEPkts"
	if v6 {
		counters, err = h.Snmp()
		key = "Ip6.InCEPkts"
	}
	if err != nil {
		t.Fatal(err)
	}
	n, known := counters[key]
	if !known {
		t.Fatalf("the kernel of %s has no counter %s", h.Name, key)
	}
	return n
}

// arrivesAs sends datagrams with a TOS from a pod to a pod and expects to see another one arrive.
func arrivesAs(t *testing.T, from, to *lab.Host, sent, want int) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		sink, err := to.ReceiveStream(0)
		if err != nil {
			t.Fatal(err)
		}
		source := from.Addr(v6)
		seen, err := to.Capture("eth0", func(frame []byte) bool {
			ip := lab.IPPayload(frame)
			switch {
			case ip == nil || (ip[0]>>4 == 6) != v6:
				return false
			case v6:
				return ip[6] == 17 && netip.AddrFrom16([16]byte(ip[8:24])) == source
			}
			return ip[9] == 17 && netip.AddrFrom4([4]byte(ip[12:16])) == source
		})
		if err != nil {
			t.Fatal(err)
		}
		const n = 3
		if _, err := from.SendStream(within(t), netip.AddrPortFrom(to.Addr(v6), sink.Port()), lab.Stream{Count: n, TOS: sent}); err != nil {
			t.Error(err)
		}
		if c := sink.WaitFor(n, patience); !c.Perfect(n) {
			t.Errorf("%s → %s %s TOS %#x: %+v", from.Name, to.Name, family(v6), sent, c)
		}
		frames := seen.Wait(1, patience)
		for _, f := range frames {
			if got := tos(lab.IPPayload(f)); got != want {
				t.Errorf("%s → %s %s: TOS %#x arrived as %#x, and should have as %#x", from.Name, to.Name, family(v6), sent, got, want)
				break
			}
		}
		if len(frames) == 0 {
			t.Errorf("%s → %s %s TOS %#x: nothing seen", from.Name, to.Name, family(v6), sent)
		}
		seen.Close()
		sink.Close()
	}
}
