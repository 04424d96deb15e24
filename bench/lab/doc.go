// Package lab builds whole networks of nodes and pods in network namespaces, runs the real penstockd on
// them, and sends traffic that proves what it claims. The demo, the end-to-end tests and the measurements
// stand on it. It uses netlink, nftables and sockets only: no program beside penstockd and CNI plugins is ever started.
//
//	   node-a (NS)                 fabric (NS)                node-b (NS)            outside (NS)
//	┌───────────────────┐      ┌────────────────┐      ┌───────────────────┐      ┌────────────┐
//	│ penstockd  or     │      │  bridge, or    │      │ penstockd, kernel │      │ knows no   │
//	│ a kernel peer     │ eth0 │  router        │ eth0 │ vxlan, flannel udp│      │ pod routes │
//	│        ┌──────────┼──────┤  n0         n1 ├──────┼──────────┐ …      │      └─────┬──────┘
//	│ ps…         TUN   │ veth └───────────┬────┘ veth │                   │            │ eth0
//	└──┬───────────┬────┘                  └───────────────────────────────────────────┘
//	┌──┴───┐    ┌──┴───┐
//	│ eth0 │    │ eth0 │   pods (NS): a veth pair, or a TUN that the plugin made there, or the daemon, and the lab moved it
//	└──────┘    └──────┘
//
// Topology functions take a [TB] and fail it; they belong on the test's own goroutine. Traffic functions
// return errors, because a test may want the failure.
//
// Nothing outlives the process. Namespaces have no name: a descriptor and one locked thread hold each of
// them. Daemons carry PDEATHSIG, which the kernel sends when the *thread* that started them ends, so that
// thread lives as long as the namespace. After kill -9 the descriptors close, the daemons die, and the
// kernel takes the namespaces with every device in them.
//
// LAB_KEEP=1 prints a line for nsenter for each namespace before it is taken down, and waits for Ctrl-C.
package lab
