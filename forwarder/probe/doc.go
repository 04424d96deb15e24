// Package probe asks other nodes through the overlay, and answers them: what penstockctl doctor and bench stand on.
//
//	  this node                                                   a peer
//	┌──────────────────────┐   the normal data path    ┌──────────────────────┐
//	│ Prober.Path, .Bench  │                           │ responder: UDP 7472, │
//	│ UDP socket or ICMP   │── penstock0 ══ tunnel ══ penstock0 ──▶ penstock0 only  │
//	│ on our first address │                           │ else its kernel: ICMP│
//	└──────────────────────┘                           └──────────────────────┘
//
// What the responder holds to, as it is a listener that other machines reach:
//   - It listens on the first addresses of this node's pod CIDRs only, and on penstock0 only: a packet for it has passed the
//     daemon's checks, so its source lies in the prefixes of the peer that sent it.
//   - It answers the first addresses of the peers' pod CIDRs only, which no pod is ever given. All else gets nothing.
//   - An answer is never longer than what asked for it, and at most [answerRate] go out a second.
//   - It keeps one record a source, so its memory is bounded by the peers' prefixes.
//
// Nothing here runs on the packet path: these are ordinary sockets of an ordinary process, and cost nothing while nobody asks.
package probe
