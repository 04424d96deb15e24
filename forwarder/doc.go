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
//	                         outer source, decap, parse,
//	                         inner source, route, tunnel loop,
//	                         checksum, ECN, way back, TTL, MTU
//
// Its files, in the order in which to read them:
//
//	the way
//	  worker.go        the loop: a batch from one source, to its end
//	  wait.go          awake, dozing or asleep between turns
//	  priority.go      the worker's place among threads
//	  thread.go        and its stay on one
//	  outbound.go      what pods and the host send
//	  transmit.go      frames become datagrams and runs
//	  whole.go         superframes that leave uncut
//	  inbound.go       what peers send
//	  deliver.go       frames become writes to a port
//	  merges.go        segments of a flow that become one write
//	  fragment.go      what is too big
//	  answer.go        ICMP, ARP and neighbour answers
//	  flows.go         flows that the host has translated: their answers go through it
//	  drops.go         why frames end
//
//	bounds
//	  shape.go         the bucket of a pod's bandwidth
//	  throttle.go      of what it sends
//	  queue.go         of what it receives
//	  breadth.go       a wide ring for a pod that is busy
//	  flowshare.go     a pod's part of the memory of flows
//
//	the native stream, by which frames go to peers that agree
//	  native.go        what it is here, and who decides
//	  nativesend.go    frames become bursts, bursts datagrams
//	  nativetcp.go     or TCP superframes on the uplink
//	  nativereceive.go pieces become frames
//	  nativehold.go    from one way to another in order
//	  nativeagent.go   the decisions
//	  nativeport.go    its port, which somebody else may have
//
//	control
//	  forwarder.go     the whole: New, Start, Stop
//	  settings.go      what it must know, and what may change
//	  kernel.go        the descriptors that it works on
//	  peer.go          next hops, peers, and the table made of them
//	  endpoint.go      the sockets to peers
//	  neterror.go      what the underlay says of them
//	  port.go          pods, attached and detached
//	  portopen.go      their devices and memory
//	  routed.go        pods that the host's stack reaches
//	  awaited.go       pods whose port is yet to come back
//	  restore.go       devices of ours that somebody has deleted
//	  registry.go      descriptors by name
//
//	tools
//	  counters.go      what workers count
//	  account.go       for each peer and pod
//	  sizes.go         how large batches and runs are
//	  tap.go           frames as they pass, for captures
//	  tapped.go        the workers' side of it
//	  trace.go         a packet that nobody sees
//	  tracepacket.go   made
//	  traceexplain.go  and told
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
