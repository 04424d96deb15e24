package lab

import (
	"fmt"

	"github.com/penstock-net/penstock/cni/ethtool"
)

// The features that decide how a packet crosses an underlay, by the names of ethtool -k.
var (
	tsoFeatures = []string{
		"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation",
		"tx-tcp-accecn-segmentation",
	}
	tunnelFeatures = []string{
		"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-udp-segmentation",
		"tx-ipxip4-segmentation", "tx-ipxip6-segmentation",
	}
)

// Features lists the features that can be changed on this device, true if they are on.
func (n *NS) Features(device string) (map[string]bool, error) {
	f, err := ethtool.Features(n.fd, device)
	if err != nil {
		return nil, fmt.Errorf("lab: in %s: %w", n.Name, err)
	}
	return f, nil
}

// SetFeatures turns features on and off and checks that the device took them, as the kernel refuses silently.
func (n *NS) SetFeatures(device string, want map[string]bool) error {
	if err := ethtool.SetFeatures(n.fd, device, want); err != nil {
		return fmt.Errorf("lab: in %s: %w", n.Name, err)
	}
	return nil
}

// allOff is a request for SetFeatures.
func allOff(lists ...[]string) map[string]bool {
	want := map[string]bool{}
	for _, list := range lists {
		for _, name := range list {
			want[name] = false
		}
	}
	return want
}
