package config

import (
	"fmt"
	"strings"

	"github.com/agnivade/levenshtein"
	"go.yaml.in/yaml/v3"
)

// A reader takes one value. It notes what is wrong with it and then leaves what
// it would have set alone.
type reader func(s *source, n *yaml.Node, key string)

// A field is one key of a mapping.
type field struct {
	name string
	read reader
}

// mapping reads a mapping that has these keys and no others.
func mapping(fields ...field) reader {
	return func(s *source, n *yaml.Node, key string) {
		if n.Kind != yaml.MappingNode {
			if !isNull(n) { // "node:" with nothing behind it: all defaults
				s.add(key, "this must be a mapping of keys (%s), not %s", names(fields), describe(n))
			}
			return
		}
		first := make(map[string]place)
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			at := place{k.Line, k.Column}
			path := join(key, k.Value)
			f := find(fields, k.Value)
			switch before, twice := first[k.Value]; {
			case k.Kind != yaml.ScalarNode:
				s.addAt(at, key, "a key must be a word, not %s", describe(k))
			case f == nil:
				meant, advice := suggest(k.Value, fields)
				s.addAt(at, path, "this key is unknown: %s", advice)
				if meant != "" {
					s.misspelt(join(key, meant))
				}
			case twice:
				s.addAt(at, path, "this key was already given in line %d: remove one of the two", before.line)
			default:
				first[k.Value] = at
				s.value(v, path, f.read)
			}
		}
	}
}

// list reads a list of values. element returns the reader for number i.
func list(element func(i int) reader) reader {
	return func(s *source, n *yaml.Node, key string) {
		if n.Kind != yaml.SequenceNode {
			if !isNull(n) { // "peers:" with every peer commented out: none
				s.add(key, "this must be a list, not %s: write [a, b] or one line with a dash for each", describe(n))
			}
			return
		}
		for i, v := range n.Content {
			s.value(v, fmt.Sprintf("%s[%d]", key, i), element(i))
		}
	}
}

// value remembers where a value stands and reads it.
func (s *source) value(n *yaml.Node, key string, read reader) {
	s.places[key] = place{n.Line, n.Column}
	if n.Kind == yaml.AliasNode {
		s.add(key, "an alias (*%s) does not work in this file: write the value out", n.Value)
		return
	}
	read(s, n, key)
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func find(fields []field, name string) *field {
	for i := range fields {
		if fields[i].name == name {
			return &fields[i]
		}
	}
	return nil
}

func names(fields []field) string {
	all := make([]string, len(fields))
	for i, f := range fields {
		all[i] = f.name
	}
	return strings.Join(all, ", ")
}

// suggest says what an unknown key may have meant; meant is empty if nothing is near.
func suggest(name string, fields []field) (meant, advice string) {
	best, least := "", 3
	for _, f := range fields {
		if len(name) > len(f.name)+least { // the work would grow with the square
			continue
		}
		if d := levenshtein.ComputeDistance(strings.ToLower(name), strings.ToLower(f.name)); d < least && d < len(f.name) {
			best, least = f.name, d
		}
	}
	if best != "" {
		return best, "did you mean " + best + "?"
	}
	return "", "remove it or use one of " + names(fields)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe says what a value is, in the words of the person who wrote it.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(n):
		return "nothing"
	case n.ShortTag() == "!!str":
		return fmt.Sprintf("%q", shorten(n.Value))
	}
	return shorten(n.Value)
}

func shorten(s string) string {
	if r := []rune(s); len(r) > 64 {
		return string(r[:64]) + "…"
	}
	return s
}
