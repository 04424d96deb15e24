// Package cmd_test holds what the project's files promise around the three programs.
package cmd_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/config"
)

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Bare make lists every target, and builds nothing.
func TestMakeListsItsTargets(t *testing.T) {
	mk, err := exec.LookPath("make")
	if err != nil {
		t.Skip("make is not installed")
	}
	c := exec.CommandContext(t.Context(), mk, "-C", "..", "--no-print-directory")
	c.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "make" {
			t.Errorf("not a target with its purpose: %q", line)
			continue
		}
		got = append(got, f[1])
	}
	slices.Sort(got)
	want := strings.Fields("addbench bench build clean deb demo fuzz help install lint matrix microbench profile race soak test torture uninstall")
	if !slices.Equal(got, want) {
		t.Errorf("make lists %q, want %q", got, want)
	}
}

func TestCIRunsTheReadmesTestCommand(t *testing.T) {
	if !strings.Contains(read(t, "../README.md"), "    make test ") || !strings.Contains(read(t, "../.ci/run"), "make test") {
		t.Error("README and .ci/run do not name the same command")
	}
	if fi, err := os.Stat("../.ci/run"); err != nil || fi.Mode()&0o111 == 0 {
		t.Errorf(".ci/run cannot be executed: %v", err)
	}
}

// Every key of the configuration stands in the operator's manual with what a reload does to it, and no key besides.
func TestManualNamesEveryKey(t *testing.T) {
	manual := read(t, "../docs/operations.md")
	table := manual[strings.Index(manual, "## Configuration"):strings.Index(manual, "### Reload")]
	rows := map[string]bool{} // key → a reload may change it
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		for _, m := range regexp.MustCompile("`([a-zA-Z.*]+)`").FindAllStringSubmatch(cells[1], -1) {
			rows[m[1]] = strings.TrimSpace(cells[3]) != ""
		}
	}
	check := func(keys []string, reload bool) {
		for _, k := range keys {
			group, _, _ := strings.Cut(k, ".")
			if got, ok := rows[k]; ok && got == reload {
				continue
			}
			if got, ok := rows[group+".*"]; ok && got == reload {
				continue
			}
			t.Errorf("docs/operations.md: %s is missing, or its reload column is wrong (reload: %v)", k, reload)
		}
	}
	check(config.RestartKeys(), false)
	check(config.ReloadKeys(), true)
	all := append(config.RestartKeys(), config.ReloadKeys()...)
	for k := range rows {
		if !strings.HasSuffix(k, ".*") && !slices.Contains(all, k) {
			t.Errorf("docs/operations.md has a key %s that the configuration does not have", k)
		}
	}
}
