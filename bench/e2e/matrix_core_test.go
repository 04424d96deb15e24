package e2e

import (
	"fmt"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// The switches of the configuration, each with what must follow from it.
var switches = []coreCase{
	{
		name:  "all on",
		used:  []string{"tunnelGSO", "udpSegment", "udpGRO", "tunOffload", "tunUSO", "tunBatch", "packetV2", "packetV3", "priority"},
		moves: []string{"penstock_send_runs_total", "penstock_merged_packets_total", "penstock_tun_batches_total", "penstock_priority_changes_total", "penstock_polling_seconds_total"},
	},
	{name: "tunnelGSO off", yaml: []string{"offload: {tunnelGSO: off}"}, unused: []string{"tunnelGSO"}},
	{name: "udpSegment off", yaml: []string{"offload: {udpSegment: off}"}, unused: []string{"udpSegment"}, still: []string{"penstock_send_runs_total"}},
	{name: "udpGRO off", yaml: []string{"offload: {udpGRO: off}"}, unused: []string{"udpGRO"}},
	{name: "tunOffload off", yaml: []string{"offload: {tunOffload: off}"}, unused: []string{"tunOffload", "tunUSO"}},
	{name: "tunBatch off", yaml: []string{"offload: {tunBatch: off}"}, unused: []string{"tunBatch"}, still: []string{"penstock_tun_batches_total"}},
	{name: "polling off", yaml: []string{"polling: off"}, still: []string{"penstock_polling_seconds_total"}},
	{name: "priority off", yaml: []string{"priority: off"}, unused: []string{"priority"}, still: []string{"penstock_priority_changes_total"}},
	{name: "mergeWrites off", yaml: []string{"offload: {mergeWrites: off}"}, still: []string{"penstock_merged_packets_total"}},
	{name: "packetRing v3", yaml: []string{"offload: {packetRing: v3}"}, used: []string{"packetV3"}, unused: []string{"packetV2"}, lossy: true},
	{name: "packetRing off", yaml: []string{"offload: {packetRing: off}"}, unused: []string{"packetV2", "packetV3"}},
	{
		name:   "all off",
		yaml:   []string{"offload: {tunnelGSO: off, udpSegment: off, udpGRO: off, tunOffload: off, tunBatch: off, mergeWrites: off, packetRing: off}\npriority: off\npolling: off"},
		unused: []string{"tunnelGSO", "udpSegment", "udpGRO", "tunOffload", "tunUSO", "tunBatch", "packetV2", "packetV3", "priority"},
		still:  []string{"penstock_send_runs_total", "penstock_merged_packets_total", "penstock_tun_batches_total", "penstock_priority_changes_total", "penstock_polling_seconds_total"},
	},
}

// outers are the encapsulations with what they may have outside.
var outers = []struct {
	name string
	lab.Config
}{
	{"vxlan", lab.Config{Encap: "vxlan"}},
	{"vxlan over IPv6", lab.Config{Encap: "vxlan", Outer6: true}},
	{"udp", lab.Config{Encap: "udp"}},
	{"udp over IPv6", lab.Config{Encap: "udp", Outer6: true}},
	{"ipip", lab.Config{Encap: "ipip"}},
}

// TestCore runs the scenario once for every underlay and once for every switch, so that each value of each dimension
// is met in every run of the tests; TestMatrix is for their combinations.
func TestCore(t *testing.T) {
	lab.Require(t)
	var cases []coreCase
	for _, u := range []struct {
		name string
		lab.Config
	}{
		{"whole", lab.Config{Encap: "udp", Kind: lab.Whole}},
		{"tso", lab.Config{Encap: "vxlan", Kind: lab.TSO}},
		{"cut", lab.Config{Encap: "vxlan", Kind: lab.Cut}},
		{"cut, ipip", lab.Config{Encap: "ipip", Kind: lab.Cut}},
		{"over IPv6", lab.Config{Encap: "vxlan", Kind: lab.Whole, Outer6: true}},
		{"cut, over IPv6", lab.Config{Encap: "udp", Kind: lab.Cut, Outer6: true}},
		{"jumbo", lab.Config{Encap: "vxlan", Kind: lab.Cut, MTU: 9000}},
		{"small", lab.Config{Encap: "vxlan", Kind: lab.Whole, MTU: 1400}},
	} {
		cases = append(cases, coreCase{name: "underlay " + u.name, config: u.Config})
	}
	for i, s := range switches {
		s.config = outers[i%len(outers)].Config
		s.yaml = append(s.yaml, fmt.Sprintf("workers: %d", 1+i%3))
		cases = append(cases, s)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { core(t, c) })
	}
}

// TestMatrix is the full product of encapsulation and outer family, underlay, switches and workers; attachments are
// all met in each. Jumbo and small underlays join with all switches on and all off.
func TestMatrix(t *testing.T) {
	lab.Require(t)
	if !matrix() {
		t.Skip("the full product takes long: make matrix (E2E_MATRIX=1)")
	}
	for _, outer := range outers {
		for _, kind := range []lab.Kind{lab.Whole, lab.TSO, lab.Cut} {
			for _, s := range switches {
				for workers := 1; workers <= 3; workers++ {
					for _, mtu := range []int{1500, 9000, 1400} {
						if mtu != 1500 && (workers != 2 || s.name != "all on" && s.name != "all off") {
							continue
						}
						s.config = outer.Config
						s.config.Kind, s.config.MTU = kind, mtu
						c := s
						c.swap = workers == 2 // the one family between a pair of pods with two workers, the other one with one and three
						c.yaml = append([]string{fmt.Sprintf("workers: %d", workers)}, s.yaml...)
						t.Run(fmt.Sprintf("%s/%s/%s/workers %d/MTU %d", outer.name, kind, s.name, workers, mtu), func(t *testing.T) { core(t, c) })
					}
				}
			}
		}
	}
}
