// Package hostflow tells the forwarder which flows the host's conntrack has translated, and when they are gone: the
// conntrack side of "the way back" (design, section 2).
//
//	pod ──▶ service ──▶ host: DNAT ──▶ penstock0 ──▶ worker: remembers the flow's answer ──▶ backend
//	pod ◀── service ◀── host: un-DNAT ◀── penstock0 ◀── worker: "an answer that the host waits for" ◀── backend
//	                     │ conntrack                           ▲
//	                     │  dump, before forwarding starts     │ Preload: a restart forgets nothing
//	                     │  destroy events                     │ Forget
//	                     └─ "is it still there?"  ─── Tracker ─┘ Sink
//
// A conntrack entry has two tuples: how the question looked when it came, and how the answer looks when it comes. The
// second, "reply", is what the answer looks like on the wire, so it is the key everywhere here: [Tuple].
//
// Which entries matter:
//   - DNAT only (a Service): reply.Dst is the pod. Remembered.
//   - SNAT to the host (masquerade; also a Service whose backend is the client itself): reply.Dst is the host's address. Its
//     answer is the host's without our help. The Sink leaves it out, as that address is no pod's.
//   - DNAT with another source port (the kernel picks one when two Services share a backend and the pod a port): the answer
//     goes to the pod, at another port. Remembered; therefore entries are judged by their tuples, not by their status bits.
//   - not translated: the pod takes such an answer from anybody. Not preloaded.
//
// Three traps, and what is done about them:
//
// A port used again. When a pod opens a connection with the tuple of one that conntrack holds in TIME_WAIT, the kernel
// destroys the old entry and makes the new one in the same breath; a worker has then remembered the new flow before we read
// the event about the old. So an event is a question, not an order: ask conntrack for the tuple, forget it if it is not there,
// and ask again afterwards, in case it was born between the two. A live flow is never forgotten for longer than that takes.
//
// Entries older than our subscription. With nf_conntrack_events=2, the default since 5.19, an entry made while nobody
// listened never sends an event (net/netfilter/nf_conntrack_ecache.c, nf_ct_ecache_ext_add). These are the very ones that the
// dump found. So every half a minute all that is remembered is asked for, one message each; this costs microseconds a flow and
// does not depend on how many flows the host has.
//
// Lost events. When the socket's buffer overflows (ENOBUFS) the kernel goes on dropping until it has been read empty. So we
// read it empty first, and then ask for everything that is remembered. What is remembered meanwhile is not in that list and is
// not touched. NETLINK_BROADCAST_ERROR would make the kernel keep what it could not tell, but in the host's table: a daemon
// that hangs would fill it.
package hostflow
