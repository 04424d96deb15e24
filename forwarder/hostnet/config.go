package hostnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// TableName is the name of our two nft tables, of the families inet and netdev.
	TableName = "penstock"
	// ForwardChain is our chain in iptables' table filter.
	ForwardChain = "PENSTOCK-FWD"
	// RouteProtocol marks our routes (rtm_protocol): 'p', taken by nobody in iproute2's rt_protos.
	RouteProtocol = 112
	// GSODevice is the TAP that takes tunnel superframes (design section 4, mechanism 1). Made by the forwarder, known
	// here because Cleanup removes it.
	GSODevice = "penstock-gso"
)

// A Tunnel is one thing that the daemon speaks on the underlay and that must stay out of conntrack: an entry a flow
// would cost time for each packet and tell nobody anything.
type Tunnel struct {
	Proto uint8  // 17 UDP, 4 IP in IP, 41 IPv6 in IP
	Port  uint16 // UDP destination port; 0 with the protocols 4 and 41
}

func (t Tunnel) String() string {
	if t.Proto == unix.IPPROTO_UDP {
		return fmt.Sprintf("udp port %d", t.Port)
	}
	return fmt.Sprintf("protocol %d", t.Proto)
}

// A Config says what the host's stack shall look like.
type Config struct {
	Device     string         // the node's TUN; made by ring before Apply
	MTU        int            // bytes of an IP packet: the pods' MTU; 0: leave it
	Address    netip.Addr     // the node's address on the underlay; notrack is limited to it
	PodCIDRs   []netip.Prefix // this node's
	Cluster    []netip.Prefix // all pods' (network.cidrs)
	Tunnels    []Tunnel       // what we and our peers listen on; none: no notrack rules
	Peers      []netip.Addr   // nodes that believe what comes from Address; to their tunnels nobody else may send by it
	Masquerade bool           // pods → outside leave with the host's address
	Forward    bool           // accepts in iptables' FORWARD
	Carrier    Carrier        // of the native stream; zero: none
	Log        *slog.Logger   // nil: slog.Default()
}

// A Host reconciles the host's stack with its Config. Its methods may be called from any goroutine, one acts at a time. It holds nothing
// open, and what it made stays, for a successor; Cleanup removes it.
type Host struct {
	mu  sync.Mutex
	cfg Config
	log *slog.Logger

	index       int       // of our device at the last Apply; 0 before
	findings    []Finding // of the last Apply
	unforwarded bool      // host.forward is off and nothing of it is left
}

// New checks cfg and touches nothing.
func New(cfg Config) (*Host, error) {
	cfg, err := cfg.normal()
	if err != nil {
		return nil, err
	}
	return &Host{cfg: cfg, log: cfg.Log}, nil
}

// normal returns a checked copy with masked prefixes, so that comparisons with what the kernel tells are exact.
func (c Config) normal() (Config, error) {
	var errs []error
	if c.Device == "" || len(c.Device) >= unix.IFNAMSIZ {
		errs = append(errs, fmt.Errorf("%q cannot be a device's name; use 1 to %d characters in host.device", c.Device, unix.IFNAMSIZ-1))
	}
	if c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535) {
		errs = append(errs, fmt.Errorf("an MTU of %d bytes is impossible for %s; choose 576 to 65535", c.MTU, c.Device))
	}
	if (len(c.Tunnels) > 0 || c.Carrier.Port != 0) && !c.Address.IsValid() {
		errs = append(errs, errors.New("tunnels without the node's address; set node.address"))
	}
	for _, t := range c.Tunnels {
		switch {
		case t.Proto == unix.IPPROTO_UDP && t.Port != 0:
		case (t.Proto == unix.IPPROTO_IPIP || t.Proto == unix.IPPROTO_IPV6) && t.Port == 0:
		default:
			errs = append(errs, fmt.Errorf("no tunnel has protocol %d with port %d; use udp (17) with a port, or 4 or 41 without", t.Proto, t.Port))
		}
	}
	c.Address = c.Address.Unmap().WithZone("")
	// Nothing goes from Address to one of the other family.
	c.Peers = slices.DeleteFunc(slices.Clone(c.Peers), func(a netip.Addr) bool { return a.Is4() != c.Address.Is4() })
	slices.SortFunc(c.Peers, netip.Addr.Compare)
	c.Peers = slices.Compact(c.Peers)
	var err error
	if c.PodCIDRs, err = masked("node.podCIDRs", c.PodCIDRs); err != nil {
		errs = append(errs, err)
	}
	if c.Cluster, err = masked("network.cidrs", c.Cluster); err != nil {
		errs = append(errs, err)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c, errors.Join(errs...)
}

func masked(key string, in []netip.Prefix) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(in))
	for _, p := range in {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s holds %s, which is no prefix; write it like 10.244.1.0/24", key, p)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// routed returns the prefixes that have a route to our device: the cluster's, and this node's pods' where no cluster
// prefix covers them.
func (c *Config) routed() []netip.Prefix {
	out := append([]netip.Prefix(nil), c.Cluster...)
	for _, p := range c.PodCIDRs {
		if !covered(p, c.Cluster) {
			out = append(out, p)
		}
	}
	return out
}

// source returns the address that the host uses towards pods of the same family as p.
func (c *Config) source(p netip.Prefix) (netip.Addr, bool) {
	for _, own := range c.PodCIDRs {
		if own.Addr().Is4() == p.Addr().Is4() {
			return FirstAddress(own), true
		}
	}
	return netip.Addr{}, false
}

func (c *Config) has4() bool {
	return slices.ContainsFunc(c.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() })
}

func (c *Config) has6() bool {
	return slices.ContainsFunc(c.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

func covered(p netip.Prefix, by []netip.Prefix) bool {
	for _, q := range by {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// FirstAddress returns the address that our device holds for a pod CIDR: its first one, which no pod ever gets.
func FirstAddress(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr() }
