package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/docs/pages"
	"github.com/penstock-net/penstock/forwarder/config"
)

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	os.WriteFile(good, []byte("node: {podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n"), 0o600)
	os.WriteFile(bad, []byte("nod: {}\nencap: {type: gre}\n"), 0o600)
	for _, test := range []struct {
		args     string
		status   int
		out, err string
	}{
		{"--version", 0, "penstockd ", ""},
		{"--help", 0, "-cleanup", ""},
		{"--nonsense", 2, "", "nonsense"},
		{"nonsense", 2, "", "nonsense"},
		{"check --cleanup", 2, "", "exclude"},
		{"check --config " + good, 0, "is valid", ""},
		{"--config " + good + " check", 0, "is valid", ""},
		{"--config " + bad + " check", 1, "", "penstockd: " + bad + " has 3 mistakes:\n" + bad + ":1:1: nod: "},
		{"--config " + bad + " check", 1, "", "\n" + bad + ":2:15: encap.type: "},
		{"--config " + dir + "/none.yaml", 1, "", "none.yaml"},
		{"--config " + good + " --log-level loud", 1, "", "loud"},
		{"--config " + bad + " --cleanup", 1, "", "bad.yaml:2"},
	} {
		status, out, err := penstockd(t, strings.Fields(test.args)...)
		if status != test.status || !strings.Contains(out, test.out) || !strings.Contains(err, test.err) {
			t.Errorf("%s: %d %q %q, want %d %q %q", test.args, status, out, err, test.status, test.out, test.err)
		}
	}
}

func penstockd(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	status = run(args, files[0], files[1])
	var text [2]string
	for i, f := range files {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		text[i] = string(b)
	}
	return status, text[0], text[1]
}

// TestManual: docs/operations.md has the flags, and what check prints.
func TestManual(t *testing.T) {
	page := pages.Open(t, "operations.md")
	keep := func(key, command, path string, want int, args ...string) {
		t.Helper()
		status, out, errs := penstockd(t, args...)
		if status != want {
			t.Errorf("%s: exit status %d, want %d", command, status, want)
		}
		page.Keep(key, "```console\n"+command+"\n"+strings.ReplaceAll(out+errs, path, config.DefaultPath)+"```\n")
	}
	keep("help: penstockd", "# penstockd --help", config.DefaultPath, 0, "--help")
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("nod: {}\nencap: {type: gre}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keep("out: check", "# penstockd check", bad, 1, "check", "--config", bad)
}
