package load

import (
	"runtime"
	_ "unsafe" // go:linkname
)

// procPin and procUnpin keep Go's scheduler from taking the calling goroutine off its thread. They are the runtime's own, which
// other modules use too, so that the Go project keeps them as they are (runtime/proc.go).
//
//go:linkname procPin runtime.procPin
func procPin() int

//go:linkname procUnpin runtime.procUnpin
func procUnpin()

// stay keeps the calling goroutine on one thread until leave, as a thread of a program in C is one. Go asks who goes on for
// 10 ms for his place; who has given it up is soon taken up by another thread, which wakes where the kernel finds room at that
// moment. So the two ends of a conversation hopped from core to core a hundred times a second until they met on one, where a request needs
// neither a wake-up of another core nor one that halts: kernel VXLAN had p50 of 10 µs by that, while sockperf, qperf and a C program
// with the loops of this package get 90 to 125 (docs/performance.md). Two nodes' pods never share a core.
//
// Nothing may stop the world meanwhile, as it would wait for the end of the job: there is no garbage collection in these processes but behind it.
func stay() (leave func()) {
	runtime.LockOSThread()
	procPin()
	return func() {
		procUnpin()
		runtime.UnlockOSThread()
	}
}
