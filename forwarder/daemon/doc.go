// Package daemon puts penstockd together: it reads the configuration, asks the kernel what it can do, opens everything in
// one order, runs it, changes it while packets flow, and takes it down again.
//
//	  penstock.yaml          control socket             debug and metrics listeners
//	       │                      │                            │
//	       ▼                      ▼                            ▼
//	┌─ start.go ────┬─ attach.go, reload.go, status.go ─┬─ debug.go, metrics.go ─┐
//	│               │      one change at a time         │                        │
//	│               ▼                                   ▼                        │
//	│   hostnet (routes, rules)   forwarder (packets)   hostflow (conntrack)     │
//	└─ watch.go: underlay, routes, feed of peers ────────────────────────────────┘
//
// The order at the start, each step logged and undone if a later one fails (start.go):
//
//	configuration → underlay address and MTU → control lock → forwarder: probe, penstock0, sockets, memory →
//	host routes and rules → flows that the host has translated → debug listener, control socket → workers
//
// So nothing is forwarded until everything is open, and what a predecessor left in place goes on working until then.
//
// What the daemon knows at one moment (configuration, underlay, peers, MTU) is one immutable state behind an atomic
// pointer: status and metrics read it and never wait. Changes are made one at a time under Daemon.change, applied to the
// forwarder and the host all or nothing, and then published (state.go).
//
// Everything that touches the machine goes through the interfaces in machine.go, which the tests replace.
package daemon
