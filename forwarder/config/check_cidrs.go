package config

import (
	"fmt"
	"net/netip"

	"github.com/gaissmai/bart"
)

// owned is a prefix of pods and whose it is.
type owned struct {
	key   string
	owner string
}

// checkCIDRs makes sure that every pod address belongs to exactly one node and
// every node's pods to the cluster.
func (c *Config) checkCIDRs() {
	var cluster bart.Lite
	for i, p := range c.Network.CIDRs {
		if !p.IsValid() {
			continue
		}
		for j, q := range c.Network.CIDRs[:i] {
			if p.Overlaps(q) {
				c.src.add(fmt.Sprintf("network.cidrs[%d]", i), "%s overlaps %s%s: keep the larger one only", p, q, c.src.line(fmt.Sprintf("network.cidrs[%d]", j)))
				break
			}
		}
		cluster.Insert(p)
	}

	var pods bart.Table[owned]
	take := func(key, owner string, p netip.Prefix) {
		if !p.IsValid() {
			return
		}
		if cluster.Size() > 0 && !cluster.LookupPrefix(p) {
			c.src.add(key, "%s lies outside network.cidrs%s: add a CIDR there that covers it, or correct it", p, c.src.line("network.cidrs"))
		}
		for q, o := range overlapping(&pods, p) {
			c.src.add(key, "%s overlaps %s of %s%s: every pod address belongs to one node", p, q, o.owner, c.src.line(o.key))
			return
		}
		pods.Insert(p, owned{key, owner})
	}
	for i, p := range c.Node.PodCIDRs {
		key := fmt.Sprintf("node.podCIDRs[%d]", i)
		if p.IsValid() && p.IsSingleIP() {
			c.src.add(key, "%s has no room for a pod: its first address is %s's own; give a larger CIDR", p, DefaultHostDevice)
		}
		take(key, "this node", p)
	}
	for i, peer := range c.Peers {
		for j, p := range peer.PodCIDRs {
			take(fmt.Sprintf("peers[%d].podCIDRs[%d]", i, j), peerTitle(i, peer.Name), p)
		}
	}
}

// overlapping yields the prefixes in t that share addresses with p.
func overlapping(t *bart.Table[owned], p netip.Prefix) func(func(netip.Prefix, owned) bool) {
	return func(yield func(netip.Prefix, owned) bool) {
		for q, o := range t.Supernets(p) {
			if !yield(q, o) {
				return
			}
		}
		t.Subnets(p)(yield)
	}
}

func peerTitle(i int, name string) string {
	if name == "" {
		return fmt.Sprintf("peers[%d]", i)
	}
	return fmt.Sprintf("peer %s", shorten(name))
}
