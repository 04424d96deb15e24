// Package daemon puts penstockd together: it reads the configuration, asks the kernel what it can do, opens everything in
// one order, runs it, changes it while packets flow, and takes it down again.
//
//	  penstock.yaml          control socket             debug and metrics listeners
//	       │                      │                            │
//	       ▼                      ▼                            ▼
//	┌─ start.go ────┬─ attach.go, reload.go, status.go ─┬─ debug.go, metrics.go ─┐
//	│               │                                   │                        │
//	│               ▼                                   ▼                        │
//	│   hostnet (routes, rules)   forwarder (packets)   hostflow (conntrack)     │
//	└─ watch.go: underlay, routes, feed of peers ────────────────────────────────┘
//
// The order at the start, each step logged and undone if a later one fails (start.go):
//
//	configuration, underlay address and MTU → control socket, claim to the network namespace, state directory →
//	penstock0, forwarder: probe, sockets, memory → peers and the ways to them → host routes and rules →
//	the predecessor's pods → flows that the host has translated → debug listeners → requests, watchers, workers
//
// So nothing is forwarded until everything is open, and what a predecessor left in place goes on working until then. The control
// socket is bound early, with its lock, so that there is one daemon for it; whoever connects waits until requests are answered.
//
// What the daemon knows at one moment (configuration, underlay, peers, MTU) is one immutable state behind an atomic
// pointer: status and metrics read it and never wait. Changes of it are made one at a time under Daemon.change, applied to the
// forwarder and the host all or nothing, and then published (state.go). Pods are no part of it: requests about several go side by
// side, those about one of them one after another, by a lock for each (podset.go).
//
// Everything that touches the machine goes through the interfaces in machine.go, which the tests replace.
package daemon
