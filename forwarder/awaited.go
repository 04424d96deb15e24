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
	awaited := make(map[netip.Addr]bool, len(addresses))
	for _, a := range addresses {
		awaited[a] = true
	}
	err := f.table.Update(func(x *table.Txn[hop]) error {
		n := x.Network(f.settings.VNI)
		for a := range f.awaited {
			if !awaited[a] && isHop(n.Route(a), hopAwaited) {
				n.DeleteRoute(netip.PrefixFrom(a, a.BitLen()))
			}
		}
		for a := range awaited { // of one that a pod has already, or nobody here can have, the route is another's
			if isHop(n.Route(a), hopNoPod) {
				n.SetRoute(netip.PrefixFrom(a, a.BitLen()), f.hops.awaited)
			}
		}
		return nil
	})
	if err == nil {
		f.awaited = awaited
	}
	return err
}

func isHop(h *hop, kind hopKind) bool { return h != nil && h.kind == kind }

// ownAddress is whether a pod of this node may have a by the settings.
func (f *Forwarder) ownAddress(a netip.Addr) bool {
	return slices.ContainsFunc(f.settings.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) && !slices.Contains(f.settings.hostAddresses(), a)
}
