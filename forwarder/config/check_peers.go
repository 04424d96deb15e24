package config

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/penstock-net/penstock/encap"
)

// station is where a VTEP's MAC must be alone.
type station struct {
	vni uint32
	mac [6]byte
}

// checkPeers checks each peer, and all of them against each other.
func (c *Config) checkPeers() {
	byName, byAddress, byMAC := map[string]int{}, map[netip.Addr]int{}, map[station]int{}
	for i, p := range c.Peers {
		key := fmt.Sprintf("peers[%d]", i)
		at := func(name string) string { return key + "." + name }

		switch j, twice := byName[p.Name]; {
		case c.src.noted(at("name")):
		case !nodeName.MatchString(p.Name):
			c.src.add(at("name"), "%q is no node name: give the peer one (%s)", shorten(p.Name), nameRule)
		case p.Name == c.Node.Name:
			c.src.add(at("name"), "%s is our own name%s: list the other nodes only", p.Name, c.src.line("node.name"))
		case twice:
			c.src.add(at("name"), "%s is the name of peers[%d] too%s: give each peer its own", p.Name, j, c.src.line(fmt.Sprintf("peers[%d].name", j)))
		default:
			byName[p.Name] = i
		}

		switch j, twice := byAddress[p.Address]; {
		case c.src.noted(at("address")):
		case !p.Address.IsValid():
			c.src.add(at("address"), "the peer has no address: give the one it has on the underlay")
		case twice:
			c.src.add(at("address"), "%s is the address of %s too%s: give each peer its own", p.Address, peerTitle(j, c.Peers[j].Name), c.src.line(fmt.Sprintf("peers[%d].address", j)))
		default:
			byAddress[p.Address] = i
		}

		if len(p.PodCIDRs) == 0 && !c.src.noted(at("podCIDRs")) {
			c.src.add(at("podCIDRs"), "the peer has no pods: give at least one CIDR, or remove the peer")
		}
		c.checkPeerEncap(i, byMAC)
	}
}

// checkPeerEncap checks what a peer says of its encapsulation against what that
// encapsulation has.
func (c *Config) checkPeerEncap(i int, byMAC map[station]int) {
	p := c.Peers[i]
	at := func(name string) string { return fmt.Sprintf("peers[%d].%s", i, name) }
	kind := p.Encap
	if kind == "" {
		kind = c.Encap.Type
	}
	if kind == encap.KindIPIP.String() && c.src.has(at("port")) {
		c.src.add(at("port"), "ipip has no port: remove the key")
	}
	if kind != encap.KindVXLAN.String() {
		if c.src.has(at("mac")) {
			c.src.add(at("mac"), "only vxlan has MAC addresses, and this peer uses %s: remove the key", kind)
		}
		return
	}
	if p.MAC == ([6]byte{}) {
		return
	}
	s := station{c.peerVNI(i), p.MAC}
	if j, twice := byMAC[s]; twice {
		c.src.add(at("mac"), "%s is the MAC address of %s too%s: each VTEP of a VNI has its own", encap.MAC(p.MAC), peerTitle(j, c.Peers[j].Name), c.src.line(fmt.Sprintf("peers[%d].mac", j)))
		return
	}
	byMAC[s] = i
}

func (c *Config) peerVNI(i int) uint32 {
	if v := c.Peers[i].VNI; v != 0 {
		return v
	}
	return c.Encap.VNI
}

// Complete fills in Node.Address if the file leaves it out, by asking underlay,
// which is not called otherwise. Then it checks what needs that address. It is
// called once, after Load or Parse and before Diff.
func (c *Config) Complete(underlay func() (netip.Addr, error)) error {
	if c.Node.Address.IsValid() {
		return nil // Parse has checked it
	}
	a, err := underlay()
	if err == nil && !a.IsValid() {
		err = errors.New("no interface has one")
	}
	if err != nil {
		return fmt.Errorf("cannot find this node's underlay address: %w; give it as node.address in %s", err, c.src.file)
	}
	c.Node.Address = a.Unmap().WithZone("")
	c.checkAddress(" (found on this machine, as the file leaves it out)")
	if err := c.src.err(); err != nil {
		c.Node.Address = netip.Addr{}
		return err
	}
	return nil
}

// checkAddress checks what needs our own address; found says how it was come by
// if the file does not give it.
func (c *Config) checkAddress(found string) {
	for i, cidr := range c.Network.CIDRs {
		at := c.src.line(fmt.Sprintf("network.cidrs[%d]", i))
		if cidr.Contains(c.Node.Address) {
			c.src.add("node.address", "%s%s lies in %s%s: the underlay is outside the pods' network", c.Node.Address, found, cidr, at)
		}
		for j, p := range c.Peers {
			if found == "" && cidr.Contains(p.Address) {
				c.src.add(fmt.Sprintf("peers[%d].address", j), "%s lies in %s%s: the underlay is outside the pods' network", p.Address, cidr, at)
			}
		}
	}
	own := c.Node.Address
	if !own.IsValid() {
		return
	}
	if c.Encap.Type == encap.KindIPIP.String() && own.Is6() {
		c.src.add("node.address", "%s%s is an IPv6 address, but ipip runs over IPv4 only: give the node's IPv4 address, or use udp or vxlan", own, found)
	}
	for i, p := range c.Peers {
		key := fmt.Sprintf("peers[%d].address", i)
		switch {
		case !p.Address.IsValid():
		case p.Address == own:
			c.src.add(key, "%s is our own address%s%s: list the other nodes only", own, c.src.line("node.address"), found)
		case p.Address.Is4() != own.Is4():
			c.src.add(key, "%s and our own address %s%s%s are of different families: one underlay is all IPv4 or all IPv6", p.Address, own, c.src.line("node.address"), found)
		case p.Encap == encap.KindIPIP.String() && own.Is6():
			c.src.add(fmt.Sprintf("peers[%d].encap", i), "ipip runs over IPv4 only, and our address is %s%s: use udp or vxlan", own, found)
		}
		if p.MAC != ([6]byte{}) && encap.MAC(p.MAC) == encap.VTEPMAC(own, c.peerVNI(i)) {
			c.src.add(fmt.Sprintf("peers[%d].mac", i), "%s is our own VTEP's MAC address: give the peer's", encap.MAC(p.MAC))
		}
	}
}
