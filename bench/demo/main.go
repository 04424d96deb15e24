// Command demo shows Penstock at work: `make demo`.
//
//	┌─ node-a ──────────────┐                    ┌─ node-b ──────────────┐
//	│ pod-1 (veth)          │                    │          (veth) pod-1 │
//	│         penstockd ────┼── udp/vxlan/ipip ──┼──── penstockd         │
//	│ pod-2 (tun)           │                    │           (tun) pod-2 │
//	└───────────────────────┘                    └───────────────────────┘
//
// Two nodes and two pods on each, all network namespaces without names; two real daemons. For each
// encapsulation it checks reachability, bulk transfers, datagrams of every size and throughput, says so as it
// goes, prints one table, and leaves nothing: on Ctrl-C and on kill -9 neither.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

func main() {
	if err := lab.Possible(); err != nil {
		fmt.Fprintf(os.Stderr, "The demo cannot run here: %v.\n", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once; the kernel then cleans up
	os.Exit(run(ctx))
}

// run plays the demo and returns the exit code.
func run(ctx context.Context) int {
	begin := time.Now()
	fmt.Println("Two nodes, two pods on each (one on a veth, one on a TUN), two real daemons, in network namespaces of their own.")
	t := newTable()
	for _, encap := range []string{"udp", "vxlan", "ipip"} {
		s := &show{ctx: ctx, encap: encap, begin: begin, table: t}
		s.play()
		if ctx.Err() != nil {
			fmt.Println("\nInterrupted; " + gone() + ".")
			return 130
		}
	}
	fmt.Println()
	t.print(os.Stdout)
	fmt.Print(legend)
	if n := len(t.failures); n > 0 {
		fmt.Printf("\n%d checks failed; %s.\n", n, gone())
		for _, f := range t.failures {
			fmt.Println("  " + f)
		}
		return 1
	}
	fmt.Printf("\nEverything crossed intact, in %.0f seconds; %s.\n", time.Since(begin).Seconds(), gone())
	return 0
}

// legend says how the figures are to be read.
const legend = `
Only the throughput rows measure speed: one way, one stream or flow, a second and a half. The times of the others are mostly checking.
Echoed datagrams came back from a pod of the other node. Frames are accounted for if, on each node, received + generated = forwarded +
dropped, exactly; the throughput of datagrams is what arrived, as the sender is not held back.
`

// gone says what is left, after a look. Devices and rules live and die with their namespaces.
func gone() string {
	if left := lab.Leftovers(); len(left) > 0 {
		return "but this is left: " + strings.Join(left, ", ")
	}
	return "namespaces, devices, rules and daemons are gone"
}
