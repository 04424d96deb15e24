// Package pages keeps the pages of docs/ true: a list, or what a program prints, stands there between two marks, and a test
// compares it with the code.
//
//	<!-- reasons -->            <!-- out: mtu/peers -->
//	…                           …
//	<!-- /reasons -->           <!-- /out -->
//
// With UPDATE=1 in the environment a test writes the block anew instead.
package pages

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Page is a page of docs/. The file is read and written whole at each call: tests of several packages keep blocks of one page.
type Page struct {
	t    testing.TB
	Name string
	path string
}

// Open finds docs/NAME of this module.
func Open(t testing.TB, name string) *Page {
	t.Helper()
	return &Page{t, "docs/" + name, filepath.Join(Root(t), "docs", name)}
}

// Root is the directory of this module: a test runs in that of its package.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			err = fmt.Errorf("there is no go.mod above the test")
		}
		dir = up
	}
	t.Fatal(err)
	return ""
}

// Updating says whether blocks are to be written.
func Updating() bool { return os.Getenv("UPDATE") != "" }

// Text is the whole page.
func (p *Page) Text() string {
	p.t.Helper()
	b, err := os.ReadFile(p.path)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// cut divides the page into what is before, in and behind a block.
func (p *Page) cut(key string) (head, block, tail string) {
	p.t.Helper()
	kind, _, _ := strings.Cut(key, ":")
	begin, end := "<!-- "+key+" -->\n", "<!-- /"+kind+" -->\n"
	head, rest, ok1 := strings.Cut(p.Text(), begin)
	block, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		p.t.Fatalf("%s has no block between %q and %q", p.Name, begin, end)
	}
	return head + begin, block, end + tail
}

// Block is what stands between a key's marks.
func (p *Page) Block(key string) string {
	p.t.Helper()
	_, block, _ := p.cut(key)
	return block
}

// Set writes a block.
func (p *Page) Set(key, text string) {
	p.t.Helper()
	head, _, tail := p.cut(key)
	if err := os.WriteFile(p.path, []byte(head+text+tail), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// Keep holds a block to exactly this text.
func (p *Page) Keep(key, want string) {
	p.t.Helper()
	switch {
	case p.Block(key) == want:
	case Updating():
		p.Set(key, want)
	default:
		p.t.Errorf("%s does not have %s as the code has it: run UPDATE=1 go test -run %s in this package", p.Name, key, p.t.Name())
	}
}

// Keys are those of a page's blocks of a kind, in its order: "out" for <!-- out: mtu/peers --> gives "out: mtu/peers".
func (p *Page) Keys(kind string) (keys []string) {
	p.t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^<!-- (`+kind+`: \S+) -->$`).FindAllStringSubmatch(p.Text(), -1) {
		keys = append(keys, m[1])
	}
	return keys
}

// Table is a Markdown table.
type Table struct{ b strings.Builder }

// NewTable begins a table with its head.
func NewTable(head ...string) *Table {
	t := &Table{}
	t.Row(head...)
	t.b.WriteString("|" + strings.Repeat("---|", len(head)) + "\n")
	return t
}

// Row adds cells.
func (t *Table) Row(cells ...string) {
	t.b.WriteString("|")
	for _, c := range cells {
		if c != "" {
			c = " " + c
		}
		t.b.WriteString(c + " |")
	}
	t.b.WriteString("\n")
}

func (t *Table) String() string { return t.b.String() }
