package main

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// terminal reports whether a person watches.
var terminal = sync.OnceValue(func() bool {
	_, err := unix.IoctlGetTermios(int(os.Stdout.Fd()), unix.TCGETS)
	return err == nil
})
