package hostlook

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/penstock-net/penstock/forwarder/hostnet"
)

// agentChains are the names by which policy agents begin those of their chains that FORWARD leads to.
var agentChains = []struct{ prefix, agent string }{
	{"KUBE-ROUTER-", "kube-router"},
	{"KUBE-NWPLCY-", "kube-router"},
	{"KUBE-POD-FW-", "kube-router"},
	{"cali-", "Calico or Canal"},
	{"CILIUM_", "Cilium"},
	{"WEAVE-NPC", "Weave Net"},
	{"ANTREA-", "Antrea"},
}

// PolicyAgents names the agents whose chains are in iptables or nftables here: they filter pods' packets in FORWARD, which
// what goes through a veth or tun port never passes (design section 6). Each once, with a chain of its.
func PolicyAgents() ([]string, error) {
	conn, err := hostnet.OpenNFT()
	if err != nil {
		return nil, err
	}
	var names []string
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("cannot list the chains of nftables: %w", err)
	}
	for _, ch := range chains {
		names = append(names, ch.Name)
	}
	for _, proto := range []iptables.Protocol{iptables.ProtocolIPv4, iptables.ProtocolIPv6} {
		ipt, program, err := hostnet.LegacyFilter(proto)
		if err != nil {
			return nil, fmt.Errorf("legacy iptables has a filter table here, and %s does not run to read it: %w", program, err)
		}
		if ipt == nil {
			continue
		}
		list, err := ipt.ListChains("filter")
		if err != nil {
			return nil, fmt.Errorf("%s cannot list the chains: %w", program, err)
		}
		names = append(names, list...)
	}
	return agentsOf(names), nil
}

func agentsOf(chains []string) (found []string) {
	for _, a := range agentChains {
		i := slices.IndexFunc(chains, func(c string) bool { return strings.HasPrefix(c, a.prefix) })
		if i >= 0 && !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, a.agent+" (") }) {
			found = append(found, fmt.Sprintf("%s (chain %s)", a.agent, chains[i]))
		}
	}
	return found
}
