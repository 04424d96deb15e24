package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/bench/load"
)

// network is two nodes of one subject with pods and the processes that make traffic in them. It is a lab.TB, so
// that the laboratory can tell it what fails and leave it the cleaning up.
type network struct {
	name     string
	lab      *lab.Lab
	pods     [2][]*lab.Pod
	send     [2]*load.Agent // by node
	take     [2]*load.Agent
	cleanups []func()
	made     time.Time // all pods are there
	failed   bool
	messages []string
}

// stopped is what Fatalf panics with.
type stopped struct{ message string }

func (n *network) Helper()           {}
func (n *network) Name() string      { return n.name }
func (n *network) Failed() bool      { return n.failed }
func (n *network) Cleanup(fn func()) { n.cleanups = append(n.cleanups, fn) }
func (n *network) Logf(format string, args ...any) {
	n.messages = append(n.messages, fmt.Sprintf(format, args...))
}
func (n *network) Errorf(format string, args ...any) { n.failed = true; n.Logf(format, args...) }
func (n *network) Skipf(format string, args ...any)  { n.Fatalf(format, args...) }
func (n *network) Fatalf(format string, args ...any) {
	n.failed = true
	panic(stopped{fmt.Sprintf(format, args...)})
}

// close takes everything down; it may be called at any time, and twice.
func (n *network) close() {
	for len(n.cleanups) > 0 {
		last := n.cleanups[len(n.cleanups)-1]
		n.cleanups = n.cleanups[:len(n.cleanups)-1]
		last()
	}
}

// build makes the network of a cell.
func build(s subject, u lab.Kind, b burden, yaml string) (n *network, err error) {
	n = &network{name: s.Name + "/" + string(s.Attach) + "/" + u.String()}
	defer func() {
		switch r := recover().(type) {
		case nil:
			return
		case stopped:
			err = fmt.Errorf("%s cannot be built: %s", n.name, r.message)
		default:
			n.close()
			panic(r)
		}
		n.close()
		if len(n.messages) > 0 {
			err = fmt.Errorf("%w\n%s", err, strings.Join(n.messages, "\n"))
		}
	}()
	n.lab = lab.New(n, lab.Config{Roles: []lab.Role{s.Role, s.Role}, Encap: s.Encap, Kind: u, Wiring: lab.Direct, Relay: s.Relay})
	if s.Role == lab.Penstock {
		var snippets []string
		for _, y := range []string{s.YAML, yaml} {
			if y != "" {
				snippets = append(snippets, y)
			}
		}
		if b.Shape == idle { // what is looked at is the first node's daemon
			n.lab.Nodes[0].Start(n, append(snippets, thousandPeers(n.lab))...)
		} else {
			n.lab.Start(n, snippets...)
		}
	}
	for i, node := range n.lab.Nodes {
		if b.Shape == idle && i > 0 {
			break
		}
		for range max(1, b.Pods) {
			p := node.AddPod(n, s.Attach)
			// Else what one run has learned about a destination would be the next one's slow start.
			p.Sysctl(n, "net.ipv4.tcp_no_metrics_save", "1")
			n.pods[i] = append(n.pods[i], p)
		}
	}
	n.made = time.Now()
	if b.Shape == idle {
		return n, nil
	}
	for i := range n.pods {
		for _, a := range []**load.Agent{&n.send[i], &n.take[i]} {
			if *a, err = load.StartAgent(n.pods[i]); err != nil {
				n.Fatalf("%v", err)
			}
			n.Cleanup((*a).Close)
		}
	}
	return n, nil
}

// part puts each node's daemon into a group of its own, and who makes the traffic of its pods into another.
func (n *network) part(g *lab.Groups, weight int) error {
	for i, node := range n.lab.Nodes {
		if node.Daemon != nil {
			if err := g.Put(node.Daemon.Process, node.Name+"-daemon", weight); err != nil {
				return err
			}
		}
		for _, a := range []*load.Agent{n.send[i], n.take[i]} {
			if a == nil {
				continue // an idle node
			}
			if err := g.Put(a.Process(), node.Name+"-pods", lab.PodsWeight); err != nil {
				return err
			}
		}
	}
	return nil
}

// thousandPeers is a peers list with the other node and 999 that do not exist.
func thousandPeers(l *lab.Lab) string {
	var b strings.Builder
	b.WriteString("peers:\n")
	other := l.Nodes[1]
	fmt.Fprintf(&b, "- {name: %s, address: %v, podCIDRs: [%v]}\n", other.Name, other.Underlay(), other.PodCIDR4)
	for i := range 999 {
		fmt.Fprintf(&b, "- {name: peer-%d, address: 198.18.%d.%d, podCIDRs: [10.244.%d.%d/28]}\n",
			i, i/200, i%200+1, 64+i/16, i%16*16)
	}
	return b.String()
}
