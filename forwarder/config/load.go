package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Load reads and checks a file of any kind: a pipe can be checked too.
func Load(path string) (*Config, error) { return load(path, os.ReadFile) }

// LoadRegular is Load for those who must not be held up: what is no regular file, as a FIFO that nobody writes to, is an error.
func LoadRegular(path string) (*Config, error) { return load(path, readRegular) }

func load(path string, read func(string) ([]byte, error)) (*Config, error) {
	data, err := read(path)
	if err != nil {
		return nil, &Unreadable{path, err}
	}
	return Parse(path, data)
}

func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch fi, err := f.Stat(); {
	case err != nil:
		return nil, err
	case fi.IsDir():
		return nil, syscall.EISDIR
	case !fi.Mode().IsRegular():
		return nil, errors.New("it is no regular file")
	}
	return io.ReadAll(f)
}

// Unreadable is a file that could not be read at all: one sentence for people, the cause for errors.Is.
type Unreadable struct {
	Path  string
	cause error
}

func (u *Unreadable) Error() string {
	switch {
	case errors.Is(u.cause, fs.ErrNotExist):
		return fmt.Sprintf("%s does not exist: write it (penstockctl config example > %[1]s), or name another", u.Path)
	case errors.Is(u.cause, syscall.EISDIR):
		return fmt.Sprintf("%s is a directory: name the configuration file in it", u.Path)
	case errors.Is(u.cause, fs.ErrPermission):
		return fmt.Sprintf("no permission to read the configuration file %s: run as root, or as who owns it", u.Path)
	}
	why := u.cause
	var e *fs.PathError
	if errors.As(why, &e) {
		why = e.Err // it has the path once more
	}
	return fmt.Sprintf("the configuration file %s cannot be read: %v; name one that can", u.Path, why)
}

func (u *Unreadable) Unwrap() error { return u.cause }

// Parse reads and checks a file's content; name stands for it in messages. Its
// error is always Errors. Complete what it returns before use.
func Parse(name string, data []byte) (*Config, error) {
	c := Default()
	c.src = source{file: name, places: map[string]place{"": {1, 1}}}
	if root := c.src.parse(data); root != nil {
		c.decode(root)
		c.check()
	}
	if err := c.src.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// parse returns the file's mapping, or nil after noting why there is none. A
// file without content is an empty mapping.
func (s *source) parse(data []byte) *yaml.Node {
	if at, what := unreadable(data); what != "" {
		s.addAt(at, "", "%s: write the file as plain UTF-8 text", what)
		return nil
	}
	var doc, more yaml.Node
	lines := strings.Count(strings.TrimSuffix(string(data), "\n"), "\n") + 1
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := decode(dec, &doc); {
	case err == io.EOF:
		return &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}
	case err != nil:
		s.syntax(err, lines)
		return nil
	}
	switch err := decode(dec, &more); {
	case err == io.EOF:
	case err != nil:
		s.syntax(err, lines)
	default:
		s.addAt(place{more.Line, more.Column}, "", "a second document begins here: keep everything in one and remove the --- line")
	}
	return doc.Content[0]
}

// decode keeps a bug of the YAML library from taking the daemon down at a reload.
func decode(dec *yaml.Decoder, n *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: the YAML reader failed: %v", r)
		}
	}()
	if err := dec.Decode(n); err != nil {
		return err
	}
	if len(n.Content) == 0 {
		return io.EOF
	}
	return nil
}

var (
	yamlLine = regexp.MustCompile(`^line (\d+): `)
	// In these messages the YAML library counts lines from 0, else from 1.
	fromZero = regexp.MustCompile(`^did not find expected (node content|key|'-'|','|<)`)
)

// syntax notes what the YAML library says. It gives no column, and no line for
// the first. lines is how many the file has: what is missing at its end counts as
// missing in the last.
func (s *source) syntax(err error, lines int) {
	what := strings.TrimPrefix(err.Error(), "yaml: ")
	at := place{1, 1}
	if m := yamlLine.FindStringSubmatch(what); m != nil {
		at.line, _ = strconv.Atoi(m[1])
		if what = what[len(m[0]):]; fromZero.MatchString(what) {
			at.line++
		}
		at.line = min(at.line, max(lines, 1))
	}
	s.addAt(at, "", "this is not YAML: %s; look at the indentation (spaces only), colons, brackets and quotes around here", what)
}

// unreadable finds the first byte that no YAML file may have.
func unreadable(data []byte) (at place, what string) {
	at = place{1, 1}
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return at, "this byte is not UTF-8"
		case r == '\n':
			at.line++
			at.column = 0
		case r < ' ' && r != '\t' && r != '\r', r >= 0x7f && r < 0xa0 && r != 0x85:
			return at, fmt.Sprintf("the control character %U does not belong here", r)
		}
		at.column++
		i += n
	}
	return at, ""
}
