// Package ring is where a packet crosses the border between the kernel and
// Penstock. Every data-path system call and every use of unsafe lives here.
//
//	         pods, the node                                the underlay
//	┌───────────────┬────────────────────┐       ┌───────────────┬──────────────┐
//	│ TUN/TAP queue │ AF_PACKET on veth, │       │  UDP socket   │  raw socket  │
//	│ (tun.go)      │ uplink (packet.go) │       │  (udp.go)     │  (raw.go)    │
//	│               │ V2   V3   recvmmsg │       │  GSO   GRO    │  IPIP 4, 41  │
//	└──────┬────────┴──────────┬─────────┘       └──────┬────────┴──────┬───────┘
//	       │ Read              ▲ Write                  │ Recv          ▲ Send
//	       ▼                   │                        ▼               │
//	┌─────────────┐     ┌─────────────┐          ┌─────────────┐ ┌─────────────┐
//	│ []Frame     │     │ Packets     │          │ Inbox       │ │ Datagrams   │
//	│ in a Slab   │     │ iovecs,     │          │ buffers and │ │ iovecs, TOS │
//	│ or the ring │     │ virtio hdrs │          │ cmsgs       │ │ UDP_SEGMENT │
//	└──────┬──────┘     └──────▲──────┘          └──────┬──────┘ └──────▲──────┘
//	       └───────────────────┴────── a worker ────────┴───────────────┘
//
// A worker reads a batch of frames, puts other headers in front of them and
// writes a batch. Payload bytes are never copied here: what is read stays where
// the kernel has put it (a slot of a mapped ring, the worker's Slab, an Inbox)
// and what is written is a list of references to it.
//
// # Who owns the bytes
//
// A Reader lends its frames. A frame in a ring slot is lent until Release, a
// frame in the Slab until Slab.Reset; as the caller need not know which is
// which, it does both, in this order, after the last Write that refers to them.
// The Headroom bytes in front of a frame are the caller's to overwrite.
// Packets and Datagrams borrow what is appended until Write or Send has
// returned and they have been Reset. An Inbox lends its datagrams until the next
// Recv into it.
//
// # What blocks
//
// Nothing but Poller.Wait with a timeout and Poller.Doze, and a Uring with an
// operation that did not end at once, which was never observed. Reads and writes
// are raw system calls on non-blocking descriptors; none of these is ever known
// to Go's netpoller, which would wake for every packet. The libraries that open devices
// and sockets for us (songgao/water, mdlayher/packet) do register theirs, so
// their descriptors are closed, or duplicated and closed, before traffic flows.
//
// None of the types is safe for concurrent use, except where it says so: a
// descriptor belongs to one worker. Poller.Wake and the Stats methods may be
// called from anywhere.
//
// # Errors
//
// Set-up functions return one sentence: what, where, what to do. Data-path
// methods return bare errno values, because a worker turns them into drop
// reasons and not into text.
package ring
