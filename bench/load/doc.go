// Package load makes traffic in network namespaces, as fast as plain sockets go, and counts what arrives.
//
//	measuring process                          pods' namespaces
//	┌────────────┐  socketpair  ┌────────────────────────┐
//	│ Agent      ├──────────────┤ sending process        ├─ sockets of pods of node-a ──┐
//	│            │  JSON lines  └────────────────────────┘                              │ the network that
//	│            │              ┌────────────────────────┐                              │ is measured
//	│ Agent      ├──────────────┤ receiving process      ├─ sockets of pods of node-b ──┘
//	└────────────┘              └────────────────────────┘
//
// Sender and receiver are processes of their own (this very program started again, see [Main]), so that the Go
// scheduler of one never stands in the way of the other; each flow of work is a goroutine whose blocking system
// calls that scheduler is not told of (calls.go), as if a program in C made them. Nothing here is cleverer than what
// a pod may do: one socket buffer a datagram (sendmmsg and recvmmsg save the system calls, but there is no
// UDP_SEGMENT and no UDP_GRO), TCP by large writes and reads with the default buffers, no splice, no MSG_TRUNC, no
// zero copy.
//
// A run is: Start at the receiver, Start at the sender, Mark both, wait, Mark both, Stop. What lies between the two
// marks counts, by the clock of the process that counted.
package load
