package load

import _ "unsafe" // go:linkname

// procPin and procUnpin keep Go's scheduler from taking the calling goroutine off its thread. They are the runtime's own, which
// other modules use too, so that the Go project keeps them as they are (runtime/proc.go).
//
//go:linkname procPin runtime.procPin
func procPin() int

//go:linkname procUnpin runtime.procUnpin
func procUnpin()

// stay keeps the calling goroutine running on one thread until leave, as a thread of a program in C does. After 10 ms Go asks a
// running goroutine to give up its place; soon another thread goes on with it, and wakes on whatever core is free. So the two
// ends of a conversation hopped from core to core a hundred times a second until they met on one, where a request needs neither a wake-up of
// another core nor one that halts: kernel VXLAN had p50 of 10 µs by that, while sockperf, qperf and a C program with the loops of this
// package get 90 to 125 (docs/performance.md). Two nodes' pods never share a core.
//
// Nothing may stop the world meanwhile, as it would wait for the end of the job: there is no garbage collection in these processes but behind it.
func stay() (leave func()) {
	procPin()
	return procUnpin
}
