package lab

import (
	"fmt"
	"strconv"
	"strings"
)

// TcpExt reads the counters of /proc/net/netstat (TcpExt, IpExt, MPTcpExt) of the namespace by their bare names:
// "TCPSACKReorder", "TCPDSACKRecv".
func (n *NS) TcpExt() (map[string]uint64, error) { return n.counters("net/netstat", false) }

// Snmp reads /proc/net/snmp and /proc/net/snmp6: "Udp.RcvbufErrors", "Tcp.RetransSegs", "Ip6.ReasmFails".
func (n *NS) Snmp() (map[string]uint64, error) {
	m, err := n.counters("net/snmp", true)
	if err != nil {
		return nil, err
	}
	content, err := n.ReadProc("net/snmp6")
	if err != nil {
		return m, nil // a kernel without IPv6
	}
	for line := range strings.Lines(string(content)) {
		if f := strings.Fields(line); len(f) == 2 { // "Ip6ReasmFails  0"
			group, name, ok := strings.Cut(f[0], "6")
			if v, err := strconv.ParseUint(f[1], 10, 64); ok && err == nil {
				m[group+"6."+name] = v
			}
		}
	}
	return m, nil
}

// counters reads pairs of lines: names, then values, each after the group's name.
func (n *NS) counters(path string, prefix bool) (map[string]uint64, error) {
	content, err := n.ReadProc(path)
	if err != nil {
		return nil, fmt.Errorf("lab: %s of %s: %w", path, n.Name, err)
	}
	m := map[string]uint64{}
	lines := strings.Split(string(content), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j := 1; j < min(len(names), len(values)); j++ {
			v, err := strconv.ParseInt(values[j], 10, 64) // some are −1
			if err != nil {
				return nil, fmt.Errorf("lab: %s of %s: %s is %q", path, n.Name, names[j], values[j])
			}
			key := names[j]
			if prefix {
				key = strings.TrimSuffix(names[0], ":") + "." + key
			}
			m[key] = uint64(v)
		}
	}
	return m, nil
}
