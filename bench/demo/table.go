package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// table collects one cell for each check and encapsulation.
type table struct {
	rows     []string             // in the order of first appearance
	columns  []string             // encapsulations
	cells    map[[2]string]string // row, column
	failures []string
}

func newTable() *table { return &table{cells: map[[2]string]string{}} }

func (t *table) set(row, column, cell string) {
	if !slices.Contains(t.rows, row) {
		t.rows = append(t.rows, row)
	}
	if !slices.Contains(t.columns, column) {
		t.columns = append(t.columns, column)
	}
	t.cells[[2]string{row, column}] = cell
}

func (t *table) fail(row, column string, err error) {
	t.set(row, column, "FAILED")
	t.failures = append(t.failures, fmt.Sprintf("%s, %s: %v", column, row, err))
}

func (t *table) print(w io.Writer) {
	widths := make([]int, len(t.columns)+1)
	for _, row := range t.rows {
		widths[0] = max(widths[0], utf8.RuneCountInString(row))
		for i, c := range t.columns {
			widths[i+1] = max(widths[i+1], utf8.RuneCountInString(t.cells[[2]string{row, c}]), len(c))
		}
	}
	line := func(cells ...string) {
		var b strings.Builder
		for i, c := range cells {
			b.WriteString(c)
			b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+3))
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	line(append([]string{""}, t.columns...)...)
	total := 3 * (len(widths) - 1)
	for _, width := range widths {
		total += width
	}
	fmt.Fprintln(w, strings.Repeat("─", total))
	for _, row := range t.rows {
		cells := []string{row}
		for _, c := range t.columns {
			cells = append(cells, t.cells[[2]string{row, c}])
		}
		line(cells...)
	}
}
