// Package doctor looks at a node and says what is wrong with it, and what to do. It changes nothing.
//
//	penstockctl doctor ──▶ Examine ─┬─ gather (facts.go): the daemon's own answers; without a daemon its file and the machine
//	                                ├─ node.go, network.go, routes.go: what this process sees of the machine
//	                                ├─ peers.go: the daemon sends real packets to every peer (package probe)
//	                                └─ pods.go, addresses.go, inside.go: pods, what is left for them, and the drops that grow meanwhile
//	silent.go: why a daemon does not answer; state.go: whether it can record pods, and devices that no record has
//
// What holds:
//   - A check never fails the examination: what cannot be looked at is skipped, with the reason.
//   - A failure breaks traffic, now or for what the configuration promises; a warning does not, or not surely.
//   - Every warning and failure says what to do.
//   - It must help most when the daemon is down, so nothing here needs the daemon but what only the daemon can know.
package doctor
