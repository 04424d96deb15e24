package main

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"
)

// Measures of the chart, in pixels.
const (
	chartLeft   = 330 // names
	chartRight  = 130 // figures
	chartPlot   = 540
	chartTop    = 64
	chartRow    = 22
	chartBottom = 56
)

// chartLine is one bar of the chart: the ratio of one metric of one cell.
type chartLine struct {
	name      string
	s         spread
	must, aim float64 // 0: none
	most      bool
	verdict   verdict
}

// chart draws the ratios on a logarithmic axis: right of ×1 is more than kernel VXLAN. Whiskers are the quartiles,
// the tick is the "must" of a bar.
func (r *results) chart() []byte {
	lines := r.chartLines()
	low, high := 0.5, 2.0
	for _, l := range lines {
		for _, v := range []float64{l.s.Q1, l.s.Q3, l.must, l.aim} {
			if v > 0 && !math.IsInf(v, 0) {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	low, high = low/1.1, high*1.1
	x := func(v float64) float64 {
		return chartLeft + chartPlot*(math.Log(v)-math.Log(low))/(math.Log(high)-math.Log(low))
	}
	height := chartTop + len(lines)*chartRow + chartBottom
	var b strings.Builder
	w := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	w(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`, chartLeft+chartPlot+chartRight, height)
	w(`<rect width="100%%" height="100%%" fill="#ffffff"/>`)
	w(`<text x="12" y="22" font-size="15" font-weight="bold">Penstock beside kernel VXLAN: ratio of medians of pairs</text>`)
	w(`<text x="12" y="42" fill="#555">%s, %d cores, Linux %s, commit %s, %s, %d pairs</text>`, html.EscapeString(r.Machine.CPU),
		r.Machine.Cores, html.EscapeString(r.Machine.Kernel), html.EscapeString(r.Commit), r.Started.Format(time.DateOnly), r.Pairs)
	bottom := float64(chartTop + len(lines)*chartRow)
	for _, v := range []float64{0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20} {
		if v < low || v > high {
			continue
		}
		colour := "#ddd"
		if v == 1 {
			colour = "#333"
		}
		w(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%.1f" stroke="%s"/>`, x(v), chartTop-6, x(v), bottom, colour)
		w(`<text x="%.1f" y="%.1f" text-anchor="middle" fill="#555">×%g</text>`, x(v), bottom+16, v)
	}
	for i, l := range lines {
		y := float64(chartTop + i*chartRow)
		mid := y + chartRow/2 - 1
		from, to := min(x(1), x(l.s.Median)), max(x(1), x(l.s.Median))
		w(`<text x="%d" y="%.1f" text-anchor="end">%s</text>`, chartLeft-8, mid+4, html.EscapeString(l.name))
		w(`<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s"/>`, from, y+3, max(1, to-from), chartRow-8, colours[l.verdict])
		w(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#222"/>`, x(l.s.Q1), mid, x(l.s.Q3), mid)
		if l.must > 0 {
			w(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#b00020" stroke-width="2"/>`, x(l.must), y, x(l.must), y+chartRow-2)
		}
		if l.aim > 0 {
			w(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#b00020" stroke-dasharray="2 2"/>`, x(l.aim), y, x(l.aim), y+chartRow-2)
		}
		w(`<text x="%d" y="%.1f">%s</text>`, chartLeft+chartPlot+10, mid+4, l.s.times())
	}
	w(`<text x="12" y="%.1f" fill="#555">Green: the bar is met; blue: its aim too; orange: not, or too few pairs; grey: no bar. Red line: must; dashed: aim. ↓: less is better. Whisker: quartiles.</text>`, bottom+40)
	w(`</svg>`)
	return []byte(b.String())
}

var colours = map[verdict]string{aimMet: "#4a90d9", mustMet: "#5fb56a", missed: "#f0983a", tooFew: "#f6c99a", "": "#b9bec7"}

func (r *results) chartLines() (lines []chartLine) {
	for _, c := range r.Cells {
		if c.Text != "" || c.Shape == idle {
			continue
		}
		first := true
		for _, m := range metrics[c.Shape] {
			l := chartLine{name: c.Cell, s: c.spread(m.Name)}
			for _, b := range barsOf(c.Cell) {
				if b.Metric == m.Name {
					l.must, l.aim, l.most, l.verdict = b.Must, b.Aim, b.Most, b.judge(l.s, c.enough())
				}
			}
			if !(l.s.Median > 0) || (!first && l.must == 0) {
				continue // of what has no bar the most important metric is enough
			}
			if !first || c.Shape == questions {
				l.name += ", " + m.Title
			}
			if l.most || c.Shape == questions {
				l.name += " ↓"
			}
			lines = append(lines, l)
			first = false
		}
	}
	return lines
}
