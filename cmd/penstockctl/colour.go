package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// Colours of a terminal (ECMA-48 SGR).
const (
	red    = "31"
	yellow = "33"
	bold   = "1"
)

// colour is s in a colour where that shows: on a terminal, unless NO_COLOR is set (no-color.org).
func (t *tool) colour(code, s string) string {
	if !t.terminal() || os.Getenv("NO_COLOR") != "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// terminal tells whether the answer goes to one.
func (t *tool) terminal() bool {
	f, ok := asFile(t.out)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
