// Package forwarder decides where packets go. It owns the workers, the ports
// of the pods and of the host, the sockets to the peers, every drop and every
// counter; ring moves its packets over the kernel's border, encap knows their
// bytes, table knows their ways.
//
//	      a worker: one goroutine, one thread, its own memory, run to completion
//
//	pod ──▶ port.reader ─┐                            ┌─▶ transmit ─▶ socket ──▶ peer
//	                     ├─▶ outbound.go ─┬─ peer ────┘   (runs, segments)
//	host ─▶ penstock0 ───┘   parse        ├─ local pod ─┐
//	                         anti-spoof   └─ the host ──┤
//	                         route, TTL, MTU            ├─▶ outbox ─▶ port.writer ──▶ pod, host
//	peer ─▶ socket ────────▶ inbound.go ────────────────┘   (merged writes)
//	                         outer, decap, checksum,
//	                         inner source, way back
//
// To peers that agree, frames go as the native stream: native.go says how.
//
// Read it in a packet's order: worker.go (the loop), wait.go, priority.go and
// thread.go (between turns), outbound.go, transmit.go
// (frames become datagrams), inbound.go, deliver.go (frames become writes to a
// port), answer.go (ICMP, ARP and neighbour answers). Beside that way stand
// port.go, peer.go and endpoint.go (what ports, peers and sockets are),
// flows.go (flows that the host has translated), drops.go and counters.go.
//
// What holds everywhere:
//
//   - A worker touches only its own memory. What workers share is immutable
//     (the table's View, next hops, peers) or a few atomic words.
//   - Bytes of a frame are lent by the ring or the slab until the batch's
//     flush has returned. Nothing outlives the batch.
//   - Every frame ends once: sent to a peer, delivered to a pod, handed to the
//     host, or dropped with a Reason. received + generated = forwarded + dropped.
//   - Control work (attach, peers, reload) is done by other goroutines; they
//     publish a new View or hand a function to a worker, which runs it between
//     two batches. See Forwarder.onAll.
package forwarder
