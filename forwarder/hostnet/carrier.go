package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// The tcp carrier of the native stream is read by packet sockets, and nobody has a TCP connection there: the kernel would
// answer each packet by a reset. So they are dropped behind the sockets, at the ingress of the uplink:
//
//	table netdev penstock {
//	  chain <uplink> {
//	    type filter hook ingress device <uplink> priority -500; policy accept;
//	    ip daddr <this node> tcp sport >= 32768 tcp dport <native.port> drop
//	  }
//	}
//
// and once more in `inet penstock`, before conntrack sees them, for those that come by another device, or while the
// address moves from one device to another. What has a lower source port is no burst (its source port is the stream's tag,
// docs/native-stream.md section 3): an answer from a server to a connection that masquerade has given our port. Both stay when the daemon stops: its peers go on sending for a moment, and
// its successor needs them.

// A Carrier is what the host's own TCP must not see.
type Carrier struct {
	Device string // the uplink
	Port   uint16
}

// carrierRule is the one in the chain of the uplink.
func carrierRule(a netip.Addr, port uint16) rule {
	b := new(builder)
	proto, name, offset, size := uint16(unix.ETH_P_IP), "ip", uint32(16), uint32(4)
	if a.Is6() {
		proto, name, offset, size = unix.ETH_P_IPV6, "ip6", 24, 16
	}
	// In the family netdev nfproto is that of the hook, so the EtherType says what it is.
	b.say("%s daddr %s", name, a)
	b.meta(expr.MetaKeyPROTOCOL, binary.BigEndian.AppendUint16(nil, proto))
	b.exprs = append(b.exprs, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size})
	b.cmp(a.AsSlice())
	return b.proto(unix.IPPROTO_TCP).sportFrom(leastTag).dport(port).end("drop", nativeDrop, &expr.Verdict{Kind: expr.VerdictDrop})
}

// leastTag is the least source port of a burst.
const leastTag = 32768

const nativeDrop = "native stream: not for the host's TCP"

// applyCarrier makes the one chain that the Config wants, or none, if it is not so already.
func applyCarrier(c *Config, r *Report) error {
	conn, err := OpenNFT()
	if err != nil {
		return err
	}
	chains, err := netdevChains(conn)
	if err != nil {
		return err
	}
	have, err := carrierChains(conn, chains, c.Carrier.Device)
	if err != nil {
		return err
	}
	var want rule
	wanted := c.Carrier.Port != 0
	if wanted {
		want = carrierRule(c.Address, c.Carrier.Port)
	}
	stands := false
	var gone []string
	for _, ch := range have {
		if wanted && ch.device == c.Carrier.Device && ch.accepts && slices.Equal(ch.comments, []string{want.comment()}) {
			stands = true
			continue
		}
		conn.DelChain(&nftables.Chain{Name: ch.device, Table: netdevTable})
		gone = append(gone, ch.device)
		r.remove("drop of the native stream's port at the ingress of %s", ch.device)
	}
	if wanted && !stands {
		conn.AddTable(netdevTable)
		accept := nftables.ChainPolicyAccept
		chain := conn.AddChain(&nftables.Chain{Name: c.Carrier.Device, Table: netdevTable, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: ingressPriority, Policy: &accept, Device: c.Carrier.Device})
		conn.AddRule(&nftables.Rule{Table: netdevTable, Chain: chain, Exprs: want.exprs,
			UserData: userdata.Append(nil, userdata.TypeComment, append([]byte(want.comment()), 0))})
		r.add("drop of TCP port %d at the ingress of %s", c.Carrier.Port, c.Carrier.Device)
	}
	if err := conn.Flush(); err != nil {
		if !wanted && errors.Is(err, unix.ENOENT) {
			return nil // the device went away, and an older kernel has taken the chain with it
		}
		return carrierError(c.Carrier, gone, err)
	}
	return nil
}

// carrierError says what could not be done: making the chain, or, where none is wanted, removing those of the devices in gone.
func carrierError(wanted Carrier, gone []string, err error) error {
	if wanted.Port == 0 {
		return fmt.Errorf("cannot remove the drop of the native stream's port at the ingress of %s: %w; nft list table netdev %s shows it", strings.Join(gone, ", "), err, TableName)
	}
	return fmt.Errorf("cannot keep TCP port %d from the host at the ingress of %s: %w; the kernel needs nf_tables for the family netdev (CONFIG_NF_TABLES_NETDEV), or set native.carrier to udp", wanted.Port, wanted.Device, err)
}

// carrierChain is one of ours that drops a port and not everything.
type carrierChain struct {
	device   string
	accepts  bool // what no rule names
	comments []string
}

// carrierChains are those of the chains that are uplinks': those that accept what their rules do not name, and whatever stands under the uplink's name.
// The chains of pods' devices have no rules, also those whose policy somebody has changed.
func carrierChains(conn *nftables.Conn, chains []*nftables.Chain, uplink string) ([]carrierChain, error) {
	var list []carrierChain
	for _, ch := range chains {
		if drops(ch) && ch.Name != uplink {
			continue
		}
		rules, err := conn.GetRules(ch.Table, ch)
		if err != nil {
			return nil, fmt.Errorf("cannot list the rules of chain %s of the nft table netdev %s: %w", ch.Name, TableName, err)
		}
		if len(rules) == 0 && ch.Name != uplink {
			continue
		}
		c := carrierChain{device: ch.Name, accepts: !drops(ch)}
		for _, rule := range rules {
			comment, _ := userdata.GetString(rule.UserData, userdata.TypeComment)
			c.comments = append(c.comments, comment)
		}
		list = append(list, c)
	}
	return list, nil
}

func drops(ch *nftables.Chain) bool {
	return ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
}
