package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// table prints rows in columns. On a terminal it fits the window: the flexible column gives way, by an ellipsis or, with wrap,
// by going on in the next line. Elsewhere nothing is cut.
type table struct {
	out      io.Writer
	head     []string
	bare     bool // no head
	flexible int  // column
	wrap     bool
	least    int // that the flexible column keeps; 0: 8
	rows     [][]string
	width    int // of the window; 0: ask
}

const gap = 2 // spaces between columns

// leastContainer is what a shortened id of a container keeps, its ellipsis included: as much as doctor prints, and more than the 8 characters by
// which a pod can be named.
const leastContainer = 13

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print() {
	rows := t.rows
	if !t.bare {
		rows = append([][]string{t.head}, rows...)
	}
	if len(rows) == 0 {
		return
	}
	widths := make([]int, len(rows[0]))
	total := -gap
	for c := range widths {
		for _, r := range rows {
			widths[c] = max(widths[c], utf8.RuneCountInString(r[c]))
		}
		total += widths[c] + gap
	}
	if t.width == 0 {
		t.width = windowWidth(t.out)
	}
	if over := total - t.width; t.width > 0 && over > 0 {
		widths[t.flexible] = max(widths[t.flexible]-over, min(widths[t.flexible], cmp.Or(t.least, 8)))
	}
	for _, r := range rows {
		for first := true; first || r[t.flexible] != ""; first = false {
			line, rest := t.line(r, widths)
			fmt.Fprintln(t.out, line)
			r = make([]string, len(r))
			r[t.flexible] = rest
		}
	}
}

// line lays out one line and returns what of the flexible cell must follow in the next.
func (t *table) line(r []string, widths []int) (line, rest string) {
	var b strings.Builder
	for c, cell := range r {
		if c == t.flexible {
			cell, rest = t.fit(cell, widths[c])
		}
		b.WriteString(cell)
		if c < len(r)-1 {
			b.WriteString(strings.Repeat(" ", widths[c]-utf8.RuneCountInString(cell)+gap))
		}
	}
	return strings.TrimRight(b.String(), " "), rest
}

func (t *table) fit(cell string, width int) (now, rest string) {
	runes := []rune(cell)
	if len(runes) <= width {
		return cell, ""
	}
	if !t.wrap {
		return string(runes[:width-1]) + "…", ""
	}
	at := strings.LastIndexByte(string(runes[:width+1]), ' ')
	if at <= 0 {
		return string(runes[:width]), string(runes[width:])
	}
	return cell[:at], "  " + strings.TrimLeft(cell[at:], " ")
}

// windowWidth is 0 where there is no terminal.
func windowWidth(w io.Writer) int { return int(window(w).Col) }

func windowHeight(w io.Writer) int { return int(window(w).Row) }

func window(w io.Writer) unix.Winsize {
	f, ok := asFile(w)
	if !ok {
		return unix.Winsize{}
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return unix.Winsize{}
	}
	return *size
}
