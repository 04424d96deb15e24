package load

import _ "unsafe" // go:linkname

// procPin and procUnpin keep Go's scheduler from taking the calling goroutine off its thread. They are the runtime's own, which
// other modules use too, so that the Go project keeps them as they are (runtime/proc.go).
//
//go:linkname procPin runtime.procPin
func procPin() int

//go:linkname procUnpin runtime.procUnpin
func procUnpin()

// loop makes turns until the job is stopped or one has failed, and keeps the calling goroutine running on one thread, as a thread of a
// program in C does. After 10 ms Go asks a running goroutine to give up its place; soon another thread goes on with it, and wakes on
// whatever core is free. So the two ends of a conversation hopped from core to core a hundred times a second until they met on one, where a
// request needs neither a wake-up of another core nor one that halts: kernel VXLAN had p50 of 10 µs by that, while sockperf, qperf and a
// C program with the loops of this package get 90 to 125 (docs/performance.md). Two nodes' pods never share a core.
//
// So a turn makes no calls that Go's scheduler is told of, takes no lock (fmt does) and says by a bare error what is wrong. Nothing may stop the
// world meanwhile, as it would wait for the end of the job: there is no garbage collection in these processes but behind it.
func (j *running) loop(turn func() error) error {
	procPin()
	defer procUnpin()
	return j.repeat(turn)
}
