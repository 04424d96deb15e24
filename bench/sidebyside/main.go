// Command sidebyside measures Penstock beside the kernel's own VXLAN: `make bench`.
//
//	┌─ node-a ────────────────┐                     ┌─ node-b ────────────────┐
//	│ pods   Penstock, or     │    one veth pair:   │     Penstock, or   pods │   A: kernel VXLAN
//	│ send   kernel VXLAN, or ├─ whole, tso or cut ─┤  kernel VXLAN, or  take │   B: what is measured
//	│        plain routing    │                     │     plain routing       │
//	└─────────────────────────┘                     └─────────────────────────┘
//
// A cell is one subject under one load on one underlay, such as vxlan/veth/whole/udp-64x16. It is measured in
// pairs: kernel VXLAN, then the subject, again and again, in two networks that stand side by side; the ratio of each
// pair, their median and their interquartile range are the result. Files in packet order: cells.go says what there
// is to measure, network.go builds it, measure.go makes one sample, run.go pairs them, stats.go and bars.go judge,
// results.go, markdown.go and chart.go write; profile.go is `make profile`.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/bench/load"
)

// options are the command line.
type options struct {
	full    bool
	only    string
	pairs   int
	seconds float64
	burst   int
	tcp     string
	weight  int
	tool    string
	yaml    string
	dir     string
	list    bool
	fresh   bool
	profile bool
}

func main() {
	load.Main() // never returns in a process that makes traffic
	var o options
	flag.BoolVar(&o.full, "full", false, "the whole matrix instead of the rows that have bars")
	flag.StringVar(&o.only, "only", "", "cells with these `words` in their name: \"veth whole udp-64*\"; a comma begins an alternative")
	flag.IntVar(&o.pairs, "n", 0, "`pairs` a cell (15; with -full or -profile 5 or 1)")
	flag.Float64Var(&o.seconds, "seconds", 0, "measured seconds a sample (1.5; with -full 1, with -profile 5)")
	flag.IntVar(&o.burst, "burst", 1, "datagrams of one flow in a row, where there are many flows")
	flag.StringVar(&o.tcp, "tcp", "", "congestion control of all streams: bbr, cubic (the machine's own)")
	flag.IntVar(&o.weight, "weight", 0, "put daemons and pods into scheduling groups of their own: the `weight` of a daemon's, where 100 is that of a node's pods (0: all are in one group)")
	flag.StringVar(&o.tool, "tool", "", "`program` that makes the traffic, instead of the built-in one: bench/tools/iperf3")
	flag.StringVar(&o.yaml, "yaml", "", "configuration merged over every Penstock's own: \"offload: {packetRing: v3}\"")
	flag.StringVar(&o.dir, "dir", "bench/results", "`directory` for the results")
	flag.BoolVar(&o.list, "list", false, "list the cells and end")
	flag.BoolVar(&o.fresh, "fresh", false, "measure again what an interrupted run had measured")
	flag.BoolVar(&o.profile, "profile", false, "take CPU profiles of the daemons under each load instead of measuring")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "docs/performance.md lists the variables of make bench; those of bin/sidebyside are:")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.defaults()

	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "%q is no flag; quote values that have spaces.\n", flag.Arg(0))
		os.Exit(2)
	}
	cells, err := choose(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if o.list {
		for _, c := range cells {
			fmt.Println(c.name())
		}
		return
	}
	if err := lab.Possible(); err != nil {
		fmt.Fprintf(os.Stderr, "Nothing can be measured here: %v.\n", err)
		os.Exit(1)
	}
	if err := load.Control(o.tcp); err != nil {
		fmt.Fprintf(os.Stderr, "Nothing can be measured so: %v.\n", err)
		os.Exit(2)
	}
	if o.tool != "" {
		if err := checkTool(o, cells); err != nil {
			fmt.Fprintf(os.Stderr, "Nothing can be measured so: %v.\n", err)
			os.Exit(2)
		}
	}
	groups, err := o.groups()
	if err != nil {
		fmt.Fprintf(os.Stderr, "Nothing can be measured so: %v.\n", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once; the kernel then cleans up, and the next run removes files and groups
	os.Exit(run(ctx, o, cells, groups))
}

func (o *options) defaults() {
	pairs, seconds := 15, 1.5
	switch {
	case o.profile:
		pairs, seconds = 1, 5
	case o.full:
		pairs, seconds = 5, 1
	}
	if o.tcp == "" {
		o.tcp = ownControl()
	}
	if o.pairs <= 0 {
		o.pairs = pairs
	}
	if o.seconds <= 0 {
		o.seconds = seconds
	}
	if o.tool != "" { // iperf3 and sockperf know whole ones
		o.seconds = math.Ceil(o.seconds)
	}
}

// groups is nil if all shall be in one.
func (o *options) groups() (*lab.Groups, error) {
	lab.SweepGroups()
	switch {
	case o.weight == 0:
		return nil, nil
	case o.weight < 1 || o.weight > 10000:
		return nil, fmt.Errorf("%d is no weight: choose one from 1 to 10000, as for CPUWeight=, or 0 for one group", o.weight)
	}
	return lab.NewGroups()
}

// work leaves no network standing.
func work(ctx context.Context, o options, cells []cell, n *networks) error {
	defer n.close()
	if o.profile {
		return profile(ctx, o, cells, n)
	}
	return compare(ctx, o, cells, n)
}

// run does the work and returns the exit code.
func run(ctx context.Context, o options, cells []cell, groups *lab.Groups) int {
	err := work(ctx, o, cells, &networks{yaml: o.yaml, weight: o.weight, groups: groups})
	left := lab.Leftovers()
	if groups != nil {
		left = append(left, groups.Close()...)
	}
	if len(left) > 0 {
		fmt.Fprintln(os.Stderr, "This is left behind: "+strings.Join(left, ", ")+".")
	}
	switch {
	case ctx.Err() != nil:
		text := "\nInterrupted; networks and daemons are gone."
		if o.only == "" && o.tool == "" && !o.profile {
			text += " The same command goes on where this one was."
		}
		fmt.Println(text)
		return 130
	case err != nil:
		fmt.Fprintf(os.Stderr, "%v\n", err)
		return 1
	case len(left) > 0:
		return 1
	}
	return 0
}
