package hostnet

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftBuffer holds a whole transaction, which with some thousand peers is larger than a socket's usual buffer, and its acknowledgements,
// which the kernel queues before we read the first: a thousand devices answer with two thousand messages of less than 1 KiB each.
const nftBuffer = 4 << 20

// OpenNFT opens nftables of this namespace.
func OpenNFT() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(nftBuffer), c.SetWriteBuffer(nftBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("cannot open nftables' netlink socket: %w", err)
	}
	return c, nil
}

// applyNFT replaces `inet penstock` in one transaction if it is not as the Config wants it. Where nothing but peers has changed only they
// are written: the rules keep their counters.
func applyNFT(c *Config, r *Report) error {
	conn, err := OpenNFT()
	if err != nil {
		return err
	}
	want := inetTable(c)
	have, err := readTable(conn, nftables.TableFamilyINet)
	if err != nil {
		return nftError("read", err)
	}
	table := &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
	if have != nil && have.sum == sumOf(want) {
		if slices.Equal(have.peers, c.Peers) {
			return nil
		}
		if len(c.Peers) > 0 && have.keys == peerKeys(c.Peers).Name {
			return changePeers(conn, table, have.peers, c.Peers, r)
		}
	}
	// Add, delete, add: the delete needs something to delete, whoever was here before.
	conn.AddTable(table)
	conn.DelTable(table)
	conn.AddTable(table)
	if err := addPeers(conn, table, c.Peers); err != nil {
		return nftError("write a set of", err)
	}
	for _, ch := range want {
		chain := conn.AddChain(&nftables.Chain{Name: ch.name, Table: table, Type: ch.typ, Hooknum: ch.hook, Priority: ch.prio})
		for _, rule := range ch.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule.exprs,
				UserData: userdata.Append(nil, userdata.TypeComment, append([]byte(rule.comment()), 0))})
		}
	}
	if err := conn.Flush(); err != nil {
		return nftError("replace", err)
	}
	verb := ""
	if have != nil {
		verb = ", replaced"
	}
	r.add("nft table inet %s (%s)%s", TableName, summary(want), verb)
	return nil
}

func nftError(what string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM):
		hint = "; the daemon needs CAP_NET_ADMIN"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT):
		hint = "; the kernel needs nf_tables with ct, masq, nat and sets for the family inet (5.2 or newer)"
	}
	return fmt.Errorf("cannot %s the nft table inet %s: %w%s", what, TableName, err, hint)
}

// foundTable is what the kernel has under our name: a sum over what we would have written to make it so.
type foundTable struct {
	sum   string
	peers []netip.Addr // of the set
	keys  string       // nft's type of its elements; empty: there is no set
}

// readTable reads a table of ours; nil if there is none. The kernel hands rules back in a form that does not compare
// with what was sent, so each rule carries a hash of itself in its comment: rules that were added, removed or replaced by
// hand do not have it.
func readTable(conn *nftables.Conn, family nftables.TableFamily) (*foundTable, error) {
	tables, err := conn.ListTablesOfFamily(family)
	if err != nil {
		return nil, err
	}
	var table *nftables.Table
	for _, t := range tables {
		if t.Name == TableName {
			table = t
		}
	}
	if table == nil {
		return nil, nil
	}
	chains, err := conn.ListChainsOfTableFamily(family)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, ch := range chains {
		if ch.Table.Name != TableName {
			continue
		}
		ch.Table = table
		if ch.Hooknum == nil || ch.Priority == nil {
			found = append(found, "plain chain "+ch.Name)
			continue
		}
		lines := []string{chainLine(ch.Name, ch.Type, *ch.Hooknum, *ch.Priority)}
		rules, err := conn.GetRules(table, ch)
		if err != nil {
			return nil, err
		}
		for _, rule := range rules {
			comment, _ := userdata.GetString(rule.UserData, userdata.TypeComment)
			lines = append(lines, comment)
		}
		found = append(found, lines...)
	}
	peers, keys, err := readPeers(conn, table)
	return &foundTable{fmt.Sprint(found), peers, keys}, err
}

func sumOf(chains []chain) string {
	var lines []string
	for _, ch := range chains {
		lines = append(lines, chainLine(ch.name, ch.typ, *ch.hook, *ch.prio))
		for _, rule := range ch.rules {
			lines = append(lines, rule.comment())
		}
	}
	return fmt.Sprint(lines)
}

func chainLine(name string, typ nftables.ChainType, hook nftables.ChainHook, prio nftables.ChainPriority) string {
	return fmt.Sprintf("chain %s type %s hook %d priority %d", name, typ, hook, prio)
}

// comment is what `nft list ruleset` shows behind the rule, and how we know it again: at most 128 bytes with its zero.
func (r rule) comment() string {
	sum := sha256.Sum256([]byte(r.text))
	return r.why + " #" + hex.EncodeToString(sum[:6])
}
