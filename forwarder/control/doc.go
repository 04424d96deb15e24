// Package control is the daemon's control API: HTTP and JSON over a unix socket, versioned under /v1/.
//
//	penstockctl ─┐                                       ┌─ server.Server ── Backend (forwarder/daemon)
//	penstock ────┼─ Client (this package) ═ unix socket ═┤
//	curl ────────┘                      0600, one daemon └─ strict decoding, bounded bodies, timeouts
//
// The socket is the only authority there is: its mode is 0600, so who can open it may do everything.
// A lock file beside it says which daemon owns it (see server.Listen), so that the socket a dead daemon left is replaced and that
// of a live one never.
//
// Requests are decoded strictly (an unknown key is an error: a misspelt address must not be ignored); answers are decoded
// leniently, so that an older client understands a newer daemon. Every failure is an HTTP status and
//
//	{"error": {"code": "conflict", "message": "one sentence"}}
//
// The package knows nothing about packets, and it is what the CNI plugin links: types, names, queued deletes, and a client that
// speaks HTTP by itself (transport.go), as starting package net/http would cost a plugin more than all it does. Package server has
// the daemon's side, package capture the stream of frames.
package control
