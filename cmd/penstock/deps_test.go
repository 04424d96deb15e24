package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestLean: the plugin does not link what costs it more to start than all that it does (docs/decisions/0011-lean-plugin.md), and of
// ours it links its own packages, the daemon's API, and what both must decide alike when they turn forwarding on, alone.
func TestLean(t *testing.T) {
	c := exec.Command("go", "list", "-deps", ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "github.com/containernetworking/cni/pkg/skel") {
		t.Fatalf("go list has said %q", deps)
	}
	const module = "github.com/penstock-net/penstock/"
	var ours []string
	for _, p := range deps {
		for _, heavy := range []string{"net/http", "hash/crc32", "github.com/mdlayher", "crypto/tls", "crypto/x509", "go.opentelemetry.io", "compress", "log/slog", "text/template"} {
			if p == heavy || strings.HasPrefix(p, heavy+"/") {
				t.Errorf("the plugin links %s: `go list -deps -f '{{.ImportPath}} {{.Imports}}' ./cmd/penstock` shows who imports it", p)
			}
		}
		if name, ok := strings.CutPrefix(p, module); ok {
			ours = append(ours, name)
		}
	}
	slices.Sort(ours)
	if want := []string{"cmd/penstock", "cmd/penstock/quiet", "cni", "cni/adopt", "cni/ethtool", "forwarder/control", "forwarder/hostnet/advertised", "forwarder/hostnet/dump"}; !slices.Equal(ours, want) {
		t.Errorf("the plugin links %q of ours, want %q", ours, want)
	}
}
