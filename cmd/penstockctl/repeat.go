package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// repeat draws again and again: count times, or with 0 until the user has enough. On a terminal each picture takes the place of
// the one before, and q ends it as Ctrl-C does; elsewhere they follow each other.
func (t *tool) repeat(ctx context.Context, every time.Duration, count int, draw func(context.Context, *bytes.Buffer) error) error {
	live := count == 0 && t.output != "json" && t.terminal() && drawable(os.Getenv("TERM"))
	var keys <-chan byte
	if live {
		restore, err := quietTerminal(os.Stdin)
		if err == nil {
			defer restore()
			keys = readKeys(os.Stdin)
		}
		fmt.Fprint(t.out, "\x1b[?1049h\x1b[?25l")
		defer fmt.Fprint(t.out, "\x1b[?25h\x1b[?1049l")
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; {
		var b bytes.Buffer
		err := draw(ctx, &b)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !live:
			return err
		case err != nil: // it may come back
			fmt.Fprintf(&b, "\n%s\n", t.colour(red, err.Error()))
		}
		if live {
			fmt.Fprint(t.out, "\x1b[H"+strings.ReplaceAll(fitHeight(b.String(), windowHeight(t.out)), "\n", "\x1b[K\n")+"\x1b[J")
		} else if b.Len() > 0 {
			if n > 0 && t.output != "json" {
				fmt.Fprintln(t.out)
			}
			if _, err := t.out.Write(b.Bytes()); err != nil {
				return err
			}
			n++
		}
		if count > 0 && n == count {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		case k := <-keys:
			if k == 'q' || k == 'Q' || k == 3 {
				return nil
			}
		}
	}
}

// drawable is whether a terminal of this name understands where to draw.
func drawable(term string) bool { return term != "" && term != "dumb" }

// fitHeight keeps the lines that a window has room for: each part between empty lines has its share, and says how much more there is.
func fitHeight(s string, height int) string {
	if height <= 1 || strings.Count(s, "\n") < height {
		return s
	}
	parts := strings.Split(strings.TrimRight(s, "\n"), "\n\n")
	shares := make([]int, len(parts))
	bySize := make([]int, len(parts))
	for i, p := range parts {
		shares[i], bySize[i] = 1+strings.Count(p, "\n"), i
	}
	slices.SortStableFunc(bySize, func(a, b int) int { return cmp.Compare(shares[a], shares[b]) })
	room := height - len(parts) // empty lines, and the one that the cursor is in
	for n, i := range bySize {  // what a small part leaves is for the others
		shares[i] = min(shares[i], max(room/(len(parts)-n), 1))
		room -= shares[i]
	}
	for i, p := range parts {
		lines := strings.Split(p, "\n")
		if more := len(lines) - shares[i]; more > 0 {
			lines = append(lines[:shares[i]-1], fmt.Sprintf("… %d more lines", more+1))
		}
		parts[i] = strings.Join(lines, "\n")
	}
	whole := strings.SplitAfter(strings.Join(parts, "\n\n")+"\n", "\n")
	return strings.Join(whole[:min(len(whole), height-1)], "") // of very many parts
}

// quietTerminal makes keys come at once and unseen; Ctrl-C goes on to be a signal.
func quietTerminal(f *os.File) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	quiet := *old
	quiet.Lflag &^= unix.ICANON | unix.ECHO
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &quiet); err != nil {
		return nil, err
	}
	return func() { unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, old) }, nil
}

// readKeys reads until the process ends: nothing else wants them.
func readKeys(f *os.File) <-chan byte {
	keys := make(chan byte, 8)
	go func() {
		for in := bufio.NewReader(f); ; {
			k, err := in.ReadByte()
			if err != nil {
				return
			}
			keys <- k
		}
	}()
	return keys
}
