package forwarder

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDebuggingPage: docs/debugging.md lists every drop reason as the code has
// it. UPDATE=1 writes the table anew.
func TestDebuggingPage(t *testing.T) {
	const path, begin, end = "../docs/debugging.md", "<!-- reasons -->\n", "<!-- /reasons -->\n"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(page), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has lost its marks %q", path, begin)
	}
	var b strings.Builder
	b.WriteString("| reason | what it means | what to do |\n|---|---|---|\n")
	for _, r := range Reasons() {
		if r.String() == "" || r.Meaning() == "" || r.Remedy() == "" {
			t.Errorf("reason %d lacks a text", r)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", r, r.Meaning(), r.Remedy())
	}
	want := head + begin + b.String() + end + tail
	if want == string(page) {
		return
	}
	if os.Getenv("UPDATE") == "" {
		t.Fatalf("%s does not list the drop reasons as drops.go has them: run UPDATE=1 go test ./forwarder -run TestDebuggingPage", path)
	}
	if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
