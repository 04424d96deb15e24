//go:build linux

package ring

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// unsafe and the raw calls stay in one file.
func TestUnsafeInOneFile(t *testing.T) {
	files, err := filepath.Glob("*.go")
	must(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || name == "sys.go" {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		must(t, err)
		for _, i := range f.Imports {
			if i.Path.Value == `"unsafe"` {
				t.Errorf("%s imports unsafe; only sys.go may", name)
			}
		}
	}
}
