package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// repeat draws again and again: count times, or with 0 until the user has enough. On a terminal each picture takes the place of
// the one before, and q ends it as Ctrl-C does; elsewhere they follow each other.
func (t *tool) repeat(ctx context.Context, every time.Duration, count int, draw func(context.Context, *bytes.Buffer) error) error {
	live := count == 0 && t.output != "json" && t.terminal()
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

// fitHeight keeps the lines that a window has room for.
func fitHeight(s string, height int) string {
	if height <= 1 {
		return s
	}
	lines := strings.SplitAfter(s, "\n")
	if len(lines) <= height {
		return s
	}
	return strings.Join(lines[:height-1], "")
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
