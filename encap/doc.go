// Package encap changes bytes and nothing else: it reads and writes the headers of packets that
// travel between pods, and knows what encapsulation, checksums, segmentation and path MTU do to them.
// It opens nothing, keeps nothing and depends on the standard library only, so it builds on every
// system and its parsers are fuzzed without a kernel.
//
// The package in the order in which a packet meets it:
//
//	from a pod                                                     from the wire
//	    │                                                               │
//	    ▼                                                               ▼
//	Parse ── Fault             is this IP, and where is what?        Decap      outer.go
//	    │                      parse.go                                 ▼
//	    ▼                                                             Parse
//	Virtio.Check               is the kernel's metadata sane?           │
//	    │                      virtio.go                                ▼
//	    ▼                                                            CheckL4, RecoverSuperframe
//	DecrementTTL, SetTOS,      checksum.go, ecn.go, mtu.go              │   checksum.go, virtio.go
//	ECNEncap, ClampMSS                                                  ▼
//	    │                                                            ECNDecap, DecrementTTL
//	    ├── too big ─► ICMPError, Fragments   icmp.go, fragment.go      │
//	    ▼                                                               ▼
//	Segments (superframe → packets) segment.go        merge.go Merge (packets → superframe)
//	    │                                                               │
//	    ▼                                                               ▼
//	Header.Put                 outer.go                              to the pod
//	    │
//	    ▼
//	to the wire                beside the road: ARPReply, NeighbourAdvert (neighbour.go)
//
// # Packets and superframes
//
// b is always one inner IP packet that begins with its IP header; it may be a superframe of up to
// 64 KiB whose Virtio says how to cut it. Packet is what Parse found in it. Every function that takes
// b and p expects p to come from a successful Parse of these very bytes (changed since by nothing but
// functions of this package that take p, too), and b to be at least p.Len long; bytes beyond p.Len are
// link padding and are neither read nor written. Under that condition nothing here panics or reads
// out of range, whatever the bytes and whatever the Virtio.
//
// # Ownership
//
// Nothing is allocated and nothing is kept: all bytes belong to the caller. Segments, Fragments and
// Merge hold on to b from Init or Start until they are done, and the payloads they return are parts of
// the b that was handed in (lent: valid as long as that b is).
//
// # Byte order
//
// Header views read and write network byte order. Virtio is in host order, as the fields of a struct
// are. Sums of Sum, Fold and PseudoSum are sums of big-endian 16-bit words.
package encap
