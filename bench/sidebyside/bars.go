package main

import "math"

// bar is a line that a figure of a cell must reach: section 4 of the design.
type bar struct {
	Cell   string  // pattern of cell names, see fits
	Metric string  // of the cell's samples
	Must   float64 // a ratio to kernel VXLAN, or for idle cells the figure itself
	Aim    float64
	Most   bool // the figure must be at most this, not at least
	Text   string
}

// bars are judged wherever their cell was measured, for vxlan: like against like, and for the native stream by the carrier that auto
// chooses.
var bars = []bar{
	{Cell: "vxlan/veth/whole/udp-64x1", Metric: "rate", Must: 3.0, Aim: 6, Text: "64 B datagrams, 1 flow"},
	{Cell: "vxlan/tun/whole/udp-64x1", Metric: "rate", Must: 3.0, Aim: 6, Text: "64 B datagrams, 1 flow"},
	{Cell: "vxlan/veth/whole/udp-64x1", Metric: "cpu", Must: 0.6, Aim: 0.3, Most: true, Text: "CPU a delivered 64 B datagram"},
	{Cell: "vxlan/tun/whole/udp-64x1", Metric: "cpu", Must: 0.55, Aim: 0.3, Most: true, Text: "CPU a delivered 64 B datagram"},
	{Cell: "vxlan/veth/whole/udp-64x16", Metric: "rate", Must: 2.3, Aim: 5, Text: "64 B datagrams, 16 flows"},
	{Cell: "vxlan/tun/whole/udp-64x16", Metric: "rate", Must: 2.8, Aim: 5, Text: "64 B datagrams, 16 flows"},
	{Cell: "vxlan/veth/whole/mixed-x16", Metric: "rate", Must: 1.2, Aim: 3, Text: "mixed sizes, 16 flows"},
	{Cell: "vxlan/tun/whole/mixed-x16", Metric: "rate", Must: 1.3, Aim: 3, Text: "mixed sizes, 16 flows"},
	{Cell: "vxlan/veth/cut/udp-64x16", Metric: "rate", Must: 2.0, Aim: 5, Text: "64 B datagrams, 16 flows"},
	{Cell: "vxlan/tun/cut/udp-64x16", Metric: "rate", Must: 2.4, Aim: 5, Text: "64 B datagrams, 16 flows"},
	{Cell: "vxlan/veth/whole/tcp-1", Metric: "rate", Must: 0.60, Aim: 0.75, Text: "bulk TCP, 1 stream"},
	{Cell: "vxlan/tun/whole/tcp-1", Metric: "rate", Must: 0.65, Aim: 0.75, Text: "bulk TCP, 1 stream"},
	{Cell: "vxlan/veth/whole/tcp-4", Metric: "rate", Must: 0.55, Aim: 0.75, Text: "bulk TCP, 4 streams"},
	{Cell: "vxlan/tun/whole/tcp-4", Metric: "rate", Must: 0.60, Aim: 0.75, Text: "bulk TCP, 4 streams"},
	{Cell: "vxlan-nogso/veth/whole/tcp-1", Metric: "rate", Must: 0.35, Aim: 0.60, Text: "bulk TCP, 1 stream, tunnel superframes off"},
	{Cell: "vxlan-nogso/tun/whole/tcp-1", Metric: "rate", Must: 0.40, Aim: 0.60, Text: "bulk TCP, 1 stream, tunnel superframes off"},
	{Cell: "vxlan/veth/cut/tcp-1", Metric: "rate", Must: 0.45, Aim: 1.0, Text: "bulk TCP, 1 stream"},
	{Cell: "vxlan/tun/cut/tcp-1", Metric: "rate", Must: 0.50, Aim: 1.0, Text: "bulk TCP, 1 stream"},
	{Cell: "vxlan/veth/cut/tcp-4", Metric: "rate", Must: 0.45, Aim: 1.0, Text: "bulk TCP, 4 streams"},
	{Cell: "vxlan/tun/cut/tcp-4", Metric: "rate", Must: 0.50, Aim: 1.0, Text: "bulk TCP, 4 streams"},
	{Cell: "native-tcp/veth/tso/tcp-1", Metric: "rate", Must: 1.2, Aim: 3, Text: "native stream: bulk TCP, 1 stream"},
	{Cell: "native-tcp/tun/tso/tcp-1", Metric: "rate", Must: 1.4, Aim: 3, Text: "native stream: bulk TCP, 1 stream"},
	{Cell: "native-tcp/veth/tso/tcp-4", Metric: "rate", Must: 1.4, Aim: 3, Text: "native stream: bulk TCP, 4 streams"},
	{Cell: "native-tcp/tun/tso/tcp-4", Metric: "rate", Must: 1.7, Aim: 3, Text: "native stream: bulk TCP, 4 streams"},
	{Cell: "native-tcp/veth/cut/tcp-1", Metric: "rate", Must: 0.60, Aim: 1.0, Text: "native stream: bulk TCP, 1 stream"},
	{Cell: "native-tcp/veth/cut/tcp-4", Metric: "rate", Must: 0.60, Aim: 1.0, Text: "native stream: bulk TCP, 4 streams"},
	{Cell: "native-tcp/tun/cut/tcp-1", Metric: "rate", Must: 0.65, Aim: 1.0, Text: "native stream: bulk TCP, 1 stream"},
	{Cell: "native-tcp/tun/cut/tcp-4", Metric: "rate", Must: 0.65, Aim: 1.0, Text: "native stream: bulk TCP, 4 streams"},
	{Cell: "native-tcp/veth/whole/mixed-x16", Metric: "rate", Must: 1.6, Aim: 4, Text: "native stream: mixed sizes, 16 flows"},
	{Cell: "native-tcp/veth/tso/mixed-x16", Metric: "rate", Must: 1.6, Aim: 4, Text: "native stream: mixed sizes, 16 flows"},
	{Cell: "native-tcp/veth/cut/mixed-x16", Metric: "rate", Must: 1.6, Aim: 4, Text: "native stream: mixed sizes, 16 flows"},
	{Cell: "native-tcp/tun/whole/mixed-x16", Metric: "rate", Must: 2.2, Aim: 4, Text: "native stream: mixed sizes, 16 flows"},
	{Cell: "native-tcp/tun/tso/mixed-x16", Metric: "rate", Must: 2.2, Aim: 4, Text: "native stream: mixed sizes, 16 flows"},
	{Cell: "native-tcp/tun/cut/mixed-x16", Metric: "rate", Must: 2.2, Aim: 4, Text: "native stream: mixed sizes, 16 flows"},
	{Cell: "vxlan/veth/whole/rr-*", Metric: "p50", Must: 0.8, Aim: 0.4, Most: true, Text: "request and response, p50"},
	{Cell: "vxlan/tun/whole/rr-*", Metric: "p50", Must: 0.7, Aim: 0.4, Most: true, Text: "request and response, p50"},
	{Cell: "vxlan/veth/whole/rr-*", Metric: "p99", Must: 2.0, Aim: 1.0, Most: true, Text: "request and response, p99"},
	{Cell: "vxlan/tun/whole/rr-*", Metric: "p99", Must: 2.0, Aim: 1.0, Most: true, Text: "request and response, p99"},
	{Cell: "vxlan/veth/whole/idle", Metric: "memory", Must: 64 << 20, Aim: 32 << 20, Most: true, Text: "daemon's memory, 100 pods, 1,000 peers, idle"},
	{Cell: "vxlan/veth/whole/idle", Metric: "idlecpu", Must: 0.001, Aim: 0.001, Most: true, Text: "daemon's CPU, 100 pods, 1,000 peers, idle"},
}

// enough pairs for a verdict about a ratio; the figures of an idle daemon hardly vary.
const (
	enoughPairs = 9
	enoughIdle  = 1
)

// barsOf are the bars of a cell.
func barsOf(name string) (list []bar) {
	for _, b := range bars {
		if ok, err := fits(name, b.Cell); err == nil && ok {
			list = append(list, b)
		}
	}
	return list
}

// verdict is what became of a bar.
type verdict string

const (
	aimMet  verdict = "aim"
	mustMet verdict = "met"
	missed  verdict = "MISSED"
	tooFew  verdict = "too few pairs"
)

// judge: a bar is reached when at least nine paired ratios have a median that is not more than half their
// interquartile range below it (above it, where less is better).
func (b bar) judge(s spread, enough int) verdict {
	reached := func(line float64) bool {
		if b.Most {
			return s.Median-s.IQR()/2 <= line
		}
		return s.Median+s.IQR()/2 >= line
	}
	switch {
	case s.N < enough || math.IsNaN(s.Median):
		return tooFew
	case !reached(b.Must):
		return missed
	case reached(b.Aim):
		return aimMet
	}
	return mustMet
}
