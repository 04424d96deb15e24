// Package server is the daemon's side of the control API: the socket and its lock, the endpoints, and what is answered to requests
// that cannot be understood. Package control has the types and the client.
//
//	socket ── Listen (0600, one daemon) ── Server ── Backend (forwarder/daemon)
//	                                         └─ strict decoding, bounded bodies, timeouts
package server
