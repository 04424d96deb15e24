package hostnet

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Peers believe what comes from this node's address. So nobody else on the node may send to their tunnels in its name: not a
// process without capabilities, whose socket gets that address from the kernel, and not a container of somebody else whose packets
// the host masquerades. This stands behind all translation, where a packet looks as it leaves:
//
//	chain leaving {
//	  type filter hook postrouting priority srcnat + 50; policy accept;
//	  meta skuid <the daemon's> accept
//	  udp dport <tunnel> ip saddr <this node> meta skuid >= 0 ip daddr @peers counter drop   processes
//	  udp dport <tunnel> ip saddr <this node> iif != 0 ip daddr @peers counter drop          forwarded
//	  …
//	}
//
// What is forwarded under another address passes. So does what an ipip or sit device of the kernel sends, which has that device as its iif:
// such a tunnel may lead to a peer's node as well. A vxlan device of the kernel cannot have a port that we listen on. The first rule is
// all that the daemon's packets meet, and bulk leaves as superdatagrams; whole superframes and the tcp carrier do not come by here at all.
// Before Linux 5.7 there is no iif here, and the rules about forwarded packets match nothing.
var leavingPriority = nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 50)

const (
	peerSet   = "peers"
	peerChunk = 1000 // elements in a message, which has them in one attribute of 64 KiB
)

const metaKeyIIFKIND expr.MetaKey = 26 // NFT_META_IIFKIND (linux/netfilter/nf_tables.h), which package expr lacks

// kernelTunnels are the kinds of devices that send the protocols 4 and 41. A variable for tests, whose kernel may have none.
var kernelTunnels = []string{"ipip", "sit"}

func leavingChain(c *Config) chain {
	ch := chain{name: "leaving", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookPostrouting, prio: leavingPriority}
	if len(c.Peers) == 0 {
		return ch
	}
	accept := &expr.Verdict{Kind: expr.VerdictAccept}
	ch.rules = append(ch.rules, new(builder).user(expr.CmpOpEq, uint32(os.Geteuid())).end("accept", "ourselves", accept))
	if os.Geteuid() != 0 { // root, who could take all of this away, looks into the tunnel with doctor
		ch.rules = append(ch.rules, new(builder).user(expr.CmpOpEq, 0).end("accept", "root", accept))
	}
	for _, t := range c.Tunnels {
		for _, kind := range kernelTunnels {
			if t.Proto != unix.IPPROTO_UDP {
				ch.rules = append(ch.rules, new(builder).proto(t.Proto).iifkind(kind).end("accept", "the kernel's own tunnel", accept))
			}
		}
		if t.Proto == unix.IPPROTO_UDP { // for the others a process needs CAP_NET_RAW
			ch.rules = append(ch.rules, inOurName(c.Address, t.Proto, t.Port).user(expr.CmpOpGte, 0).toPeer(c.Address, "in this node's name, by a process"))
		}
		ch.rules = append(ch.rules, inOurName(c.Address, t.Proto, t.Port).forwarded().toPeer(c.Address, "in this node's name, forwarded"))
	}
	if c.Carrier.Port != 0 {
		ch.rules = append(ch.rules, inOurName(c.Address, unix.IPPROTO_TCP, c.Carrier.Port).sportFrom(leastTag).forwarded().toPeer(c.Address, "in this node's name, forwarded"))
	}
	return ch
}

// inOurName begins with what the fewest packets have.
func inOurName(a netip.Addr, proto uint8, port uint16) *builder {
	b := new(builder).proto(proto)
	if port != 0 {
		b.dport(port)
	}
	return b.prefix("saddr", netip.PrefixFrom(a, a.BitLen()))
}

// user matches the user id of the socket that a packet left by, and no packet without one.
func (b *builder) user(op expr.CmpOp, uid uint32) *builder {
	b.say("meta skuid %d %d", op, uid)
	b.exprs = append(b.exprs, &expr.Meta{Key: expr.MetaKeySKUID, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, uid)})
	return b
}

// forwarded matches what came in by a device.
func (b *builder) forwarded() *builder {
	b.say("iif != 0")
	b.exprs = append(b.exprs, &expr.Meta{Key: expr.MetaKeyIIF, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
	return b
}

// iifkind matches what came in by a device of a kind, or is what such a device sends of itself.
func (b *builder) iifkind(kind string) *builder {
	b.say("meta iifkind %s", kind)
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, kind)
	b.meta(metaKeyIIFKIND, data)
	return b
}

// toPeer ends a rule by the drop of what goes to a peer, which has an address of our family.
func (b *builder) toPeer(a netip.Addr, why string) rule {
	offset, size := uint32(16), uint32(4)
	if a.Is6() {
		offset, size = 24, 16
	}
	b.say("daddr @%s counter", peerSet)
	b.exprs = append(b.exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: 1, SetName: peerSet}, &expr.Counter{})
	return b.end("drop", why, &expr.Verdict{Kind: expr.VerdictDrop})
}

// addPeers writes the set, which must stand before its rules.
func addPeers(conn *nftables.Conn, table *nftables.Table, peers []netip.Addr) error {
	if len(peers) == 0 {
		return nil
	}
	set := &nftables.Set{Table: table, Name: peerSet, KeyType: peerKeys(peers)}
	return errors.Join(conn.AddSet(set, nil), inChunks(conn.SetAddElements, set, peers))
}

// changePeers makes of the set that stands, with the peers have, one with the peers want; both are in order.
func changePeers(conn *nftables.Conn, table *nftables.Table, have, want []netip.Addr, r *Report) error {
	set := &nftables.Set{Table: table, Name: peerSet, KeyType: peerKeys(want)}
	come, gone := without(want, have), without(have, want)
	if err := errors.Join(inChunks(conn.SetAddElements, set, come), inChunks(conn.SetDeleteElements, set, gone)); err != nil {
		return nftError("write a set of", err)
	}
	if err := conn.Flush(); err != nil {
		return nftError("change the peers of", err)
	}
	if len(come) > 0 {
		r.add("%d peers in nft table inet %s", len(come), TableName)
	}
	if len(gone) > 0 {
		r.remove("%d peers in nft table inet %s", len(gone), TableName)
	}
	return nil
}

func peerKeys(peers []netip.Addr) nftables.SetDatatype {
	if peers[0].Is6() {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// without is what of a is not in b, which is in order.
func without(a, b []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(a), func(x netip.Addr) bool {
		_, found := slices.BinarySearchFunc(b, x, netip.Addr.Compare)
		return found
	})
}

func inChunks(send func(*nftables.Set, []nftables.SetElement) error, set *nftables.Set, peers []netip.Addr) (err error) {
	for some := range slices.Chunk(peers, peerChunk) {
		elements := make([]nftables.SetElement, len(some))
		for i, a := range some {
			elements[i].Key = a.AsSlice()
		}
		err = errors.Join(err, send(set, elements))
	}
	return err
}

// readPeers reads it, in order, and the type of its elements.
func readPeers(conn *nftables.Conn, table *nftables.Table) (peers []netip.Addr, keys string, err error) {
	sets, err := conn.GetSets(table)
	if err != nil {
		return nil, "", err
	}
	for _, set := range sets {
		if set.Name != peerSet {
			continue
		}
		elements, err := conn.GetSetElements(set)
		if err != nil {
			return nil, "", err
		}
		for _, e := range elements {
			a, _ := netip.AddrFromSlice(e.Key)
			peers = append(peers, a)
		}
		keys = set.KeyType.Name
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	return peers, keys, nil
}
