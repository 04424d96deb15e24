package server

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/docs/pages"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/capture"
)

// section of the manual about this API.
func section(t *testing.T) string {
	t.Helper()
	_, text, ok1 := strings.Cut(pages.Open(t, "operations.md").Text(), "\n## Control API\n")
	text, _, ok2 := strings.Cut(text, "\n## ")
	if !ok1 || !ok2 {
		t.Fatal("docs/operations.md has no section Control API")
	}
	return text
}

// TestManualEndpoints: docs/operations.md has every endpoint with its methods, and none besides.
func TestManualEndpoints(t *testing.T) {
	want := []string{"POST " + control.AdoptPath, "POST " + capture.Path}
	for path, methods := range endpoints(&fake{}) {
		for method := range methods {
			want = append(want, method+" "+path)
		}
	}
	var got []string
	for _, row := range regexp.MustCompile(`(?m)^\| ([A-Z, ]+) \| ([^|]+) \|`).FindAllStringSubmatch(section(t), -1) {
		for _, path := range regexp.MustCompile("/v1/[a-z]+").FindAllString(row[2], -1) {
			for _, method := range strings.Split(row[1], ", ") {
				got = append(got, method+" "+path)
			}
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("docs/operations.md has %q, the control API %q", got, want)
	}
}

// TestManualCodes: docs/operations.md has every code of a failure with its HTTP status, and none besides.
func TestManualCodes(t *testing.T) {
	_, text, ok := strings.Cut(section(t), "with one of the codes")
	text, _, _ = strings.Cut(text, "\n\n")
	if !ok {
		t.Fatal("docs/operations.md does not list the codes")
	}
	got, waiting := map[control.Code]int{}, []control.Code(nil)
	for _, m := range regexp.MustCompile("`([a-z_]+)`|\\((\\d{3})").FindAllStringSubmatch(text, -1) {
		if m[1] != "" {
			waiting = append(waiting, control.Code(m[1]))
			continue
		}
		for _, c := range waiting { // several share the status behind them
			got[c] = statusNamed(t, m[2])
		}
		waiting = nil
	}
	if !maps.Equal(got, statusOf) {
		t.Errorf("docs/operations.md has %v, the control API %v", got, statusOf)
	}
}

func statusNamed(t *testing.T, s string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil || http.StatusText(n) == "" {
		t.Errorf("%q is no HTTP status", s)
	}
	return n
}
