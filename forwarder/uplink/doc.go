// Package uplink finds the way that whole encapsulated superframes take: they
// enter the kernel through the TAP penstock-gso and are redirected to the
// uplink, past the host's routing, so someone must know uplink and next hop.
//
//	peer ─▶ route (RTM_GETROUTE) ─▶ device, gateway ─▶ neighbour ─▶ Link{device, MACs}
//	          └ rules with marks, xfrm policies, no Ethernet, unresolved ─▶ none, and why
//
//	penstock-gso ─ingress─▶ netdev penstock / penstock-gso: ether saddr = uplink's MAC ─▶ fwd uplink
//
// The tcp carrier of the native stream takes the same Link for its packet socket,
// and needs neither TAP nor redirect.
//
// A Watcher keeps this true while routes, links, neighbours, rules and policies
// change, and tells the forwarder, which takes another mechanism where there is
// no Link. It is control plane only: nothing here runs per packet.
package uplink
