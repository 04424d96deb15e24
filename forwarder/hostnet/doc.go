// Package hostnet keeps what the daemon owns in the host's network stack, outside of the packet path.
//
//	                       the host's stack
//	 ┌──────────────────────────────────────────────────────────────────────┐
//	 │ routes: network.cidrs dev penstock0 src 10.244.1.0 proto 112         │
//	 │ inet penstock: prerouting, output   notrack for our own tunnels      │
//	 │                prerouting           drop of the native stream's TCP  │
//	 │                output               no ICMP redirects to pods        │
//	 │                postrouting          masquerade pods → outside        │
//	 │                leaving              nobody else to peers' tunnels    │
//	 │ iptables: FORWARD → PENSTOCK-FWD    accepts, where asked for         │
//	 └─┬────────────────────────────────────────────────────┬───────────────┘
//	   │ penstock0: MTU, up, 10.244.1.0/32                  ╳ netdev penstock: one ingress
//	   │ (made by ring, read by the workers)                │ chain a device, policy drop
//	workers                                               ps… (pod's veth, tapped by AF_PACKET);
//	                                                      the uplink's: policy accept, drop of the native stream's TCP
//
// What holds:
//   - Everything is reconciled, never rebuilt: [Host.Apply] reads what is there, adds what is missing and
//     removes what is ours and stale, in an order in which traffic keeps flowing. A second Apply changes nothing,
//     so a daemon that starts again disturbs nothing.
//   - Ours is recognised by a mark that others do not use: routes by their protocol number [RouteProtocol], nft tables
//     and the iptables chain by their name, addresses by sitting on our own device. What others own is never
//     changed; where it is in the way, a [Finding] or an error names it.
//   - nft rules change in one transaction, or not at all.
//   - [Cleanup] needs no state: it finds what is ours by the same marks.
//
// strays.go has the routes of others in the pods' network, which Apply warns of; what else others may have on the host package hostlook
// examines.
//
// All functions act in the network namespace of the calling thread. Nothing here runs per packet, so netlink
// sockets may use Go's netpoller.
package hostnet
