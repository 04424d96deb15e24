// Package hostlook examines the host around the daemon: what may take its packets, its address or its ports. It changes nothing,
// and works whether or not a daemon runs; what the daemon itself owns there package hostnet keeps.
//
//	               ┌─ firewall.go: which rules of others drop a tunnel's packet, on the way in or out
//	doctor ────────┼─ agents.go: policy agents, whose filters pods' packets never pass
//	               ├─ duplicate.go: who else on the underlay has this node's address
//	doctor, daemon ┼─ holders.go: who has a tunnel's port
//	support bundle └─ dump.go: our own nft tables as they stand
//
// What holds:
//   - Nothing is guessed: what cannot be read or understood is told apart from what is sure ([Verdict]), or is an error.
//   - Asking leaves nothing behind: no table that iptables makes by being asked, no entry in other machines' neighbour tables.
//
// All functions act in the network namespace of the calling thread. Routes of others in the pods' network are hostnet's to find
// (hostnet.FindWays), as the daemon looks at them whenever it puts its own back.
package hostlook
