package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Problem is one mistake in a file.
type Problem struct {
	File    string
	Line    int // from 1; 0: it has no place in the file
	Column  int
	Key     string // such as peers[1].podCIDRs[0]; empty: the file as a whole
	Message string // what is wrong and what to do
}

// String returns file:line:column: key: message, as compilers write it.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Errors are all mistakes of a file, by line and column.
type Errors []Problem

// Count says how many there are.
func (e Errors) Count() string {
	if len(e) == 1 {
		return "1 mistake"
	}
	return fmt.Sprintf("%d mistakes", len(e))
}

// Error returns one line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Report is what the programs print behind their names: how many there are, and then each on a line of its own that an editor can parse.
func (e Errors) Report() string {
	return fmt.Sprintf("%s has %s:\n%s", e[0].File, e.Count(), e.Error())
}

// place is where a key's value stands; line 0: nowhere.
type place struct{ line, column int }

// source remembers where keys stand and collects what is wrong with them.
type source struct {
	file     string
	places   map[string]place
	wrong    map[string]bool // keys that have a problem
	meant    map[string]bool // keys that an unknown one probably is
	problems Errors
}

// has reports whether the file gives that key, rightly or not.
func (s *source) has(key string) bool {
	_, ok := s.places[key]
	return ok
}

// noted reports whether there is a problem with that very key already, or it
// lies under one that is misspelt.
func (s *source) noted(key string) bool {
	if s.wrong[key] {
		return true
	}
	for ; key != ""; key = key[:max(0, strings.LastIndexAny(key, ".["))] {
		if s.meant[key] {
			return true
		}
	}
	return false
}

// misspelt notes that an unknown key probably meant this one: then it is not
// missing as well.
func (s *source) misspelt(key string) {
	if s.meant == nil {
		s.meant = make(map[string]bool)
	}
	s.meant[key] = true
}

// at returns the place of a key or, where the file leaves it out, of the
// nearest key around it.
func (s *source) at(key string) place {
	for {
		if p, ok := s.places[key]; ok || key == "" {
			return p
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
}

// add notes a problem with a key.
func (s *source) add(key, format string, args ...any) {
	s.addAt(s.at(key), key, format, args...)
}

func (s *source) addAt(p place, key, format string, args ...any) {
	if s.wrong == nil {
		s.wrong = make(map[string]bool)
	}
	s.wrong[key] = true
	s.problems = append(s.problems, Problem{s.file, p.line, p.column, key, fmt.Sprintf(format, args...)})
}

// line says where another key stands, for use within a message; of one that the
// file leaves out it says nothing.
func (s *source) line(key string) string {
	if p := s.places[key]; p.line > 0 {
		return fmt.Sprintf(" (line %d)", p.line)
	}
	return ""
}

// err returns the problems in order and forgets them, or nil.
func (s *source) err() error {
	if len(s.problems) == 0 {
		return nil
	}
	all := s.problems
	s.problems = nil
	slices.SortStableFunc(all, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return all
}
