package config

import (
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// text reads a string. A number or a truth value must be in quotes to be one.
func text(to *string) reader {
	return func(s *source, n *yaml.Node, key string) {
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
			s.add(key, "this must be text, not %s: put it in quotes if it is meant so", describe(n))
			return
		}
		*to = n.Value
	}
}

// choice reads one of a few words.
func choice(to *string, words ...string) reader {
	return func(s *source, n *yaml.Node, key string) {
		for _, w := range words {
			if n.Kind == yaml.ScalarNode && n.Value == w {
				*to = w
				return
			}
		}
		s.add(key, "this must be %s, not %s", either(words), describe(n))
	}
}

func either(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// auto reads auto (true) or off (false).
func auto(to *bool) reader {
	return func(s *source, n *yaml.Node, key string) {
		before := len(s.problems)
		var word string
		choice(&word, "auto", "off")(s, n, key)
		if len(s.problems) == before {
			*to = word == "auto"
		}
	}
}

func boolean(to *bool) reader {
	return func(s *source, n *yaml.Node, key string) {
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
			s.add(key, "this must be true or false, not %s", describe(n))
			return
		}
		*to = strings.EqualFold(n.Value, "true")
	}
}

// decimal leaves out what people and YAML read differently: 010, 1_000, 0x1f.
var decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

// whole reads a whole number within bounds; unit says of what.
func whole[T ~int | ~uint16 | ~uint32](to *T, least, most int64, why string) reader {
	return func(s *source, n *yaml.Node, key string) {
		i, ok := number(n)
		switch {
		case !ok:
			s.add(key, "this must be a whole number from %d to %d, not %s", least, most, describe(n))
		case i < least || i > most:
			s.add(key, "%s is out of range: %s goes from %d to %d", shorten(n.Value), why, least, most)
		default:
			*to = T(i)
		}
	}
}

// number returns a decimal whole number; one that is too large for any key is
// as large as can be.
func number(n *yaml.Node) (int64, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!str" || !decimal.MatchString(n.Value) {
		return 0, false
	}
	i, _ := strconv.ParseInt(n.Value, 10, 64) // on overflow the bound on that side
	return i, true
}

var units = []struct {
	name string
	size int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}

// size reads bytes: 2MiB, 512KiB, 1GiB or a plain number of bytes.
func size(to *int64, least, most int64) reader {
	return func(s *source, n *yaml.Node, key string) {
		i, ok := number(n)
		for _, u := range units {
			digits, has := strings.CutSuffix(n.Value, u.name)
			if digits = strings.TrimSpace(digits); n.Kind == yaml.ScalarNode && has && decimal.MatchString(digits) {
				count, err := strconv.ParseInt(digits, 10, 64)
				if i, ok = count*u.size, true; err != nil || count > most {
					i = most + 1
				}
			}
		}
		switch {
		case !ok:
			s.add(key, "this must be a size such as 512KiB, 2MiB or 1GiB, not %s", describe(n))
		case i < least || i > most:
			s.add(key, "%s is out of range: this size goes from %s to %s", shorten(n.Value), sizeString(least), sizeString(most))
		default:
			*to = i
		}
	}
}

// sizeString writes a size as size reads it.
func sizeString(n int64) string {
	for i := len(units) - 1; i >= 0; i-- {
		if u := units[i]; n != 0 && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// address reads an IP address that a node can have on the underlay.
func address(to *netip.Addr) reader {
	return func(s *source, n *yaml.Node, key string) {
		a, err := netip.ParseAddr(n.Value)
		switch {
		case n.Kind != yaml.ScalarNode || err != nil:
			s.add(key, "this must be an IP address such as 192.0.2.1 or 2001:db8::1, not %s", describe(n))
		case a.Is4In6():
			s.add(key, "%s is an IPv4-mapped address: write %s", a, a.Unmap())
		case a.Zone() != "":
			s.add(key, "%s has a zone: give an address that is the same on every node", a)
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == broadcast:
			s.add(key, "%s cannot be reached from other nodes (%s): give the node's own address on the underlay", a, nature(a))
		default:
			*to = a
		}
	}
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

func nature(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "unspecified"
	case a.IsLoopback():
		return "loopback"
	case a.IsMulticast():
		return "multicast"
	case a.IsLinkLocalUnicast():
		return "link-local"
	}
	return "broadcast"
}

// reserved are the ranges in which no pod can live.
var reserved = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network (RFC 1122)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local: the pods' gateway 169.254.1.1 is there"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local: the pods' gateway fe80::1 is there"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// prefixes reads a list of CIDRs of pods. One that is wrong leaves a zero value
// behind, so that numbers stay those of the file.
func prefixes(to *[]netip.Prefix) reader {
	return func(s *source, n *yaml.Node, key string) {
		*to = nil
		if n.Kind == yaml.ScalarNode && !isNull(n) {
			s.add(key, "this must be a list, not %s: put it in [brackets]", describe(n))
			return
		}
		list(func(i int) reader {
			*to = append(*to, netip.Prefix{})
			return prefix(&(*to)[i])
		})(s, n, key)
	}
}

func prefix(to *netip.Prefix) reader {
	return func(s *source, n *yaml.Node, key string) {
		p, err := netip.ParsePrefix(n.Value)
		if n.Kind != yaml.ScalarNode || err != nil || p.Addr().Is4In6() {
			s.add(key, "this must be a CIDR such as 10.244.1.0/24 or fd00:10:244:1::/64, not %s", describe(n))
			return
		}
		if p != p.Masked() {
			s.add(key, "%s has bits set behind its length: write %s", p, p.Masked())
			return
		}
		for _, r := range reserved {
			if p.Overlaps(r.prefix) {
				s.add(key, "%s has no room for pods: it touches %s (%s); choose another range", p, r.prefix, r.what)
				return
			}
		}
		*to = p
	}
}

// mac reads a VTEP's MAC.
func mac(to *[6]byte) reader {
	return func(s *source, n *yaml.Node, key string) {
		m, err := net.ParseMAC(n.Value)
		switch {
		case n.Kind != yaml.ScalarNode || err != nil || len(m) != 6:
			s.add(key, "this must be a MAC address of six bytes such as 02:00:00:00:00:02, not %s", describe(n))
		case m[0]&1 != 0:
			s.add(key, "%s is a multicast address: a VTEP has a unicast one, its first byte is even", m)
		case [6]byte(m) == [6]byte{}:
			s.add(key, "%s is no station's address: give the peer's, or leave the key out for a Penstock node", m)
		default:
			*to = [6]byte(m)
		}
	}
}
