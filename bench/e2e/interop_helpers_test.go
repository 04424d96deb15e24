package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

// patience bounds a single exchange. It is long because other work may hold the machine; it never decides a result.
const patience = 60 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// family names an address family in messages.
func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// conserved ends a test: nothing that a daemon has read may be without an end.
func conserved(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, n := range l.Nodes {
		if n.Daemon != nil {
			n.Daemon.AssertConserved(t)
		}
	}
}

// pingBoth pings in both directions and families.
func pingBoth(t *testing.T, a, b *lab.Host) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		if err := a.Ping(b.Addr(v6)); err != nil {
			t.Error(err)
		}
		if err := b.Ping(a.Addr(v6)); err != nil {
			t.Error(err)
		}
	}
}

// transfer moves bytes with matching SHA-256 up (a → b) and down.
func transfer(t *testing.T, a, b *lab.Host, v6 bool, up, down int64) {
	t.Helper()
	r, err := lab.TransferTCP(within(t), a, b, v6, up, down)
	if err != nil {
		t.Errorf("%s: %v", family(v6), err)
		return
	}
	t.Logf("tcp %s → %s %s: %d up, %d down, %.2f Gbit/s, %d retransmits", a.Name, b.Name, family(v6), up, down, r.Rate()/1e9, r.Retransmits)
}

// echoes sends datagrams of many sizes and expects each back intact.
func echoes(t *testing.T, a, b *lab.Host, v6 bool, sizes []int) {
	t.Helper()
	s, err := b.ServeUDP(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := a.DialUDP(netip.AddrPortFrom(b.Addr(v6), s.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e, err := c.EchoSizes(within(t), sizes, 4)
	if err != nil || !e.OK() {
		t.Errorf("echoes %s ↔ %s %s: %+v %v", a.Name, b.Name, family(v6), e, err)
	}
}

// messages sends count numbered messages in portions that the sink must have whole before the next one leaves, so
// that no queue overflows however slow the machine is: whatever is missing is a fault. segment > 0 uses UDP_SEGMENT.
func messages(t *testing.T, a, b *lab.Host, v6 bool, s lab.Stream) {
	t.Helper()
	sink, err := b.ReceiveStream(0)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	to := netip.AddrPortFrom(b.Addr(v6), sink.Port())
	count, portion := s.Count, 3*64
	if s.Segment == 0 {
		portion = 96 // the packet ring of a veth port has 128 slots
	}
	ctx := within(t)
	for sent := 0; sent < count; sent += s.Count {
		s.Count = min(portion, count-sent)
		if _, err := a.SendStream(ctx, to, s); err != nil {
			t.Error(err)
			return
		}
		if c := sink.WaitFor(sent+s.Count, patience); !c.Perfect(sent + s.Count) {
			t.Errorf("messages %s → %s %s segment %d: of %d sent: %+v", a.Name, b.Name, family(v6), s.Segment, sent+s.Count, c)
			return
		}
	}
}

// averageFrame runs fn and returns the mean length of the frames that n's uplink received and sent meanwhile.
func averageFrame(t *testing.T, n *lab.Node, fn func()) (rx, tx float64) {
	t.Helper()
	before, err := n.LinkStats("eth0")
	if err != nil {
		t.Fatal(err)
	}
	fn()
	after, err := n.LinkStats("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return float64(after.RxBytes-before.RxBytes) / float64(after.RxPackets-before.RxPackets),
		float64(after.TxBytes-before.TxBytes) / float64(after.TxPackets-before.TxPackets)
}

// mangle lets the fabric, a router (Wiring: lab.Routed), change what it forwards: b of every packet for which match
// holds is ANDed with and, XORed with xor. Outer checksums follow for the IPv4 header only.
func mangle(t *testing.T, l *lab.Lab, v6 bool, match []expr.Any, p expr.Payload, and, xor []byte) {
	t.Helper()
	fam := nftables.TableFamilyIPv4
	if v6 {
		fam = nftables.TableFamilyIPv6
	}
	err := l.Fabric.Nftables(func(c *nftables.Conn) error {
		table := c.AddTable(&nftables.Table{Name: "mangle", Family: fam})
		chain := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityMangle,
		})
		read, write := p, p
		read.OperationType, read.DestRegister = expr.PayloadLoad, 1
		read.CsumType, read.CsumOffset, read.CsumFlags = 0, 0, 0
		write.OperationType, write.SourceRegister = expr.PayloadWrite, 1
		exprs := append(append([]expr.Any{}, match...), &read,
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: p.Len, Mask: and, Xor: xor}, &expr.Counter{}, &write)
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		return nil
	})
	if err != nil {
		t.Fatalf("mangle in the fabric: %v", err)
	}
}

// unmangle takes the fabric's changes away.
func unmangle(t *testing.T, l *lab.Lab) {
	t.Helper()
	err := l.Fabric.Nftables(func(c *nftables.Conn) error { c.FlushRuleset(); return nil })
	if err != nil {
		t.Fatal(err)
	}
}

// toUDPPort and toTCPPort match the outer destination port.
func toUDPPort(port uint16) []expr.Any { return toPort(unix.IPPROTO_UDP, port) }
func toTCPPort(port uint16) []expr.Any { return toPort(unix.IPPROTO_TCP, port) }

func toPort(proto byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
	}
}
