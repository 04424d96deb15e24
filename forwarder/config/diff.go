package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// setting is one key and how a running daemon can take over its change.
type setting struct {
	key     string
	restart bool
	get     func(c *Config) string
}

// settings are all keys. What a reload cannot change is what sockets, devices,
// rings and workers were made from.
var settings = []setting{
	{"node.name", true, func(c *Config) string { return c.Node.Name }},
	{"node.address", true, func(c *Config) string { return c.Node.Address.String() }},
	{"node.podCIDRs", false, func(c *Config) string { return cidrs(c.Node.PodCIDRs) }}, // but see Diff
	{"network.cidrs", false, func(c *Config) string { return cidrs(c.Network.CIDRs) }},
	{"encap.type", true, func(c *Config) string { return c.Encap.Type }},
	{"encap.port", true, func(c *Config) string { return fmt.Sprint(c.Encap.Port) }},
	{"encap.vni", true, func(c *Config) string { return fmt.Sprint(c.Encap.VNI) }},
	{"encap.mtu", false, func(c *Config) string { return fmt.Sprint(c.Encap.MTU) }},
	{"encap.sourcePorts", true, func(c *Config) string { return fmt.Sprint(c.Encap.SourcePorts) }},
	{"encap.copyDSCP", false, func(c *Config) string { return fmt.Sprint(c.Encap.CopyDSCP) }},
	{"encap.clampMSS", false, func(c *Config) string { return fmt.Sprint(c.Encap.ClampMSS) }},
	{"peers", false, func(c *Config) string { return fmt.Sprint(c.Peers) }},
	{"host.device", true, func(c *Config) string { return c.Host.Device }},
	{"host.masquerade", false, func(c *Config) string { return fmt.Sprint(c.Host.Masquerade) }},
	{"host.forward", false, func(c *Config) string { return fmt.Sprint(c.Host.Forward) }},
	{"limits.podBuffer", true, func(c *Config) string { return sizeString(c.Limits.PodBuffer) }},
	{"limits.totalBuffer", true, func(c *Config) string { return sizeString(c.Limits.TotalBuffer) }},
	{"workers", true, func(c *Config) string { return fmt.Sprint(c.Workers) }},
	{"priority", true, func(c *Config) string { return autoOrOff(c.Priority) }},
	{"polling", true, func(c *Config) string { return autoOrOff(c.Polling) }},
	{"native.carrier", true, func(c *Config) string { return c.Native.Carrier }},
	{"native.port", true, func(c *Config) string { return fmt.Sprint(c.Native.Port) }},
	{"offload.tunnelGSO", true, func(c *Config) string { return autoOrOff(c.Offload.TunnelGSO) }},
	{"offload.udpSegment", true, func(c *Config) string { return autoOrOff(c.Offload.UDPSegment) }},
	{"offload.udpGRO", true, func(c *Config) string { return autoOrOff(c.Offload.UDPGRO) }},
	{"offload.tunOffload", true, func(c *Config) string { return autoOrOff(c.Offload.TUNOffload) }},
	{"offload.tunBatch", true, func(c *Config) string { return autoOrOff(c.Offload.TUNBatch) }},
	{"offload.mergeWrites", true, func(c *Config) string { return autoOrOff(c.Offload.MergeWrites) }},
	{"offload.packetRing", true, func(c *Config) string { return c.Offload.PacketRing }},
	{"control.socket", true, func(c *Config) string { return c.Control.Socket }},
	{"debug.listen", true, func(c *Config) string { return c.Debug.Listen }},
	{"debug.allowRemote", true, func(c *Config) string { return fmt.Sprint(c.Debug.AllowRemote) }},
	{"metrics.listen", true, func(c *Config) string { return c.Metrics.Listen }},
	{"state", true, func(c *Config) string { return c.State }},
}

// A Change is one key that a reload cannot change.
type Change struct{ Key, Old, New string }

// String returns what changes and that it needs a restart.
func (c Change) String() string {
	s := fmt.Sprintf("%s: %s → %s needs a restart", c.Key, shown(c.Old), shown(c.New))
	if c.Key == "state" {
		s += " that takes the directory along: stop the daemon, move its files, then start, or the pods that run are not known any more"
	}
	return s
}

func shown(v string) string {
	if v == "" {
		return `""`
	}
	return v
}

// Diff returns what is not the same, in the order of the file: the keys that a
// reload can change, and what only a restart can. With any of those a reload must
// not go from old to new. Both must be complete.
//
// A reload may add a pod CIDR to the node but not take one away: pods may live
// in it.
func Diff(old, new *Config) (live []string, restart []Change) {
	for _, s := range settings {
		a, b := s.get(old), s.get(new)
		fixed := s.restart
		if s.key == "node.podCIDRs" {
			fixed = slices.ContainsFunc(old.Node.PodCIDRs, func(p netip.Prefix) bool {
				return !slices.Contains(new.Node.PodCIDRs, p)
			})
		}
		switch {
		case a == b:
		case fixed:
			restart = append(restart, Change{s.key, a, b})
		default:
			live = append(live, s.key)
		}
	}
	return live, restart
}

// RestartKeys returns the keys that only a restart can change.
func RestartKeys() []string { return keys(true) }

// ReloadKeys returns the keys that a reload can change, node.podCIDRs among
// them, to which Diff makes an exception.
func ReloadKeys() []string { return keys(false) }

func keys(restart bool) (all []string) {
	for _, s := range settings {
		if s.restart == restart {
			all = append(all, s.key)
		}
	}
	return all
}

func cidrs(all []netip.Prefix) string {
	s := make([]string, len(all))
	for i, p := range all {
		s[i] = p.String()
	}
	return "[" + strings.Join(s, ", ") + "]"
}

func autoOrOff(on bool) string {
	if on {
		return "auto"
	}
	return "off"
}
