package encap

import (
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// The package is pure: the standard library without what opens things or steps around the type system.
func TestImports(t *testing.T) {
	allowed := map[string]bool{
		"bytes": true, "crypto/sha256": true, "encoding/binary": true, "fmt": true, "hash/crc32": true,
		"math/bits": true, "net/netip": true, "strconv": true,
	}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		seen++
		src, err := parser.ParseFile(token.NewFileSet(), f.Name(), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range src.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); !allowed[path] {
				t.Errorf("%s imports %s", f.Name(), path)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d files", seen)
	}
}

// Drops are counted by these names, so each fault needs one of its own.
func TestFaultNames(t *testing.T) {
	seen := map[string]Fault{}
	for f := range Fault(NumFaults) {
		name := f.String()
		if other, ok := seen[name]; ok || name == "" || strings.ToLower(name) != name || strings.Contains(name, " ") {
			t.Errorf("fault %d is called %q, fault %d too", f, name, other)
		}
		seen[name] = f
	}
	if got := Fault(NumFaults).String(); got != "unknown_fault" {
		t.Error(got)
	}
}
