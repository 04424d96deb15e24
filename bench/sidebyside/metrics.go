package main

import (
	"fmt"
	"math"
	"strings"
)

// metric is a figure of a sample that is compared.
type metric struct {
	Name  string
	Title string
	Write func(float64) string
}

// metrics are what is shown of each shape, the most important first.
var metrics = map[shape][]metric{
	bulk: {
		{"rate", "delivered", func(v float64) string { return known(v, fmt.Sprintf("%.2f Gbit/s", v/1e9)) }},
		{"cpu", "CPU a byte", func(v float64) string { return known(v, fmt.Sprintf("%.3f ns", v*1e9)) }},
	},
	datagrams: {
		{"rate", "delivered", perSecond},
		{"cpu", "CPU a datagram", duration},
	},
	questions: {
		{"p50", "p50", duration},
		{"p99", "p99", duration},
		{"p999", "p99.9", duration},
		{"cpu", "CPU a request", duration},
	},
	connects: {
		{"rate", "connections", perSecond},
		{"cpu", "CPU a connection", duration},
	},
	idle: {
		{"memory", "memory", func(v float64) string { return fmt.Sprintf("%.1f MiB", v/(1<<20)) }},
		{"idlecpu", "CPU", func(v float64) string { return fmt.Sprintf("%.3f %%", v*100) }},
	},
}

// known is the text of a figure that there is.
func known(v float64, text string) string {
	if math.IsNaN(v) {
		return "–"
	}
	return text
}

func perSecond(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v >= 1e6:
		return fmt.Sprintf("%.2f M/s", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0f k/s", v/1e3)
	}
	return fmt.Sprintf("%.0f /s", v)
}

// duration writes seconds.
func duration(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v < 1e-6:
		return fmt.Sprintf("%.0f ns", v*1e9)
	case v < 1e-3:
		return fmt.Sprintf("%.1f µs", v*1e6)
	}
	return fmt.Sprintf("%.2f ms", v*1e3)
}

func percent(v float64) string {
	return known(v, fmt.Sprintf("%.1f %%", v*100))
}

// times writes a ratio, with three digits that mean something.
func times(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0) || v <= 0:
		return "–"
	case v < 1:
		return fmt.Sprintf("×%.2f", v)
	}
	return fmt.Sprintf("×%.*f", max(0, 2-int(math.Log10(v))), v)
}

// times writes the median with half the interquartile range.
func (s spread) times() string {
	if math.IsNaN(s.Median) {
		return "–"
	}
	return fmt.Sprintf("%s ± %.2f", times(s.Median), s.IQR()/2)
}

// series are the values of one metric.
func series(samples []sample, name string) []float64 {
	var list []float64
	for _, s := range samples {
		v, ok := s[name]
		if !ok {
			v = math.NaN()
		}
		list = append(list, v)
	}
	return list
}

// padded fills with spaces by runes, for columns on a terminal.
func padded(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-len([]rune(s))))
}
