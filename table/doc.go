// Package table answers "where to?": which next hop has this address, this
// MAC, this peer.
//
// The forwarder chooses H, its next hop; table never looks into it, keeps
// only the pointer and gives that same pointer back. Everything that is known
// hangs immutable under one atomic pointer:
//
//	Table ──atomic──▶ View ─┬─ peers      underlay address ─▶ *H
//	                        └─ networks   VNI ─▶ Network ─┬─ routes    prefix ─▶ *H   longest match
//	                                                      └─ stations  MAC    ─▶ *H   the FDB
//
// A reader loads the View once for a batch and asks it as often as it likes:
// no lock, no wait, no allocation, and every answer of a batch comes from the
// same state. A writer's Update builds the next View beside the present one,
// sharing what it does not change, and publishes it with one store: readers
// see all of an Update or nothing of it. A View that nobody holds any more is
// the garbage collector's.
//
// Routes, stations and peers are kept twice, as routers do (index.go). The RIB,
// a bart.Table, knows every prefix exactly: it is what writers, iterators and
// exact questions use. The FIB (fib.go) is made from it for the one question
// that is asked for each packet, and answers it two to three times as fast.
package table
