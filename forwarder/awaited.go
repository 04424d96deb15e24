package forwarder

import (
	"net/netip"
	"slices"

	"github.com/penstock-net/penstock/table"
)

// Await says which addresses are of pods whose port is yet to come back, as that of a tun pod behind a restart: all of them, in place of
// those named before. What is for them is dropped without an answer: whoever sends it sends it again, where an ICMP error would have
// ended the attempt. Attach takes its addresses over.
func (f *Forwarder) Await(addresses []netip.Addr) error {
	f.control.Lock()
	defer f.control.Unlock()
	taken := map[netip.Addr]bool{}
	for _, p := range f.ports {
		for _, a := range p.addresses {
			taken[a] = true
		}
	}
	err := f.table.Update(func(x *table.Txn[hop]) error {
		n := x.Network(f.settings.VNI)
		for _, a := range f.awaited {
			if !taken[a] && f.ownAddress(a) && !slices.Contains(addresses, a) {
				n.DeleteRoute(netip.PrefixFrom(a, a.BitLen()))
			}
		}
		for _, a := range addresses {
			if !taken[a] && f.ownAddress(a) {
				n.SetRoute(netip.PrefixFrom(a, a.BitLen()), f.hops.awaited)
			}
		}
		return nil
	})
	if err == nil {
		f.awaited = slices.Clone(addresses)
	}
	return err
}

// ownAddress is whether a pod of this node may have a by the settings.
func (f *Forwarder) ownAddress(a netip.Addr) bool {
	return slices.ContainsFunc(f.settings.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) && !slices.Contains(f.settings.hostAddresses(), a)
}
