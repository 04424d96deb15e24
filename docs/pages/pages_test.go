package pages

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// said takes what a page would fail its test with.
type said struct {
	testing.TB
	errors []string
}

func (s *said) Helper() {}

func (s *said) Errorf(format string, a ...any) {
	s.errors = append(s.errors, fmt.Sprintf(format, a...))
}

func TestBlocks(t *testing.T) {
	const before = "top\n<!-- list -->\nold\n<!-- /list -->\nmiddle\n<!-- out: a/b -->\nfirst\n<!-- /out -->\n<!-- out: c -->\nsecond\n<!-- /out -->\n"
	t.Setenv("UPDATE", "")
	s := &said{TB: t}
	p := &Page{t: s, Name: "page.md", path: filepath.Join(t.TempDir(), "page.md")}
	if err := os.WriteFile(p.path, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	if keys := p.Keys("out"); !slices.Equal(keys, []string{"out: a/b", "out: c"}) || p.Block("out: c") != "second\n" || p.Block("list") != "old\n" {
		t.Errorf("%q, %q, %q", keys, p.Block("out: c"), p.Block("list"))
	}
	if p.Keep("list", "old\n"); len(s.errors) != 0 {
		t.Errorf("a true block: %q", s.errors)
	}
	if p.Keep("list", "new\n"); len(s.errors) != 1 || p.Text() != before {
		t.Errorf("an untrue block: %q\n%s", s.errors, p.Text())
	}
	t.Setenv("UPDATE", "1")
	p.Keep("list", "new\n")
	p.Keep("out: a/b", "third\n")
	if want := "top\n<!-- list -->\nnew\n<!-- /list -->\nmiddle\n<!-- out: a/b -->\nthird\n<!-- /out -->\n<!-- out: c -->\nsecond\n<!-- /out -->\n"; len(s.errors) != 1 || p.Text() != want {
		t.Errorf("%q\n%s", s.errors, p.Text())
	}
}

func TestTable(t *testing.T) {
	table := NewTable("a", "b")
	table.Row("1", "")
	if got := table.String(); got != "| a | b |\n|---|---|\n| 1 | |\n" {
		t.Errorf("%q", got)
	}
}
