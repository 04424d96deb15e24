package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// sticky remembers the first write that failed: who prints a table looks at no write, and a script that has lost half an answer to a
// full disk must not go on as if it had all of it.
type sticky struct {
	io.Writer
	err error
}

func (s *sticky) Write(b []byte) (int, error) {
	n, err := s.Writer.Write(b)
	if err != nil && s.err == nil {
		s.err = err
	}
	return n, err
}

// lost is what to say of an answer that was not all written, beside how the command itself went. A reader that has seen enough, such
// as head, loses nothing.
func (s *sticky) lost(err error) error {
	switch {
	case s.err == nil, err != nil && !errors.Is(err, s.err):
		return err
	case errors.Is(s.err, unix.EPIPE):
		return nil
	}
	return fmt.Errorf("the answer could not all be written: %w", s.err)
}

// asFile is what a writer writes to, if that is a file.
func asFile(w io.Writer) (*os.File, bool) {
	if s, ok := w.(*sticky); ok {
		w = s.Writer
	}
	f, ok := w.(*os.File)
	return f, ok
}
