package main

import (
	"context"
	"fmt"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// othersLimit is how many cores others may use before the figures are said to be worth little.
const othersLimit = 0.1

// compare measures the cells and writes the results after each.
func compare(ctx context.Context, o options, cells []cell, n *networks) error {
	r, err := newResults(o)
	if err != nil {
		return err
	}
	var todo []cell
	for _, c := range cells {
		if r.find(c.name()) == nil {
			todo = append(todo, c)
		}
	}
	if done := len(cells) - len(todo); done > 0 {
		fmt.Printf("Going on with an interrupted run: %d of %d cells are there already (FRESH=1 measures them again).\n", done, len(cells))
	} else if r.Others, err = othersUse(ctx); err != nil {
		return err
	}
	if r.Others > othersLimit {
		fmt.Printf("Others use %.1f of %d cores: do not trust the figures.\n", r.Others, r.Machine.Cores)
	}
	fmt.Printf("%d cells, %d pairs each, %.1f seconds a sample, against kernel VXLAN; results in %s.\n", len(todo), o.pairs, o.seconds, r.path("md"))
	if o.weight != 0 {
		fmt.Printf("Each daemon and each node's pods have a scheduling group; weights %d and %d.\n", o.weight, lab.PodsWeight)
	}
	if o.tool != "" {
		fmt.Printf("The traffic is made by %s.\n", o.tool)
	}
	p := newProgress(len(todo), o.pairs)
	failed := 0
	for _, c := range todo {
		x := pairs(ctx, o, n, c, p)
		if ctx.Err() != nil {
			return nil // the cells before it are written
		}
		if x.Text != "" {
			failed++
		}
		r.Cells = append(r.Cells, x)
		p.cell(x)
		r.Complete = len(r.Cells) == len(cells) && failed == 0
		if err := r.write(); err != nil {
			return err
		}
	}
	p.end(r)
	if failed > 0 {
		return fmt.Errorf("%d of %d cells could not be measured: %s says why", failed, len(cells), r.path("md"))
	}
	return nil
}

// pairs measures a cell: kernel VXLAN, the subject, and again.
func pairs(ctx context.Context, o options, n *networks, c cell, p *progress) *result {
	x := &result{Cell: c.name(), Shape: c.Burden.Shape}
	for range o.pairs {
		var base sample
		if c.Burden.Shape != idle {
			p.show(x, "kernel VXLAN")
			s, err := n.measure(ctx, baseline, c, o)
			if err != nil {
				x.Text = "kernel VXLAN: " + err.Error()
				return x
			}
			base = s
		}
		p.show(x, c.Subject.Name)
		s, err := n.measure(ctx, c.Subject, c, o)
		if err != nil {
			x.Text = err.Error()
			return x
		}
		if base != nil {
			x.Kernel = append(x.Kernel, base)
		}
		x.Subject = append(x.Subject, s)
		p.pair()
		if c.Burden.Shape == idle {
			break // waiting longer shows nothing new
		}
	}
	return x
}

// networks keeps those two that the current cell needs: building one takes as long as a sample.
type networks struct {
	yaml    string
	groups  *lab.Groups // nil: all in one
	weight  int         // of a daemon's group
	base    kept
	subject kept
}

// kept is a network and what it was built for.
type kept struct {
	key     string
	network *network
}

func (k *kept) close() {
	if k.network != nil {
		k.network.close()
	}
	*k = kept{}
}

func (n *networks) close() {
	n.base.close()
	n.subject.close()
}

// measure makes one sample of a subject under a cell's load. A network in which a run has failed is not used again.
func (n *networks) measure(ctx context.Context, s subject, c cell, o options) (sample, error) {
	network, err := n.get(ctx, s, c)
	if err != nil {
		return nil, err
	}
	result, err := measure(ctx, network, c.Burden, o, o.seconds)
	if err != nil {
		for _, node := range network.lab.Nodes {
			if d := node.Daemon; d != nil && d.Process.Exited() {
				err = fmt.Errorf("%w; penstockd on %s had ended and printed:\n%s", err, node.Name, d.Process.Output())
			}
		}
		n.of(s).close()
	}
	return result, err
}

func (n *networks) of(s subject) *kept {
	if s.Role == lab.KernelVXLAN {
		return &n.base
	}
	return &n.subject
}

// get is the subject's network for the cell, built if it is not the one that stands.
func (n *networks) get(ctx context.Context, s subject, c cell) (*network, error) {
	k := n.of(s)
	key := fmt.Sprint(s, c.Underlay, c.Burden.Pods, c.Burden.Shape == idle)
	if k.key == key {
		return k.network, nil
	}
	k.close()
	network, err := build(s, c.Underlay, c.Burden, n.yaml)
	if err != nil {
		return nil, err
	}
	if n.groups != nil {
		if err := network.part(n.groups, n.weight); err != nil {
			network.close()
			return nil, err
		}
	}
	*k = kept{key, network}
	// Neighbours are resolved, and what starts up has done so.
	return network, pause(ctx, 300*time.Millisecond)
}
