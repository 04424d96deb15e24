package hostlook

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// A Packet is one that a firewall is asked about: a datagram of a tunnel.
type Packet struct {
	Tunnel      hostnet.Tunnel
	Source, Dst netip.Addr
	Device      string // it comes in by this one, or goes out
	Out         bool
	Tracked     bool // our notrack rule is not there
}

// A Verdict is what the firewall does with it, as far as its rules can be read from outside.
type Verdict struct {
	Drops []string // "chain input of nft table inet filter, rule 3"; each is sure
	May   []string // rules that may drop it: something in them is not understood
}

// AskFirewall walks through the chains that a packet of ours meets on this host. What it does not understand it says in May.
func AskFirewall(p Packet) (Verdict, error) {
	conn, err := hostnet.OpenNFT()
	if err != nil {
		return Verdict{}, err
	}
	all, err := conn.ListChains()
	if err != nil {
		return Verdict{}, fmt.Errorf("cannot list the chains of nftables: %w", err)
	}
	hooks := []*nftables.ChainHook{nftables.ChainHookPrerouting, nftables.ChainHookInput}
	if p.Out {
		hooks = []*nftables.ChainHook{nftables.ChainHookOutput, nftables.ChainHookPostrouting}
	}
	w := &walk{conn: conn, chains: all, values: p.values()}
	for _, ch := range all {
		if p.atDevice(ch) && ch.Table.Name != hostnet.TableName {
			w.base(ch)
		}
	}
	w.verdict.May, w.verdict.Drops = append(w.verdict.May, w.verdict.Drops...), nil // which device such a chain is for, nobody says
	for _, hook := range hooks {
		for _, ch := range all {
			if ch.Hooknum == nil || *ch.Hooknum != *hook || ch.Type == nftables.ChainTypeNAT || !p.meets(ch.Table.Family) || ch.Table.Name == hostnet.TableName {
				continue
			}
			w.base(ch)
		}
	}
	w.verdict.May = append(w.verdict.May, legacyInput(p)...)
	return w.verdict, w.err
}

func (p Packet) meets(f nftables.TableFamily) bool {
	return f == nftables.TableFamilyINet || f == nftables.TableFamilyIPv4 && p.Source.Is4() || f == nftables.TableFamilyIPv6 && p.Source.Is6()
}

// atDevice is whether it may meet a chain at the ingress or egress of a device.
func (p Packet) atDevice(ch *nftables.Chain) bool {
	switch {
	case ch.Hooknum == nil:
		return false
	case ch.Table.Family == nftables.TableFamilyNetdev && p.Out:
		return *ch.Hooknum == *nftables.ChainHookEgress
	case ch.Table.Family == nftables.TableFamilyNetdev:
		return *ch.Hooknum == *nftables.ChainHookIngress
	}
	return !p.Out && ch.Table.Family == nftables.TableFamilyINet && *ch.Hooknum == inetIngress
}

const inetIngress = 5 // NF_INET_INGRESS, which the family inet has from 5.10 on

// values are what the packet has where a rule may look.
type values struct {
	meta            map[expr.MetaKey][]byte
	network, header []byte // of it; what is nil here is not known
	state           uint32
}

func (p Packet) values() values {
	v := values{meta: map[expr.MetaKey][]byte{
		expr.MetaKeyL4PROTO: {p.Tunnel.Proto}, expr.MetaKeyMARK: make([]byte, 4), expr.MetaKeyPKTTYPE: {0},
	}, state: expr.CtStateBitUNTRACKED}
	if p.Tracked {
		v.state = expr.CtStateBitNEW
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, p.Device)
	key, other := expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME
	if p.Out {
		key, other = other, key
	}
	v.meta[key], v.meta[other] = name, make([]byte, unix.IFNAMSIZ)
	if p.Source.Is4() {
		v.meta[expr.MetaKeyNFPROTO], v.meta[expr.MetaKeyPROTOCOL] = []byte{unix.NFPROTO_IPV4}, []byte{8, 0}
		v.network = make([]byte, 20)
		v.network[0], v.network[9] = 0x45, p.Tunnel.Proto
		copy(v.network[12:], p.Source.AsSlice())
		copy(v.network[16:], p.Dst.AsSlice())
	} else {
		v.meta[expr.MetaKeyNFPROTO], v.meta[expr.MetaKeyPROTOCOL] = []byte{unix.NFPROTO_IPV6}, []byte{0x86, 0xdd}
		v.network = make([]byte, 40)
		v.network[0], v.network[6] = 0x60, p.Tunnel.Proto
		copy(v.network[8:], p.Source.AsSlice())
		copy(v.network[24:], p.Dst.AsSlice())
	}
	if p.Tunnel.Proto == unix.IPPROTO_UDP {
		v.header = binary.BigEndian.AppendUint16(make([]byte, 2), p.Tunnel.Port) // the source port is anything
	}
	return v
}

// walk goes through chains as a packet does, with three answers to whether a rule matches: yes, no and maybe.
type walk struct {
	conn    *nftables.Conn
	chains  []*nftables.Chain
	values  values
	verdict Verdict
	err     error
	depth   int
}

// outcome is how a chain may end for the packet.
type outcome struct {
	accept, drop, through bool
	back                  bool   // by a return or behind a goto: through, and past the chain's other rules
	who                   string // dropped it
}

func (w *walk) base(ch *nftables.Chain) {
	o := w.chain(ch)
	if o.through && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
		o.drop, o.through = true, false
		if o.who == "" {
			o.who = fmt.Sprintf("the policy of chain %s of nft table %s", ch.Name, tableName(ch.Table))
		}
	}
	switch {
	case o.drop && !o.accept && !o.through:
		w.verdict.Drops = append(w.verdict.Drops, o.who)
	case o.drop:
		w.verdict.May = append(w.verdict.May, o.who)
	}
}

func tableName(t *nftables.Table) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyNetdev: "netdev"}[t.Family]
	return strings.TrimSpace(family + " " + t.Name)
}

func (w *walk) chain(ch *nftables.Chain) (o outcome) {
	if w.depth++; w.depth > 16 { // as many jumps as the kernel allows
		w.depth--
		return outcome{through: true, accept: true}
	}
	defer func() { w.depth-- }()
	rules, err := w.conn.GetRules(ch.Table, ch)
	if err != nil {
		w.err = fmt.Errorf("cannot list the rules of chain %s of nft table %s: %w", ch.Name, tableName(ch.Table), err)
		return outcome{through: true}
	}
	for i, rule := range rules {
		match, end := w.rule(ch, rule, i)
		if match == no {
			continue
		}
		if o.who == "" {
			o.who = end.who
		}
		o.accept, o.drop = o.accept || end.accept, o.drop || end.drop
		if end.back {
			o.through = true
		}
		if match == yes && (end.back || !end.through) {
			return o
		}
	}
	o.through = true
	return o
}

type answer int

const (
	no answer = iota
	maybe
	yes
)

// rule says whether a rule matches and what then happens; through: the next rule is asked.
func (w *walk) rule(ch *nftables.Chain, r *nftables.Rule, i int) (answer, outcome) {
	registers := map[uint32][]byte{} // what is missing is not known
	match := yes
	drop := outcome{drop: true, who: fmt.Sprintf("rule %d of chain %s of nft table %s", i+1, ch.Name, tableName(ch.Table))}
	weigh := func(a answer) { match = min(match, a) }
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			if e.SourceRegister {
				continue // it sets a mark
			}
			registers[e.Register] = w.values.meta[e.Key]
		case *expr.Payload:
			registers[e.DestRegister] = w.payload(e)
		case *expr.Ct:
			registers[e.Register] = nil
			if e.Key == expr.CtKeySTATE {
				registers[e.Register] = binary.NativeEndian.AppendUint32(nil, w.values.state)
			}
		case *expr.Bitwise:
			registers[e.DestRegister] = bitwise(registers[e.SourceRegister], e.Mask, e.Xor)
		case *expr.Cmp:
			weigh(compare(registers[e.Register], e.Op, e.Data))
		case *expr.Range:
			weigh(within(registers[e.Register], e))
		case *expr.Lookup:
			if e.IsDestRegSet {
				weigh(maybe) // a verdict map: what it says is not followed
				return match, outcome{accept: true, drop: true, through: true, who: drop.who}
			}
			weigh(w.lookup(ch.Table, registers[e.SourceRegister], e))
		case *expr.Match:
			weigh(w.match(e))
		case *expr.Counter, *expr.Log, *expr.Notrack, *expr.Objref:
		case *expr.Reject:
			return match, drop
		case *expr.Target:
			if e.Name == "REJECT" || e.Name == "DROP" {
				return match, drop
			}
		case *expr.Verdict:
			switch e.Kind {
			case expr.VerdictAccept, expr.VerdictStop:
				return match, outcome{accept: true}
			case expr.VerdictDrop:
				return match, drop
			case expr.VerdictReturn:
				return match, outcome{through: true, back: true}
			case expr.VerdictJump, expr.VerdictGoto:
				for _, to := range w.chains {
					if to.Name == e.Chain && to.Table.Name == ch.Table.Name && to.Table.Family == ch.Table.Family {
						o := w.chain(to)
						o.back = e.Kind == expr.VerdictGoto && o.through // behind a goto it is as if the chain that has it had ended
						return match, o
					}
				}
			}
		default:
			weigh(maybe)
		}
		if match == no {
			return no, outcome{}
		}
	}
	return match, outcome{through: true}
}

func (w *walk) payload(e *expr.Payload) []byte {
	from := w.values.network
	if e.Base == expr.PayloadBaseTransportHeader {
		if from = w.values.header; e.Offset < 2 {
			return nil // the source port
		}
	} else if e.Base != expr.PayloadBaseNetworkHeader {
		return nil
	}
	if end := int(e.Offset + e.Len); end <= len(from) {
		return from[e.Offset:end]
	}
	return nil
}

func bitwise(v, mask, xor []byte) []byte {
	if v == nil || len(mask) != len(v) || len(xor) != len(v) {
		return nil
	}
	out := make([]byte, len(v))
	for i := range v {
		out[i] = v[i]&mask[i] ^ xor[i]
	}
	return out
}

func compare(v []byte, op expr.CmpOp, to []byte) answer {
	if v == nil {
		return maybe
	}
	n := min(len(v), len(to)) // a name's comparison may be for its beginning only
	c := bytes.Compare(v[:n], to[:n])
	return sure(map[expr.CmpOp]bool{expr.CmpOpEq: c == 0, expr.CmpOpNeq: c != 0, expr.CmpOpLt: c < 0, expr.CmpOpLte: c <= 0, expr.CmpOpGt: c > 0, expr.CmpOpGte: c >= 0}[op])
}

func within(v []byte, e *expr.Range) answer {
	if v == nil || len(v) != len(e.FromData) || len(v) != len(e.ToData) {
		return maybe
	}
	return sure((bytes.Compare(v, e.FromData) >= 0 && bytes.Compare(v, e.ToData) <= 0) == (e.Op == expr.CmpOpEq))
}

func (w *walk) lookup(t *nftables.Table, v []byte, e *expr.Lookup) answer {
	if v == nil {
		return maybe
	}
	set, err := w.conn.GetSetByName(t, e.SetName)
	if err != nil || set.Concatenation {
		return maybe
	}
	elements, err := w.conn.GetSetElements(set)
	if err != nil {
		return maybe
	}
	return sure(contains(elements, v, set.Interval) != e.Invert)
}

// contains looks v up; of an interval set the greatest border that is not above v says whether one is open there.
func contains(elements []nftables.SetElement, v []byte, interval bool) bool {
	var best *nftables.SetElement
	for i, el := range elements {
		if !interval && bytes.Equal(el.Key, v) {
			return true
		}
		if interval && bytes.Compare(el.Key, v) <= 0 && (best == nil || bytes.Compare(el.Key, best.Key) > 0 || bytes.Equal(el.Key, best.Key) && best.IntervalEnd) {
			best = &elements[i]
		}
	}
	return best != nil && !best.IntervalEnd
}

// match is one of iptables-nft.
func (w *walk) match(e *expr.Match) answer {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.Udp:
		if len(w.values.header) == 0 {
			return no
		}
		port := binary.BigEndian.Uint16(w.values.header[2:])
		in := port >= info.DstPorts[0] && port <= info.DstPorts[1]
		if in == (info.InvFlags&xt.UdpInvDestPorts != 0) {
			return no
		}
		if info.SrcPorts != [2]uint16{0, 65535} || info.InvFlags&xt.UdpInvSrcPorts != 0 {
			return maybe
		}
		return yes
	case *xt.Tcp:
		return no
	}
	return maybe
}

func sure(b bool) answer {
	if b {
		return yes
	}
	return no
}

// legacyInput looks at legacy iptables, whose rules only its own program can read: it says what may drop, and nothing if a rule
// names the tunnel's port.
func legacyInput(p Packet) []string {
	proto := iptables.ProtocolIPv4
	if p.Source.Is6() {
		proto = iptables.ProtocolIPv6
	}
	chain := "INPUT"
	if p.Out {
		chain = "OUTPUT"
	}
	ipt, name, err := hostnet.LegacyFilter(proto)
	if err != nil {
		return []string{fmt.Sprintf("legacy %s has a filter table, which cannot be read without that program", name)}
	}
	if ipt == nil {
		return nil
	}
	rules, err := ipt.List("filter", chain)
	if err != nil {
		return []string{fmt.Sprintf("legacy %s has a filter table, which cannot be read: %v", name, err)}
	}
	return legacyDrops(rules, name, chain, p.Tunnel)
}

func legacyDrops(rules []string, name, chain string, t hostnet.Tunnel) []string {
	drops := ""
	for i, r := range rules {
		named := t.Proto == unix.IPPROTO_UDP && strings.Contains(r+" ", fmt.Sprintf(" --dport %d ", t.Port)) || t.Proto == unix.IPPROTO_IPIP && (strings.Contains(r, "-p ipencap ") || strings.Contains(r, "-p 4 "))
		if named && strings.HasSuffix(r, "-j ACCEPT") {
			return nil
		}
		if drops == "" && (r == "-P "+chain+" DROP" || strings.Contains(r, "-j DROP") || strings.Contains(r, "-j REJECT")) {
			drops = fmt.Sprintf("legacy %s, %s (%q)", name, chain, rules[i])
		}
	}
	if drops == "" {
		return nil
	}
	return []string{drops}
}
