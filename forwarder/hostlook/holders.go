package hostlook

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/forwarder/hostnet/dump"
)

// PortHolders names what holds a UDP port of this namespace: kernel vxlan devices, and, unless the daemon itself is at work,
// sockets. A device that is down holds nothing: asleep are those that would hold the port when they are set up.
func PortHolders(port uint16, ours bool) (who, asleep []string, err error) {
	links, err := dump.All(netlink.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list the devices: %w", err)
	}
	for _, l := range links {
		v, ok := l.(*netlink.Vxlan)
		switch name := "the kernel's vxlan device " + l.Attrs().Name; {
		case !ok || v.Port != int(port):
		case l.Attrs().Flags&net.FlagUp == 0: // vxlan_open (drivers/net/vxlan) opens the socket, vxlan_stop closes it
			asleep = append(asleep, name)
		default:
			who = append(who, name)
		}
	}
	if ours || len(who) > 0 { // a kernel's device has a socket too
		return who, asleep, nil
	}
	for _, file := range []string{"udp", "udp6"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err == nil && hasPort(b, port) {
			return []string{"a socket of another program (ss -lunp names it)"}, asleep, nil
		}
	}
	return nil, asleep, nil
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
