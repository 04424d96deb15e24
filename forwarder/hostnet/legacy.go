package hostnet

import (
	"os"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
)

// hasLegacyFilter reports whether legacy iptables (not iptables-nft) has loaded its filter table in this namespace.
func hasLegacyFilter(proto iptables.Protocol) bool {
	file := "/proc/thread-self/net/ip_tables_names"
	if proto == iptables.ProtocolIPv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	b, _ := os.ReadFile(file)
	for name := range strings.Lines(string(b)) {
		if strings.TrimSpace(name) == "filter" {
			return true
		}
	}
	return false
}

// LegacyFilter opens the program that reads legacy iptables' filter table, and names it; nil if this namespace has no such table.
func LegacyFilter(proto iptables.Protocol) (*iptables.IPTables, string, error) {
	if !hasLegacyFilter(proto) {
		return nil, program(proto), nil
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Timeout(lockWait))
	return ipt, program(proto), err
}

// skipFilter reports that there is no filter table at all, so none of our chains either. iptables would create one just
// because it is asked, and that would be something we leave behind.
func skipFilter(proto iptables.Protocol) bool {
	if hasLegacyFilter(proto) {
		return false
	}
	conn, err := OpenNFT()
	if err != nil {
		return false
	}
	family := nftables.TableFamilyIPv4
	if proto == iptables.ProtocolIPv6 {
		family = nftables.TableFamilyIPv6
	}
	tables, err := conn.ListTablesOfFamily(family)
	if err != nil {
		return false
	}
	for _, t := range tables {
		if t.Name == "filter" {
			return false
		}
	}
	return true
}
