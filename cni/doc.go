// Package cni is the CNI plugin penstock: it wires pods to penstockd and takes them off again.
//
//	runtime ── exec ─→ penstock ──┬─ HTTP on a unix socket ─→ penstockd   addresses, ports, state on disk
//	          CNI 0.3.1 … 1.1.0   ├─ netlink, sysctls ─→ the host's and the pod's namespace
//	                              └─ exec ─→ an ipam plugin, if the list names one
//
//	ADD      veth:    ipam? → allocate → make the veth → configure the pod → attach → wait until it is up
//	         tun:     ipam? → allocate → make the TUN in the pod → configure → attach by its queue
//	         routed:  allocate and attach what the plugin before it has made and addressed
//	DEL      detach (or queue that in pending/) → remove the device → ipam
//	CHECK    the daemon's view, the device, its addresses and routes, ipam
//	GC       the daemon collects all of the network that is not valid any more, ipam does the same
//	STATUS   ready or not, in under a second
//
// A pod is known by container id and interface name. The daemon alone remembers: whatever the plugin has to undo follows from
// that key, so that a plugin that was killed at any instruction leaves only what the next DEL, GC or start of the daemon finds.
// Nothing is written to disk here but pending/ (control.WritePending), and nothing is kept between two calls.
package cni
