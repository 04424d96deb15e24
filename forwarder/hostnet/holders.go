package hostnet

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// PortHolders names what holds a UDP port of this namespace: kernel vxlan devices, and, unless the daemon itself is at work,
// sockets.
func PortHolders(port uint16, ours bool) ([]string, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("hostnet: cannot list the devices: %w", err)
	}
	var who []string
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && v.Port == int(port) {
			who = append(who, "the kernel's vxlan device "+l.Attrs().Name)
		}
	}
	if ours || len(who) > 0 { // a kernel's device has a socket too
		return who, nil
	}
	for _, file := range []string{"udp", "udp6"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err == nil && hasPort(b, port) {
			return []string{"a socket of another program (ss -lunp names it)"}, nil
		}
	}
	return nil, nil
}

// hasPort looks for a local port in /proc/net/udp.
func hasPort(b []byte, port uint16) bool {
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 3 {
			continue
		}
		_, hex, ok := strings.Cut(f[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); ok && err == nil && uint16(n) == port {
			return true
		}
	}
	return false
}
