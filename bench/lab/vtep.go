package lab

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
)

// vtepMAC is the MAC that design section 5 promises for a Penstock node, worked out without Penstock's code.
func vtepMAC(address netip.Addr, vni uint32) net.HardwareAddr {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s|%d", address, vni))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}
