package main

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// terminal reports whether a person watches.
var terminal = sync.OnceValue(func() bool {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	return err == nil
})

// progress tells a person how far it is: on a terminal a line that changes, elsewhere a line a cell.
type progress struct {
	begin       time.Time
	cells, each int // to measure; pairs of each
	cellsDone   int
	pairsDone   int // of all cells
}

func newProgress(cells, pairs int) *progress {
	return &progress{begin: time.Now(), cells: cells, each: pairs}
}

// left is an estimate of the time until the end.
func (p *progress) left() string {
	if p.pairsDone == 0 {
		return ""
	}
	pairs := p.cells*p.each - p.pairsDone
	d := time.Since(p.begin) / time.Duration(p.pairsDone) * time.Duration(max(0, pairs))
	return fmt.Sprintf(", %v left", d.Round(time.Second))
}

// show says what is being measured now.
func (p *progress) show(x *result, who string) {
	if !terminal() {
		return
	}
	text := fmt.Sprintf("[%d/%d] %s  pair %d of %d: %s", p.cellsDone+1, p.cells, x.Cell, len(x.Subject)+1, p.each, who)
	if len(x.Subject) > 0 && x.Shape != idle {
		text += "  " + times(x.spread(metrics[x.Shape][0].Name).Median)
	}
	fmt.Print("\r\x1b[K" + text + p.left())
}

func (p *progress) pair() { p.pairsDone++ }

// cell prints what came out.
func (p *progress) cell(x *result) {
	p.cellsDone++
	p.pairsDone = p.cellsDone * p.each // idle cells and failures have fewer
	if terminal() {
		fmt.Print("\r\x1b[K")
	}
	if x.Text != "" {
		text, _, _ := strings.Cut(x.Text, "\n") // the rest is in the results
		fmt.Printf("%s  FAILED: %s\n", padded(x.Cell, 34), text)
		return
	}
	text := padded(x.Cell, 34)
	for _, m := range metrics[x.Shape] {
		have := spreadOf(series(x.Subject, m.Name))
		if x.Shape == idle {
			text += fmt.Sprintf("  %s %s", m.Title, m.Write(have.Median))
			continue
		}
		base := spreadOf(series(x.Kernel, m.Name))
		text += fmt.Sprintf("  %s %s → %s %s", m.Title, m.Write(base.Median), m.Write(have.Median), x.spread(m.Name).times())
	}
	if x.Shape == datagrams {
		text += fmt.Sprintf("  loss %s → %s", percent(spreadOf(series(x.Kernel, "loss")).Median), percent(spreadOf(series(x.Subject, "loss")).Median))
	}
	for _, b := range barsOf(x.Cell) {
		text += fmt.Sprintf("  [%s %s: %s]", b.Metric, b.line(x.Shape, b.Must), b.judge(x.spread(b.Metric), x.enough()))
	}
	fmt.Println(text)
}

func (p *progress) end(r *results) {
	met, all := 0, 0
	for _, x := range r.Cells {
		for _, b := range barsOf(x.Cell) {
			all++
			if v := b.judge(x.spread(b.Metric), x.enough()); v == mustMet || v == aimMet {
				met++
			}
		}
	}
	fmt.Printf("%d of %d bars met, in %v. Results: %s, .json and .svg.\n", met, all, time.Since(p.begin).Round(time.Second), r.path("md"))
}

// line writes a bar as a figure of its metric.
func (b bar) line(s shape, v float64) string {
	sign := "≥ "
	if b.Most {
		sign = "≤ "
	}
	if s == idle {
		for _, m := range metrics[s] {
			if m.Name == b.Metric {
				return sign + m.Write(v)
			}
		}
	}
	return sign + times(v)
}
