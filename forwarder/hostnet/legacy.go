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

// skipFilter reports that there is no filter table at all, so none of our chains either. iptables would create one just
// because it is asked, and that would be something we leave behind.
func skipFilter(proto iptables.Protocol) bool {
	if hasLegacyFilter(proto) {
		return false
	}
	conn, err := nftConn()
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
