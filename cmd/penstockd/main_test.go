package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		{"--config " + bad + " check", 1, "", "bad.yaml:2"},
		{"--config " + dir + "/none.yaml", 1, "", "none.yaml"},
		{"--config " + good + " --log-level loud", 1, "", "loud"},
		{"--config " + bad + " --cleanup", 1, "", "bad.yaml:2"},
	} {
		out, _ := os.Create(filepath.Join(dir, "out"))
		err, _ := os.Create(filepath.Join(dir, "err"))
		status := run(strings.Fields(test.args), out, err)
		o, _ := os.ReadFile(out.Name())
		e, _ := os.ReadFile(err.Name())
		out.Close()
		err.Close()
		if status != test.status || !strings.Contains(string(o), test.out) || !strings.Contains(string(e), test.err) {
			t.Errorf("%s: %d %q %q, want %d %q %q", test.args, status, o, e, test.status, test.out, test.err)
		}
	}
}
