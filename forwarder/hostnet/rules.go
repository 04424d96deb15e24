package hostnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// kubeMasqMark is the bit with which kube-proxy marks what it will masquerade itself.
const kubeMasqMark = 0x4000

var multicast = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// chain and rule are our tables as data: written to the kernel by applyNFT, compared by their text.
type chain struct {
	name  string
	typ   nftables.ChainType
	hook  *nftables.ChainHook
	prio  *nftables.ChainPriority
	rules []rule
}

type rule struct {
	text  string // as nft would write it: its identity
	why   string // for whoever lists the rules
	exprs []expr.Any
}

func summary(chains []chain) string {
	var s []string
	for _, c := range chains {
		s = append(s, fmt.Sprintf("%s: %d rules", c.name, len(c.rules)))
	}
	return strings.Join(s, ", ")
}

// inetTable is `inet penstock` as c wants it, in the order in which a packet meets it. Chains without rules are left
// out: every hook costs each packet of the host a little.
func inetTable(c *Config) []chain {
	prerouting := chain{name: "prerouting", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, prio: nftables.ChainPriorityRaw}
	output := chain{name: "output", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, prio: nftables.ChainPriorityRaw}
	postrouting := chain{name: "postrouting", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, prio: nftables.ChainPriorityNATSource}

	if c.Carrier.Port != 0 {
		prerouting.rules = append(prerouting.rules, new(builder).prefix("daddr", netip.PrefixFrom(c.Address, c.Address.BitLen())).proto(unix.IPPROTO_TCP).
			sportFrom(leastTag).dport(c.Carrier.Port).end("drop", nativeDrop, &expr.Verdict{Kind: expr.VerdictDrop}))
	}

	// Only what is to or from the node's own address: a pod or a guest that speaks VXLAN through this host with somebody
	// else stays tracked, and so translated.
	for _, t := range c.Tunnels {
		prerouting.rules = append(prerouting.rules, notrack("daddr", c.Address, t))
		output.rules = append(output.rules, notrack("saddr", c.Address, t))
	}

	// A Service's packet comes out of the device that it went into, and the kernel would tell the pod so.
	output.rules = append(output.rules, new(builder).oifname(c.Device).redirect().end("drop", "no ICMP redirects to pods", &expr.Verdict{Kind: expr.VerdictDrop}))

	if c.Masquerade {
		ret := &expr.Verdict{Kind: expr.VerdictReturn}
		postrouting.rules = append(postrouting.rules, new(builder).mark(kubeMasqMark).end("return", "kube-proxy masquerades it", ret))
		for _, p := range c.routed() {
			postrouting.rules = append(postrouting.rules, new(builder).prefix("daddr", p).end("return", "pods know each other", ret))
		}
		for _, p := range multicast {
			if p.Addr().Is4() && c.has4() || p.Addr().Is6() && c.has6() {
				postrouting.rules = append(postrouting.rules, new(builder).prefix("daddr", p).end("return", "multicast", ret))
			}
		}
		for _, p := range c.PodCIDRs {
			postrouting.rules = append(postrouting.rules,
				new(builder).prefix("saddr", p).end("masquerade random-fully", "pods to the outside", &expr.Masq{FullyRandom: true}))
		}
	}
	var out []chain
	for _, ch := range []chain{prerouting, output, postrouting, leavingChain(c)} {
		if len(ch.rules) > 0 {
			out = append(out, ch)
		}
	}
	return out
}

func notrack(field string, a netip.Addr, t Tunnel) rule {
	b := new(builder).prefix(field, netip.PrefixFrom(a, a.BitLen())).proto(t.Proto)
	if t.Proto == unix.IPPROTO_UDP {
		b.dport(t.Port)
	}
	return b.end("notrack", "our tunnel", &expr.Notrack{})
}

// A builder writes a rule twice at once, as text and as expressions. Values in registers are as on the wire, but for
// what meta gives, which is in host order.
type builder struct {
	text  []string
	exprs []expr.Any
}

func (b *builder) say(format string, a ...any) { b.text = append(b.text, fmt.Sprintf(format, a...)) }

func (b *builder) cmp(data []byte) {
	b.exprs = append(b.exprs, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data})
}

func (b *builder) meta(key expr.MetaKey, data []byte) {
	b.exprs = append(b.exprs, &expr.Meta{Key: key, Register: 1})
	b.cmp(data)
}

func (b *builder) oifname(name string) *builder {
	b.say("oifname %q", name)
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	b.meta(expr.MetaKeyOIFNAME, data)
	return b
}

func (b *builder) mark(bit uint32) *builder {
	b.say("meta mark & %#x == %#x", bit, bit)
	v := binary.NativeEndian.AppendUint32(nil, bit)
	b.exprs = append(b.exprs,
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: v, Xor: make([]byte, 4)})
	b.cmp(v)
	return b
}

// prefix matches the source (saddr) or destination (daddr) address, in packets of p's family only.
func (b *builder) prefix(field string, p netip.Prefix) *builder {
	family, name, offset := byte(unix.NFPROTO_IPV4), "ip", uint32(12)
	size := uint32(4)
	if p.Addr().Is6() {
		family, name, offset, size = unix.NFPROTO_IPV6, "ip6", 8, 16
	}
	if field == "daddr" {
		offset += size
	}
	b.say("%s %s %s", name, field, p)
	b.meta(expr.MetaKeyNFPROTO, []byte{family})
	b.exprs = append(b.exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
	if p.Bits() != p.Addr().BitLen() {
		mask := ipNet(p).Mask
		b.exprs = append(b.exprs, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)})
	}
	b.cmp(p.Masked().Addr().AsSlice())
	return b
}

func (b *builder) proto(n uint8) *builder {
	b.say("meta l4proto %d", n)
	b.meta(expr.MetaKeyL4PROTO, []byte{n})
	return b
}

func (b *builder) sportFrom(port uint16) *builder {
	b.say("th sport >= %d", port)
	b.exprs = append(b.exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)})
	return b
}

func (b *builder) dport(port uint16) *builder {
	b.say("th dport %d", port)
	b.exprs = append(b.exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
	b.cmp(binary.BigEndian.AppendUint16(nil, port))
	return b
}

// redirect matches ICMP type 5 (RFC 792). IPv6's needs a link-local source, and our device has none.
func (b *builder) redirect() *builder {
	b.say("icmp type redirect")
	b.meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4})
	b.meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMP})
	b.exprs = append(b.exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1})
	b.cmp([]byte{5})
	return b
}

func (b *builder) end(verdict, why string, e expr.Any) rule {
	b.say("%s", verdict)
	return rule{text: strings.Join(b.text, " "), why: why, exprs: append(b.exprs, e)}
}
