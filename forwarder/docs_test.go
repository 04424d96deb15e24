package forwarder

import (
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
