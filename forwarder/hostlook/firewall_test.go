package hostlook

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

func vxlanPacket(out bool) Packet {
	p := Packet{Tunnel: hostnet.Tunnel{Proto: unix.IPPROTO_UDP, Port: 8472}, Source: netip.MustParseAddr("192.0.2.2"), Dst: netip.MustParseAddr("192.0.2.1"), Device: "eth0", Out: out}
	return p
}

// rules of one packet's worth.
func l4(proto byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{proto}}}
}

func dport(port uint16) []expr.Any {
	return append(l4(17), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, &expr.Cmp{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)})
}

func ctState(bits uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func to(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

// TestFirewall: a walk through real nft chains ends as the kernel's would for a tunnel's packet.
func TestFirewall(t *testing.T) {
	nstest.New(t).Do(func() {
		c, err := hostnet.OpenNFT()
		if err != nil {
			t.Fatal(err)
		}
		drop := nftables.ChainPolicyDrop
		for _, x := range []struct {
			name         string
			policyDrop   bool
			input, other [][]expr.Any
			drops, may   bool
		}{
			{name: "nothing"},
			{name: "policy", policyDrop: true, drops: true},
			{name: "policy, accepted", policyDrop: true, input: [][]expr.Any{append(dport(8472), verdict(expr.VerdictAccept)...)}},
			{name: "policy, another port", policyDrop: true, input: [][]expr.Any{append(dport(8473), verdict(expr.VerdictAccept)...)}, drops: true},
			{name: "policy, untracked", policyDrop: true, input: [][]expr.Any{append(ctState(64), verdict(expr.VerdictAccept)...)}},
			{name: "policy, established only", policyDrop: true, input: [][]expr.Any{append(ctState(2|4), verdict(expr.VerdictAccept)...)}, drops: true},
			{name: "drop of the port", input: [][]expr.Any{append(dport(8472), verdict(expr.VerdictDrop)...)}, drops: true},
			{name: "drop of TCP", input: [][]expr.Any{append(l4(6), verdict(expr.VerdictDrop)...)}},
			{name: "reject", input: [][]expr.Any{append(l4(17), &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: 1})}, drops: true},
			{name: "jump, accepted there", policyDrop: true, input: [][]expr.Any{to("other")}, other: [][]expr.Any{append(dport(8472), verdict(expr.VerdictAccept)...)}},
			{name: "jump, dropped there", input: [][]expr.Any{to("other")}, other: [][]expr.Any{verdict(expr.VerdictDrop)}, drops: true},
			{name: "jump, returned before", input: [][]expr.Any{to("other")}, other: [][]expr.Any{append(dport(8472), verdict(expr.VerdictReturn)...), verdict(expr.VerdictDrop)}},
			{name: "jump, others returned", input: [][]expr.Any{to("other")}, other: [][]expr.Any{append(dport(53), verdict(expr.VerdictReturn)...), verdict(expr.VerdictDrop)}, drops: true},
			{name: "goto, dropped behind it", input: [][]expr.Any{goTo("other"), verdict(expr.VerdictDrop)}, other: [][]expr.Any{append(dport(53), verdict(expr.VerdictDrop)...)}},
			{name: "goto, accepted behind it", policyDrop: true, input: [][]expr.Any{goTo("other"), verdict(expr.VerdictAccept)}, drops: true},
			{name: "goto, dropped there", input: [][]expr.Any{goTo("other"), verdict(expr.VerdictAccept)}, other: [][]expr.Any{verdict(expr.VerdictDrop)}, drops: true},
			{name: "goto of another port", input: [][]expr.Any{append(dport(53), goTo("other")...), verdict(expr.VerdictDrop)}, drops: true},
			{name: "jump, dropped behind it", input: [][]expr.Any{to("other"), verdict(expr.VerdictDrop)}, drops: true},
			{name: "a source port", input: [][]expr.Any{append(l4(17), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2}, &expr.Cmp{Register: 1, Data: []byte{1, 2}}, &expr.Verdict{Kind: expr.VerdictDrop})}, may: true},
			{name: "a source address", input: [][]expr.Any{{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{2}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{192, 0, 2, 2}}, &expr.Verdict{Kind: expr.VerdictDrop}}}},
		} {
			table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "filter"}
			c.AddTable(table)
			in := &nftables.Chain{Name: "input", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter}
			if x.policyDrop {
				in.Policy = &drop
			}
			other := c.AddChain(&nftables.Chain{Name: "other", Table: table})
			c.AddChain(in)
			for _, e := range x.other {
				c.AddRule(&nftables.Rule{Table: table, Chain: other, Exprs: e})
			}
			for _, e := range x.input {
				c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: e})
			}
			if err := c.Flush(); err != nil {
				t.Errorf("%s: %v", x.name, err)
				continue
			}
			v, err := AskFirewall(vxlanPacket(false))
			if err != nil || (len(v.Drops) > 0) != x.drops || (len(v.May) > 0) != x.may {
				t.Errorf("%s: %+v %v, want drops %v, may %v", x.name, v, err, x.drops, x.may)
			}
			if v, err := AskFirewall(vxlanPacket(true)); err != nil || len(v.Drops)+len(v.May) > 0 {
				t.Errorf("%s: what leaves: %+v %v", x.name, v, err)
			}
			c.DelTable(table)
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestFirewallAtDevice: what a chain at a device's ingress or egress drops it may drop, as nobody says which device's, and our own is none.
func TestFirewallAtDevice(t *testing.T) {
	nstest.New(t).Do(func() {
		c, err := hostnet.OpenNFT()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			family nftables.TableFamily
			name   string
			hook   nftables.ChainHook
			rule   []expr.Any
			in     string
			out    string
		}{
			{nftables.TableFamilyNetdev, "edge", unix.NF_NETDEV_INGRESS, append(dport(8472), verdict(expr.VerdictDrop)...), "rule 1 of chain c of nft table netdev edge", ""},
			{nftables.TableFamilyNetdev, "edge", unix.NF_NETDEV_EGRESS, append(dport(8472), verdict(expr.VerdictDrop)...), "", "rule 1 of chain c of nft table netdev edge"},
			{nftables.TableFamilyNetdev, "edge", unix.NF_NETDEV_INGRESS, append(dport(53), verdict(expr.VerdictDrop)...), "", ""},
			{nftables.TableFamilyNetdev, hostnet.TableName, unix.NF_NETDEV_INGRESS, verdict(expr.VerdictDrop), "", ""},
			{nftables.TableFamilyINet, "edge", inetIngress, verdict(expr.VerdictDrop), "rule 1 of chain c of nft table inet edge", ""},
		} {
			table := c.AddTable(&nftables.Table{Family: x.family, Name: x.name})
			ch := c.AddChain(&nftables.Chain{Name: "c", Table: table, Type: nftables.ChainTypeFilter, Hooknum: &x.hook, Priority: nftables.ChainPriorityFilter, Device: "lo"})
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: x.rule})
			if err := c.Flush(); err != nil {
				t.Errorf("%+v: %v", x, err)
				continue
			}
			for out, want := range map[bool]string{false: x.in, true: x.out} {
				if v, err := AskFirewall(vxlanPacket(out)); err != nil || len(v.Drops) > 0 || strings.Join(v.May, "; ") != want {
					t.Errorf("%+v: out %v: %+v %v, want %q", x, out, v, err, want)
				}
			}
			c.DelTable(table)
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestFirewallMatches: those of iptables-nft, which this kernel may lack.
func TestFirewallMatches(t *testing.T) {
	any := [2]uint16{0, 65535}
	w := &walk{values: vxlanPacket(false).values()}
	ipip := &walk{values: Packet{Tunnel: hostnet.Tunnel{Proto: unix.IPPROTO_IPIP}, Source: netip.MustParseAddr("192.0.2.2"), Dst: netip.MustParseAddr("192.0.2.1")}.values()}
	for _, c := range []struct {
		w    *walk
		info xt.InfoAny
		want answer
	}{
		{w, &xt.Udp{SrcPorts: any, DstPorts: [2]uint16{8472, 8472}}, yes},
		{w, &xt.Udp{SrcPorts: any, DstPorts: [2]uint16{8472, 8472}, InvFlags: xt.UdpInvDestPorts}, no},
		{w, &xt.Udp{SrcPorts: any, DstPorts: [2]uint16{1, 100}}, no},
		{w, &xt.Udp{SrcPorts: [2]uint16{53, 53}, DstPorts: any}, maybe},
		{ipip, &xt.Udp{SrcPorts: any, DstPorts: any}, no},
		{w, &xt.Tcp{}, no},
		{w, new(xt.Comment), yes},
		{w, &xt.ConntrackMtinfo3{}, maybe},
	} {
		if got := c.w.match(&expr.Match{Info: c.info}); got != c.want {
			t.Errorf("%+v: %d, want %d", c.info, got, c.want)
		}
	}
}

func TestFirewallSets(t *testing.T) {
	key := func(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
	single := []nftables.SetElement{{Key: key(53)}, {Key: key(8472)}}
	ranges := []nftables.SetElement{{Key: key(0), IntervalEnd: true}, {Key: key(100)}, {Key: key(200), IntervalEnd: true}, {Key: key(200)}, {Key: key(300), IntervalEnd: true}}
	for n, want := range map[uint16]bool{52: false, 53: true, 8472: true} {
		if contains(single, key(n), false) != want {
			t.Errorf("%d in a set", n)
		}
	}
	for n, want := range map[uint16]bool{99: false, 100: true, 199: true, 200: true, 299: true, 300: false, 60000: false} {
		if contains(ranges, key(n), true) != want {
			t.Errorf("%d in ranges: not %v", n, want)
		}
	}
}

func TestLegacyDrops(t *testing.T) {
	tunnel := hostnet.Tunnel{Proto: unix.IPPROTO_UDP, Port: 8472}
	for _, c := range []struct {
		rules []string
		drops bool
	}{
		{[]string{"-P INPUT ACCEPT"}, false},
		{[]string{"-P INPUT DROP"}, true},
		{[]string{"-P INPUT DROP", "-A INPUT -p udp -m udp --dport 8472 -j ACCEPT"}, false},
		{[]string{"-P INPUT DROP", "-A INPUT -p udp -m udp --dport 84720 -j ACCEPT"}, true},
		{[]string{"-P INPUT ACCEPT", "-A INPUT -j REJECT --reject-with icmp-host-prohibited"}, true},
	} {
		if got := legacyDrops(c.rules, "iptables", "INPUT", tunnel); (len(got) > 0) != c.drops {
			t.Errorf("%q: %q", c.rules, got)
		}
	}
}

func TestAgents(t *testing.T) {
	got := agentsOf([]string{"INPUT", "KUBE-ROUTER-FORWARD", "KUBE-NWPLCY-ABC", "cali-FORWARD", "PENSTOCK-FWD", "KUBE-SERVICES"})
	want := []string{"kube-router (chain KUBE-ROUTER-FORWARD)", "Calico or Canal (chain cali-FORWARD)"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}

func TestPortsInProc(t *testing.T) {
	const file = "   sl  local_address rem_address   st\n  262: 00000000:2118 00000000:0000 07\n  300: 0100007F:0035 00000000:0000 07\n"
	for port, want := range map[uint16]bool{0x2118: true, 53: true, 54: false} {
		if hasPort([]byte(file), port) != want {
			t.Errorf("port %d: not %v", port, want)
		}
	}
}

func FuzzClaimant(f *testing.F) {
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		q, _ := duplicateQuestion(hostnet.Underlay{Address: netip.MustParseAddr(a), MAC: [6]byte{2, 0, 0, 0, 0, 1}})
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
			if mac := claimant(b, netip.MustParseAddr(a)); mac != nil && len(mac) != 6 {
				t.Fatalf("a MAC of %d bytes", len(mac))
			}
		}
		hasPort(b, 53)
	})
}

// TestDuplicateQuestion: what we ask would make us a claimant in others' eyes, and of no other address.
func TestDuplicateQuestion(t *testing.T) {
	mac := [6]byte{2, 0, 0, 0, 0, 1}
	for a, other := range map[string]string{"192.0.2.1": "192.0.2.3", "2001:db8::1": "2001:db8::2"} {
		q, to := duplicateQuestion(hostnet.Underlay{Address: netip.MustParseAddr(a), MAC: mac})
		if got := claimant(q, netip.MustParseAddr(a)); string(got) != string(mac[:]) {
			t.Errorf("%s: %v", a, got)
		}
		if got := claimant(q, netip.MustParseAddr(other)); got != nil {
			t.Errorf("%s: taken for %s", a, other)
		}
		if string(q[:6]) != string(to) {
			t.Errorf("%s: addressed to %x", a, q[:6])
		}
	}
}
