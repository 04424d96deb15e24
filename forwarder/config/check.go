package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/penstock-net/penstock/encap"
)

// check compares the values with each other and with what is possible. A value
// that was no value at all has been noted already and is passed over.
func (c *Config) check() {
	c.checkNode()
	c.checkEncap()
	c.checkCIDRs()
	c.checkPeers()
	c.checkHost()
	c.checkListeners()
	c.checkPaths()
	c.checkAddress("")
}

// nodeName is what a Kubernetes node or a host may be called.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)

const nameRule = "letters, digits, dots, dashes and underscores, at most 253, with a letter or digit at both ends"

func (c *Config) checkNode() {
	switch {
	case nodeName.MatchString(c.Node.Name) || c.src.noted("node.name"):
	case c.src.has("node.name"):
		c.src.add("node.name", "%q is no node name: use %s", shorten(c.Node.Name), nameRule)
	default:
		c.src.add("node.name", "the host name %q is no node name: give one here (%s)", c.Node.Name, nameRule)
	}
	if len(c.Node.PodCIDRs) == 0 && !c.src.noted("node.podCIDRs") {
		c.src.add("node.podCIDRs", "this node's pods need addresses: give at least one CIDR, such as [10.244.1.0/24]")
	}
	if len(c.Network.CIDRs) == 0 && !c.src.noted("network.cidrs") {
		c.src.add("network.cidrs", "give the CIDRs that the pods of all nodes come from, such as [10.244.0.0/16]")
	}
}

func (c *Config) checkEncap() {
	e := &c.Encap
	kind, err := encap.ParseKind(e.Type)
	if err != nil {
		return
	}
	if kind == encap.KindIPIP && c.src.has("encap.port") {
		c.src.add("encap.port", "ipip has no port: remove the key")
	}
	if e.SourcePorts != 0 && !c.uses(encap.KindVXLAN) {
		c.src.add("encap.sourcePorts", "only vxlan chooses its source port, and neither we nor a peer use it: remove the key")
	}
	most := 1<<16 - 1 - kind.Overhead(c.Node.Address.Is6())
	switch {
	case e.MTU == 0:
	case e.MTU < minMTU:
		c.src.add("encap.mtu", "%d is too small: pods need at least %d; 0 computes it", e.MTU, minMTU)
	case e.MTU < minMTU6 && c.hasIPv6Pods():
		c.src.add("encap.mtu", "%d is too small for IPv6 pods: they need at least %d; 0 computes it", e.MTU, minMTU6)
	case e.MTU > most:
		c.src.add("encap.mtu", "%d is too large: with %s a packet of at most %d bytes fits into one of %d; 0 computes it", e.MTU, kind, most, 1<<16-1)
	}
	n := c.Native
	if n.mayTCP() && n.Port >= nativeTags {
		c.src.add("native.port", "%d is one of the ports from which carrier %s sends, as connections of this node do: give one below %d, such as %d", n.Port, n.Carrier, nativeTags, defaultNativePort)
	}
	if n.Carrier != "off" && n.Port == e.Port {
		c.src.add("native.port", "%d is the port of encap too%s: give the native stream another, such as %d", n.Port, c.src.line("encap.port"), otherPort(n.Port))
	}
}

// nativeTags is where the source ports of the native stream's tcp carrier begin.
const nativeTags = 1 << 15

func otherPort(p uint16) uint16 {
	if p == defaultNativePort {
		return defaultNativePort + 1
	}
	return defaultNativePort
}

// uses reports whether we or a peer use that encapsulation.
func (c *Config) uses(kind encap.Kind) bool {
	for _, p := range c.Peers {
		if p.Encap == kind.String() {
			return true
		}
	}
	return c.Encap.Type == kind.String()
}

func (c *Config) hasIPv6Pods() bool {
	for _, p := range append(append([]netip.Prefix(nil), c.Network.CIDRs...), c.Node.PodCIDRs...) {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}

// gsoDevice is the TAP that the daemon makes beside the node's TUN.
const gsoDevice = "penstock-gso"

func (c *Config) checkHost() {
	d := c.Host.Device
	switch {
	case c.src.noted("host.device"):
	case d == "" || len(d) > 15 || d == "." || d == ".." || strings.ContainsAny(d, "/:%") || strings.ContainsFunc(d, func(r rune) bool { return r <= ' ' || r > '~' }):
		c.src.add("host.device", "%q is no name for a network device: use 1 to 15 characters without space, slash, colon and percent sign, such as %s", shorten(d), DefaultHostDevice)
	case d == "lo" || d == "all" || d == "default" || d == gsoDevice:
		c.src.add("host.device", "%s is taken by the system or by another device of ours: use another name, such as %s", d, DefaultHostDevice)
	}
	if l := c.Limits; l.TotalBuffer < l.PodBuffer {
		key := "limits.totalBuffer"
		if !c.src.has(key) {
			key = "limits.podBuffer"
		}
		c.src.add(key, "totalBuffer (%s) is less than podBuffer (%s): no pod would fit; raise totalBuffer", sizeString(l.TotalBuffer), sizeString(l.PodBuffer))
	}
}

// maxSocketPath is what fits into a sockaddr_un with its final zero (unix(7)).
const maxSocketPath = 107

func (c *Config) checkPaths() {
	absolute := func(key, path, example string) {
		if !c.src.noted(key) && !filepath.IsAbs(path) {
			c.src.add(key, "%q is no absolute path: give one such as %s", shorten(path), example)
		}
	}
	absolute("control.socket", c.Control.Socket, DefaultSocket)
	absolute("state", c.State, DefaultState)
	if n := len(c.Control.Socket); n > maxSocketPath {
		c.src.add("control.socket", "the path has %d bytes, but a unix socket's has at most %d: choose a shorter one", n, maxSocketPath)
	}
	if c.State != "" && filepath.Clean(c.State) == "/" {
		c.src.add("state", "the root directory is no place for state, --cleanup empties it: give a directory of its own such as %s", DefaultState)
	}
}

// listener reads an IP:port. Without anyAddress the IP must be there.
func listener(listen string, anyAddress bool) (netip.AddrPort, error) {
	full := listen
	if anyAddress && strings.HasPrefix(listen, ":") {
		full = "[::]" + listen
	}
	a, err := netip.ParseAddrPort(full)
	switch {
	case err == nil:
		return a, nil
	case strings.HasPrefix(listen, ":"):
		return a, fmt.Errorf("%q means every address of the node: give the loopback address, as in %s", shorten(listen), DefaultDebugListen)
	}
	return a, fmt.Errorf("%q is no IP address with a port: write it as in %s or [::1]:9474, or \"\" for none", shorten(listen), DefaultDebugListen)
}

func (c *Config) checkListeners() {
	var debug, metrics netip.AddrPort
	var err error
	if l := c.Debug.Listen; l != "" && !c.src.noted("debug.listen") {
		debug, err = listener(l, c.Debug.AllowRemote)
		switch {
		case err != nil:
			c.src.add("debug.listen", "%v", err)
		case !debug.Addr().Unmap().IsLoopback() && !c.Debug.AllowRemote:
			c.src.add("debug.listen", "%s is no loopback address, and profiles show what is in memory: use %s, open metrics alone by metrics.listen, or say debug.allowRemote: true", debug.Addr(), DefaultDebugListen)
		}
	}
	if l := c.Metrics.Listen; l != "" && !c.src.noted("metrics.listen") {
		if metrics, err = listener(l, true); err != nil {
			c.src.add("metrics.listen", "%v", err)
			return
		}
		switch n := c.Native; {
		case metrics.Port() == 0:
		case debug.Port() == metrics.Port() && sharesAddress(debug.Addr(), metrics.Addr()):
			c.src.add("metrics.listen", "debug.listen%s has this address already and serves metrics too: give another port or remove one of the two", c.src.line("debug.listen"))
		case n.mayTCP() && metrics.Port() == n.Port:
			c.src.add("metrics.listen", "%d is the port of the native stream too%s, which keeps TCP from it: give another", n.Port, c.src.line("native.port"))
		}
	}
}

func sharesAddress(a, b netip.Addr) bool {
	return a == b || a.IsUnspecified() || b.IsUnspecified()
}
