package main

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/bench/load"
)

// subject is what is measured: a way to bring pods' packets to the other node.
type subject struct {
	Name   string // first word of a cell's name
	Role   lab.Role
	Encap  string
	Attach lab.Attach
	YAML   string // merged over the daemons' configuration
	Relay  string // how a bare relay does it
}

// baseline is what everything is compared with.
var baseline = subject{Name: "kernel", Role: lab.KernelVXLAN, Encap: "vxlan", Attach: lab.Plain}

// variants of Penstock; a row more here is measured with every load, by `make bench FULL=1`.
var variants = []struct{ name, encap, yaml string }{
	{"vxlan", "vxlan", ""},
	{"vxlan-nogso", "vxlan", "offload: {tunnelGSO: off}"}, // as on kernels before 6.17
	{"udp", "udp", ""},
	{"ipip", "ipip", ""},
	{"native-udp", "vxlan", "native: {carrier: udp}"}, // a sample's warming up lets the nodes agree
	{"native-tcp", "vxlan", "native: {carrier: tcp}"},
}

func subjects() (list []subject) {
	for _, v := range variants {
		for _, a := range []lab.Attach{lab.Veth, lab.TUN} {
			list = append(list, subject{Name: v.name, Encap: v.encap, Attach: a, YAML: v.yaml})
		}
	}
	list = append(list, subject{Name: "routing", Role: lab.PlainRouting, Encap: "vxlan", Attach: lab.Plain})
	for _, way := range []string{"one", "joined", "bundled"} {
		list = append(list, subject{Name: "relay-" + way, Role: lab.BareRelay, Encap: "vxlan", Attach: lab.TUN, Relay: way})
	}
	return list
}

// shape is what a load's samples consist of.
type shape int

const (
	bulk      shape = iota // bytes a second, CPU a byte
	datagrams              // datagrams a second, loss, CPU a datagram
	questions              // p50, p99, p99.9, requests a second
	connects               // connections a second
	idle                   // memory and CPU of a daemon that has nothing to do; nothing to compare with
)

// burden is one kind of traffic.
type burden struct {
	Name  string // last word of a cell's name
	Shape shape
	Kinds [2]load.Kind // sender, receiver
	Flows int
	Sizes []int
	Back  bool // from node-b to node-a
	Both  bool // both ways at once
	Pods  int  // on each node; 0: one
}

// mixed is seven small, four middle and one large datagram (the classic Internet mix); the sender shuffles them.
var mixed = []int{64, 64, 64, 64, 64, 64, 64, 570, 570, 570, 570, 1400}

func burdens() []burden {
	streams := [2]load.Kind{load.SendStreams, load.ReceiveStreams}
	flood := [2]load.Kind{load.SendDatagrams, load.ReceiveDatagrams}
	var list []burden
	for _, n := range []int{1, 4, 16} {
		name := fmt.Sprintf("tcp-%d", n)
		list = append(list,
			burden{Name: name, Shape: bulk, Kinds: streams, Flows: n},
			burden{Name: name + "-back", Shape: bulk, Kinds: streams, Flows: n, Back: true},
			burden{Name: name + "-both", Shape: bulk, Kinds: streams, Flows: n, Both: true})
	}
	for _, size := range []int{64, 570, 1400} {
		for _, flows := range []int{1, 16} {
			list = append(list, burden{Name: fmt.Sprintf("udp-%dx%d", size, flows), Shape: datagrams, Kinds: flood, Flows: flows, Sizes: []int{size}})
		}
	}
	return append(list,
		burden{Name: "mixed-x16", Shape: datagrams, Kinds: flood, Flows: 16, Sizes: mixed},
		burden{Name: "rr-udp", Shape: questions, Kinds: [2]load.Kind{load.AskDatagrams, load.AnswerDatagrams}, Flows: 1, Sizes: []int{64}},
		burden{Name: "rr-tcp", Shape: questions, Kinds: [2]load.Kind{load.AskStreams, load.AnswerStreams}, Flows: 1, Sizes: []int{64}},
		burden{Name: "connect", Shape: connects, Kinds: [2]load.Kind{load.Connect, load.AnswerStreams}, Flows: 4, Sizes: []int{64}},
		burden{Name: "pods-udp-64", Shape: datagrams, Kinds: flood, Flows: manyPods, Sizes: []int{64}, Pods: manyPods},
		burden{Name: "pods-tcp", Shape: bulk, Kinds: streams, Flows: manyPods, Pods: manyPods},
		burden{Name: "idle", Shape: idle, Pods: 2 * manyPods})
}

// manyPods is half of the hundred pods: as many on each node, each with one flow to one of the others. The idle
// daemon has all hundred.
const manyPods = 50

// cell is one row of the result.
type cell struct {
	Subject  subject
	Underlay lab.Kind
	Burden   burden
}

func (c cell) name() string {
	return path.Join(c.Subject.Name, string(c.Subject.Attach), c.Underlay.String(), c.Burden.Name)
}

// matrix is everything there is to measure, in the order that builds the fewest networks.
func matrix() (list []cell) {
	for _, u := range []lab.Kind{lab.Whole, lab.TSO, lab.Cut} {
		for _, many := range []bool{false, true} {
			for _, s := range subjects() {
				for _, b := range burdens() {
					if (b.Pods > 0) != many {
						continue
					}
					if s.Role == lab.BareRelay && (b.Pods > 0 || s.Relay == "bundled" && u == lab.Cut) {
						continue // it has one pod, and takes no cut bundles
					}
					if b.Shape == idle && (u != lab.Whole || s.Role != lab.Penstock || s.YAML != "") {
						continue
					}
					list = append(list, cell{Subject: s, Underlay: u, Burden: b})
				}
			}
		}
	}
	return list
}

// choose is what the options ask for: the rows with bars, or the whole matrix; words narrow it. Of alternatives that
// no row with a bar fits, the rows of the whole matrix are taken.
func choose(o options) ([]cell, error) {
	all := matrix()
	list := all
	if !o.full {
		list = slices.DeleteFunc(slices.Clone(all), func(c cell) bool { return len(barsOf(c.name())) == 0 })
	}
	if o.only == "" {
		return list, nil
	}
	chosen := map[string]bool{}
	for pattern := range strings.SplitSeq(o.only, ",") {
		before := len(chosen)
		for _, from := range [][]cell{list, all} {
			for _, c := range from {
				ok, err := fits(c.name(), pattern)
				if err != nil {
					return nil, err
				}
				if ok {
					chosen[c.name()] = true
				}
			}
			if len(chosen) > before {
				break
			}
		}
		if len(chosen) == before {
			return nil, fmt.Errorf("no cell (more) has all the words of %q in its name; make bench LIST=1 FULL=1 lists all cells", pattern)
		}
	}
	return slices.DeleteFunc(all, func(c cell) bool { return !chosen[c.name()] }), nil
}

// fits reports whether a cell's name has all words of the pattern; they may have * and ?.
func fits(name, pattern string) (bool, error) {
	parts := strings.Split(name, "/")
	words := strings.FieldsFunc(pattern, func(r rune) bool { return r == ' ' || r == '/' })
	for _, w := range words {
		found := false
		for _, p := range parts {
			ok, err := path.Match(w, p)
			if err != nil {
				return false, fmt.Errorf("%q cannot be matched: %w", w, err)
			}
			found = found || ok
		}
		if !found {
			return false, nil
		}
	}
	return len(words) > 0, nil
}
