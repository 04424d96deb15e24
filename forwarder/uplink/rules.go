package uplink

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// The rules are written in nf_tables' own messages, as google/nftables (0.3)
// has no fwd expression:
//
//	table netdev penstock {
//	  chain penstock-gso {
//	    type filter hook ingress device penstock-gso priority -500; policy drop;
//	    ether saddr <uplink's MAC> fwd to <uplink>
//	  }
//	}
//
// Constants of linux/netfilter/nf_tables.h that x/sys lacks.
const (
	ingressPriority = -500
	fwdSregDev      = 1 // NFTA_FWD_SREG_DEV
	ethSource       = 6 // offset of the source in an Ethernet header
)

// writeRules replaces the TAP's chain in one transaction.
func writeRules(tap string, uplinks []Link) error {
	conn, err := nl.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("cannot open nftables' netlink socket: %w", err)
	}
	defer conn.Close()
	b := batch{}
	b.control(unix.NFNL_MSG_BATCH_BEGIN)
	table := attrs(func(e *nl.AttributeEncoder) { e.String(unix.NFTA_TABLE_NAME, hostnet.TableName) })
	b.add(unix.NFT_MSG_NEWTABLE, nl.Create, table)
	chain := attrs(func(e *nl.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, hostnet.TableName)
		e.String(unix.NFTA_CHAIN_NAME, tap)
		e.Nested(unix.NFTA_CHAIN_HOOK, func(h *nl.AttributeEncoder) error {
			h.ByteOrder = binary.BigEndian
			h.Uint32(unix.NFTA_HOOK_HOOKNUM, unix.NF_NETDEV_INGRESS)
			h.Int32(unix.NFTA_HOOK_PRIORITY, ingressPriority)
			h.String(unix.NFTA_HOOK_DEV, tap)
			return nil
		})
		e.Uint32(unix.NFTA_CHAIN_POLICY, 0) // NF_DROP
		e.String(unix.NFTA_CHAIN_TYPE, "filter")
	})
	// Add, delete, add: the delete needs something to delete.
	b.add(unix.NFT_MSG_NEWCHAIN, nl.Create, chain)
	b.add(unix.NFT_MSG_DELCHAIN, 0, attrs(func(e *nl.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, hostnet.TableName)
		e.String(unix.NFTA_CHAIN_NAME, tap)
	}))
	b.add(unix.NFT_MSG_NEWCHAIN, nl.Create, chain)
	for _, u := range uplinks {
		b.add(unix.NFT_MSG_NEWRULE, nl.Create|nl.Append, rule(tap, u))
	}
	b.control(unix.NFNL_MSG_BATCH_END)
	if _, err := conn.SendMessages(b.messages); err != nil {
		return fmt.Errorf("cannot write the redirect of %s: %w", tap, err)
	}
	for range b.acks {
		if _, err := conn.Receive(); err != nil {
			return fmt.Errorf("cannot redirect %s to the uplink: %w; the kernel needs nft_fwd_netdev", tap, err)
		}
	}
	return nil
}

// standing says how the kernel numbers the rules of the TAP's chain, and what the
// chain does with the rest: whoever writes them anew, changes or removes them
// changes that.
func standing(tap string) (string, error) {
	conn, err := nftables.New()
	if err != nil {
		return "", fmt.Errorf("cannot open nftables' netlink socket: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return "", fmt.Errorf("cannot list the chains of the nft table netdev %s: %w", hostnet.TableName, err)
	}
	for _, ch := range chains {
		if ch.Table.Name != hostnet.TableName || ch.Name != tap {
			continue
		}
		if ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop || ch.Hooknum == nil {
			return "no drop", nil
		}
		rules, err := conn.GetRules(ch.Table, ch)
		if errors.Is(err, unix.ENOENT) {
			break // gone meanwhile
		}
		if err != nil {
			return "", fmt.Errorf("cannot list the rules of %s: %w", tap, err)
		}
		numbers := "drop"
		for _, r := range rules {
			numbers += fmt.Sprint(" ", r.Handle)
		}
		return numbers, nil
	}
	return "nothing", nil
}

// rule is: source MAC is the uplink's → forward to the uplink.
func rule(tap string, u Link) []byte {
	return attrs(func(e *nl.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, hostnet.TableName)
		e.String(unix.NFTA_RULE_CHAIN, tap)
		e.Nested(unix.NFTA_RULE_EXPRESSIONS, func(list *nl.AttributeEncoder) error {
			expr(list, "payload", func(d *nl.AttributeEncoder) {
				d.Uint32(unix.NFTA_PAYLOAD_DREG, unix.NFT_REG_1)
				d.Uint32(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_LL_HEADER)
				d.Uint32(unix.NFTA_PAYLOAD_OFFSET, ethSource)
				d.Uint32(unix.NFTA_PAYLOAD_LEN, uint32(len(u.Source)))
			})
			expr(list, "cmp", func(d *nl.AttributeEncoder) {
				d.Uint32(unix.NFTA_CMP_SREG, unix.NFT_REG_1)
				d.Uint32(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ)
				value(d, unix.NFTA_CMP_DATA, u.Source[:])
			})
			expr(list, "immediate", func(d *nl.AttributeEncoder) {
				d.Uint32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_1)
				value(d, unix.NFTA_IMMEDIATE_DATA, binary.NativeEndian.AppendUint32(nil, uint32(u.Index)))
			})
			expr(list, "fwd", func(d *nl.AttributeEncoder) { d.Uint32(fwdSregDev, unix.NFT_REG_1) })
			return nil
		})
	})
}

func expr(list *nl.AttributeEncoder, name string, fill func(*nl.AttributeEncoder)) {
	list.Nested(unix.NFTA_LIST_ELEM, func(e *nl.AttributeEncoder) error {
		e.String(unix.NFTA_EXPR_NAME, name)
		e.Nested(unix.NFTA_EXPR_DATA, func(d *nl.AttributeEncoder) error {
			d.ByteOrder = binary.BigEndian
			fill(d)
			return nil
		})
		return nil
	})
}

func value(d *nl.AttributeEncoder, kind uint16, v []byte) {
	d.Nested(kind, func(n *nl.AttributeEncoder) error {
		n.Bytes(unix.NFTA_DATA_VALUE, v)
		return nil
	})
}

func attrs(fill func(*nl.AttributeEncoder)) []byte {
	e := nl.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	fill(e)
	b, err := e.Encode()
	if err != nil {
		panic("uplink: attributes that do not encode: " + err.Error()) // constants only: no input can cause it
	}
	return b
}

// batch is one nf_tables transaction.
type batch struct {
	messages []nl.Message
	acks     int
}

func (b *batch) control(kind uint16) {
	b.messages = append(b.messages, nl.Message{Header: nl.Header{Type: nl.HeaderType(kind), Flags: nl.Request},
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}})
}

func (b *batch) add(kind uint16, flags nl.HeaderFlags, data []byte) {
	b.acks++
	b.messages = append(b.messages, nl.Message{
		Header: nl.Header{Type: nl.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: nl.Request | nl.Acknowledge | flags},
		Data:   append([]byte{unix.NFPROTO_NETDEV, unix.NFNETLINK_V0, 0, 0}, data...)})
}
