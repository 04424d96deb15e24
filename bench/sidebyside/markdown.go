package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// markdown is the report: first the bars, then everything that was measured.
func (r *results) markdown() []byte {
	var b strings.Builder
	w := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	w("# Penstock beside the kernel's VXLAN")
	w("")
	w("%s, %d cores, %d MiB; Linux %s; commit %s; %s. %d pairs a cell, %.1f s a sample; TCP with %s; how to read it: docs/performance.md.",
		r.Machine.CPU, r.Machine.Cores, r.Machine.MemoryMiB, r.Machine.Kernel, r.Commit, r.Started.Format(time.DateTime)+" UTC", r.Pairs, r.Seconds, r.TCP)
	if r.Burst > 1 {
		w("Datagrams of one flow in a row: %d.", r.Burst)
	}
	if r.Weight != 0 {
		w("Each daemon and each node's pods are in a scheduling group of their own; weights %d and %d.", r.Weight, lab.PodsWeight)
	}
	if r.Tool != "" {
		w("The traffic is made by `%s`, not by the built-in program.", r.Tool)
	}
	if r.YAML != "" {
		w("Configuration of every Penstock: `%s`.", r.YAML)
	}
	if r.Others > othersLimit {
		w("\n**Others used %.1f cores when the run began: these figures are not to be trusted.**", r.Others)
	}
	if !r.Complete {
		w("\n**The run is not complete.**")
	}
	w("\n![ratios](%s.svg)", r.name)
	r.writeBars(w)
	for s := bulk; s <= idle; s++ {
		r.writeShape(w, s)
	}
	failed := false
	for _, x := range r.Cells {
		if x.Text != "" {
			if !failed {
				w("\n## Not measured\n")
			}
			failed = true
			w("- `%s`: %s", x.Cell, strings.ReplaceAll(x.Text, "\n", " "))
		}
	}
	return []byte(b.String())
}

func (r *results) writeBars(w func(string, ...any)) {
	any := false
	for _, x := range r.Cells {
		for _, bar := range barsOf(x.Cell) {
			if x.Text != "" {
				continue
			}
			if !any {
				w("\n## Bars\n")
				w("| cell | bar | kernel VXLAN | Penstock | ratio | half IQR | must | aim | verdict |")
				w("|---|---|---|---|---|---|---|---|---|")
				any = true
			}
			m := metricOf(x.Shape, bar.Metric)
			s := x.spread(bar.Metric)
			ratio, half, base := times(s.Median), fmt.Sprintf("%.2f", s.IQR()/2), m.Write(spreadOf(series(x.Kernel, m.Name)).Median)
			if x.Shape == idle {
				ratio, half, base = "–", "–", "–"
			}
			w("| `%s` | %s | %s | %s | %s | %s | %s | %s | %s |", x.Cell, bar.Text, base,
				m.Write(spreadOf(series(x.Subject, m.Name)).Median), ratio, half,
				bar.line(x.Shape, bar.Must), bar.line(x.Shape, bar.Aim), bar.judge(s, x.enough()))
		}
	}
}

func metricOf(s shape, name string) metric {
	for _, m := range metrics[s] {
		if m.Name == name {
			return m
		}
	}
	return metric{Name: name, Title: name, Write: func(v float64) string { return fmt.Sprintf("%.4g", v) }}
}

var shapeTitles = map[shape]string{
	bulk: "Bulk TCP", datagrams: "Datagrams", questions: "Request and response", connects: "Connections", idle: "At rest",
}

// writeShape is the table of all cells of one shape: of each metric kernel VXLAN → subject, ratio, half its IQR.
func (r *results) writeShape(w func(string, ...any), s shape) {
	any := false
	for _, x := range r.Cells {
		if x.Shape != s || x.Text != "" {
			continue
		}
		if !any {
			any = true
			head, line := "| cell |", "|---|"
			for _, m := range metrics[s] {
				head, line = head+" "+m.Title+" |", line+"---|"
			}
			if s == datagrams {
				head, line = head+" loss | offered |", line+"---|---|"
			}
			if s != idle {
				head, line = head+" cores busy |", line+"---|"
			}
			w("\n## %s\n\n%s\n%s", shapeTitles[s], head, line)
		}
		row := fmt.Sprintf("| `%s` |", x.Cell)
		for _, m := range metrics[s] {
			have := m.Write(spreadOf(series(x.Subject, m.Name)).Median)
			if s == idle {
				row += " " + have + " |"
				continue
			}
			row += fmt.Sprintf(" %s → %s, **%s** |", m.Write(spreadOf(series(x.Kernel, m.Name)).Median), have, x.spread(m.Name).times())
		}
		both := func(name string, write func(float64) string) {
			row += fmt.Sprintf(" %s → %s |", write(spreadOf(series(x.Kernel, name)).Median), write(spreadOf(series(x.Subject, name)).Median))
		}
		if s == datagrams {
			both("loss", percent)
			both("offered", perSecond)
		}
		if s != idle {
			both("cores", func(v float64) string {
				if math.IsNaN(v) {
					return "–"
				}
				return fmt.Sprintf("%.2f", v)
			})
		}
		w("%s", row)
	}
}
