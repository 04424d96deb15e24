// Package capture is the stream in which the daemon shows frames: what a client asks for, how a frame is written and read, and
// how it looks in one line.
//
//	penstockctl capture ── Open ── Reader ◀═ POST /v1/capture ═ Writer ── Source (forwarder/daemon)
//
// It stands apart from control because the CNI plugin has no use for it.
package capture
