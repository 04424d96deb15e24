package hostlook

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// DumpTables writes down our own nft tables, and nobody else's: a line for each table, chain and rule. A rule of ours carries
// what it is for in its comment.
func DumpTables() (string, error) {
	conn, err := hostnet.OpenNFT()
	if err != nil {
		return "", err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return "", fmt.Errorf("cannot list the chains of nftables: %w", err)
	}
	var b strings.Builder
	for _, ch := range chains {
		if ch.Table.Name != hostnet.TableName {
			continue
		}
		family := "netdev"
		if ch.Table.Family == nftables.TableFamilyINet {
			family = "inet"
		}
		fmt.Fprintf(&b, "table %s %s chain %s", family, ch.Table.Name, ch.Name)
		if ch.Hooknum != nil && ch.Priority != nil {
			fmt.Fprintf(&b, " type %s hook %d priority %d", ch.Type, *ch.Hooknum, *ch.Priority)
		}
		if ch.Policy != nil {
			fmt.Fprintf(&b, " policy %s", map[nftables.ChainPolicy]string{nftables.ChainPolicyAccept: "accept", nftables.ChainPolicyDrop: "drop"}[*ch.Policy])
		}
		b.WriteByte('\n')
		rules, err := conn.GetRules(ch.Table, ch)
		if err != nil {
			return b.String(), fmt.Errorf("cannot list the rules of chain %s: %w", ch.Name, err)
		}
		for i, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			fmt.Fprintf(&b, "  rule %d handle %d: %s", i+1, r.Handle, comment)
			for _, e := range r.Exprs {
				fmt.Fprintf(&b, " %s", strings.TrimPrefix(fmt.Sprintf("%T", e), "*expr."))
				if c, ok := e.(*expr.Counter); ok {
					fmt.Fprintf(&b, "(%d packets, %d bytes)", c.Packets, c.Bytes)
				}
			}
			b.WriteByte('\n')
		}
	}
	return b.String(), nil
}
