package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Service is a Kubernetes Service as kube-proxy would see it.
type Service struct {
	Address  netip.Addr // the cluster address; with an invalid one there is only the NodePort
	Port     uint16
	Proto    string           // "tcp" or "udp"
	Backends []netip.AddrPort // one after the other
	NodePort uint16           // 0: none
}

// masqueradeMark is kube-proxy's: what carries it is masqueraded after routing.
const masqueradeMark = 0x4000

// SetServices replaces the node's Service rules by ones such as kube-proxy's nftables mode writes: DNAT before
// routing and for the node's own packets, backends in turn, and masquerade for hairpins, for NodePorts and for
// what comes from outside the cluster network.
func (n *Node) SetServices(t TB, services ...Service) {
	t.Helper()
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		err := n.Nftables(func(c *nftables.Conn) error {
			// Adding first makes the deletion safe when there is no such table.
			c.AddTable(&nftables.Table{Name: "kube-proxy", Family: family})
			c.DelTable(&nftables.Table{Name: "kube-proxy", Family: family})
			w := &serviceWriter{c: c, family: family}
			w.table = c.AddTable(&nftables.Table{Name: "kube-proxy", Family: family})
			return w.write(services)
		})
		if err != nil {
			t.Fatalf("lab: services of %s: %v", n.Name, err)
		}
	}
}

type serviceWriter struct {
	c      *nftables.Conn
	family nftables.TableFamily
	table  *nftables.Table
}

func (w *serviceWriter) v6() bool { return w.family == nftables.TableFamilyIPv6 }

func (w *serviceWriter) base(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	return w.c.AddChain(&nftables.Chain{Name: name, Table: w.table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
}

func (w *serviceWriter) chain(format string, args ...any) *nftables.Chain {
	return w.c.AddChain(&nftables.Chain{Name: fmt.Sprintf(format, args...), Table: w.table})
}

func (w *serviceWriter) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	w.c.AddRule(&nftables.Rule{Table: w.table, Chain: chain, Exprs: all})
}

func (w *serviceWriter) write(services []Service) error {
	all := w.chain("services")
	for _, b := range []*nftables.Chain{
		w.base("nat-prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest),
		w.base("nat-output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest),
	} {
		w.rule(b, verdict(expr.VerdictJump, all.Name))
	}
	post := w.base("nat-postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	w.rule(post, marked(), masquerade())
	for i, s := range services {
		if len(s.Backends) == 0 {
			return fmt.Errorf("service %v:%d has no backend", s.Address, s.Port)
		}
		if s.Backends[0].Addr().Is6() != w.v6() {
			continue
		}
		backends, err := w.backends(i, s)
		if err != nil {
			return err
		}
		if s.Address.IsValid() {
			match := append(w.address(false, expr.CmpOpEq, s.Address), port(s.Proto, s.Port)...)
			w.rule(all, match, w.notFromCluster(), setMark())
			w.rule(all, match, verdict(expr.VerdictGoto, backends.Name))
		}
		if s.NodePort != 0 {
			match := append(local(), port(s.Proto, s.NodePort)...)
			w.rule(all, match, setMark())
			w.rule(all, match, verdict(expr.VerdictGoto, backends.Name))
		}
	}
	return nil
}

// backends makes a chain that takes the service's backends in turn, and one chain for each of them.
func (w *serviceWriter) backends(i int, s Service) (*nftables.Chain, error) {
	var elements []nftables.SetElement
	for j, b := range s.Backends {
		endpoint := w.chain("endpoint-%d-%d", i, j)
		// A pod that reaches itself through the service must see another source than its own.
		w.rule(endpoint, w.address(true, expr.CmpOpEq, b.Addr()), setMark())
		w.rule(endpoint, protocol(s.Proto), []expr.Any{
			&expr.Immediate{Register: 1, Data: b.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, b.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(w.family), RegAddrMin: 1, RegProtoMin: 2},
		})
		elements = append(elements, nftables.SetElement{
			Key:         binaryutil.NativeEndian.PutUint32(uint32(j)),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: endpoint.Name},
		})
	}
	service := w.chain("service-%d", i)
	turn := &nftables.Set{
		Table: w.table, Anonymous: true, Constant: true, IsMap: true,
		KeyType: nftables.TypeInteger, DataType: nftables.TypeVerdict,
	}
	if err := w.c.AddSet(turn, elements); err != nil {
		return nil, err
	}
	w.rule(service, []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(len(s.Backends)), Type: unix.NFT_NG_INCREMENTAL},
		&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, DestRegister: 0, SetName: turn.Name, SetID: turn.ID},
	})
	return service, nil
}

// address matches the source or destination address.
func (w *serviceWriter) address(source bool, op expr.CmpOp, a netip.Addr) []expr.Any {
	p := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	if w.v6() {
		p.Offset, p.Len = 24, 16
	}
	if source {
		p.Offset -= p.Len
	}
	return []expr.Any{p, &expr.Cmp{Op: op, Register: 1, Data: a.AsSlice()}}
}

func (w *serviceWriter) notFromCluster() []expr.Any {
	cluster := Cluster4
	if w.v6() {
		cluster = Cluster6
	}
	match := w.address(true, expr.CmpOpNeq, cluster.Masked().Addr())
	length := cluster.Addr().BitLen() / 8
	mask := make([]byte, length)
	for i := range cluster.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		match[0],
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(length), Mask: mask, Xor: make([]byte, length)},
		match[1],
	}
}

func protocol(proto string) []expr.Any {
	number := byte(unix.IPPROTO_TCP)
	if proto == "udp" {
		number = unix.IPPROTO_UDP
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

func port(proto string, number uint16) []expr.Any {
	return append(protocol(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, number)})
}

// local matches destinations that are this node's own addresses.
func local() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func mask32(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

func setMark() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask32(^uint32(masqueradeMark)), Xor: mask32(masqueradeMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

func marked() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask32(masqueradeMark), Xor: mask32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: mask32(0)},
	}
}

// masquerade takes the mark off again, as kube-proxy does, so that nobody masquerades twice.
func masquerade() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask32(^uint32(masqueradeMark)), Xor: mask32(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
		&expr.Masq{FullyRandom: true},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
