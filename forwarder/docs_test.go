package forwarder

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/docs/pages"
)

// TestDebuggingPage: docs/debugging.md lists every drop reason as the code has it.
func TestDebuggingPage(t *testing.T) {
	table := pages.NewTable("reason", "what it means", "what to do")
	for _, r := range Reasons() {
		if r.String() == "" || r.Meaning() == "" || r.Remedy() == "" {
			t.Errorf("reason %d lacks a text", r)
		}
		table.Row("`"+r.String()+"`", r.Meaning(), r.Remedy())
	}
	pages.Open(t, "debugging.md").Keep("reasons", table.String())
}

// TestPackageDoc: doc.go lists every file of the package once.
func TestPackageDoc(t *testing.T) {
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var listed, there []string
	for _, m := range regexp.MustCompile(`(?m)^//\t  (\w+\.go) `).FindAllSubmatch(text, -1) {
		listed = append(listed, string(m[1]))
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") && name != "doc.go" {
			there = append(there, name)
		}
	}
	slices.Sort(listed)
	if !slices.Equal(listed, there) {
		t.Errorf("doc.go lists\n%s\nand there are\n%s", strings.Join(listed, " "), strings.Join(there, " "))
	}
}
