package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestRedactYAML(t *testing.T) {
	const file = `# our password is swordfish
node: {name: node-a} # swordfish
etcd:
  endpoints: ["https://root:swordfish@192.0.2.9:2379", http://192.0.2.8:2379]
  password: swordfish
  token: {a: swordfish}
  TLSPrivate: swordfish
  key: swordfish
`
	out, err := redactYAML([]byte(file))
	if err != nil || strings.Contains(out, "swordfish") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, want := range []string{"node-a", "192.0.2.9:2379", "http://192.0.2.8:2379", "password: (left out)"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
	if _, err := redactYAML([]byte("a: [swordfish")); err == nil || strings.Contains(err.Error(), "swordfish") {
		t.Errorf("bad YAML: %v", err)
	}
}

func FuzzRedactYAML(f *testing.F) {
	f.Add("password: x\nlist: [1, {token: y}]\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, s string) {
		redactYAML([]byte(s))
		out, err := redactYAML([]byte("zzz: 1\npassword: swordfish\n# swordfish\n"))
		if err != nil || strings.Contains(out, "swordfish") {
			t.Fatal(out, err)
		}
	})
}

// TestBundleKeepsSecrets: of the lists of other plugins, and of other plugins in ours, nothing gets out that may be a secret; a
// daemon that cannot be asked leaves a bundle that says so.
func TestBundleKeepsSecrets(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "net.d")
	if err := os.Mkdir(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"05-penstock.conflist": `{"name":"penstock","cniVersion":"1.0.0","plugins":[{"type":"penstock","attach":"veth","mtu":1400,"apiToken":"swordfish","ipam":{"type":"host-local","password":"swordfish"}},{"type":"other","k8s_auth_token":"swordfish","capabilities":{"x":"swordfish"}}]}`,
		"10-calico.conflist":   `{"name":"calico","plugins":[{"type":"calico","policy":{"k8s_auth_token":"swordfish"}}]}`,
		"20-bad.conf":          `{"swordfish"`,
		"penstock.yaml":        "node: {name: node-a, podCIDRs: [10.244.1.0/24]} # swordfish\n",
	} {
		if err := os.WriteFile(filepath.Join(conf, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "b.tar.gz")
	status, out, stderr := ctl(t, "--socket", filepath.Join(dir, "none.sock"), "support-bundle", "-f", file, "--conf-dir", conf, "--config", filepath.Join(conf, "penstock.yaml"))
	if status != exitWarnings || !strings.Contains(out, "wrote "+file) || !strings.Contains(stderr, "errors.txt") {
		t.Errorf("%d %q %q", status, out, stderr)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi, err)
	}
	parts := readBundle(t, file)
	for name, content := range parts {
		if strings.Contains(content, "swordfish") {
			t.Errorf("%s holds the secret:\n%s", name, content)
		}
	}
	if !strings.Contains(parts["errors.txt"], "status.json: there is no control socket") {
		t.Errorf("errors.txt: %q", parts["errors.txt"])
	}
	missing := append([]string{"status.json"}, slices.Concat(answerParts, debugParts)...)
	for _, name := range missing {
		if _, there := parts[name]; there || !strings.Contains(parts["errors.txt"], name+": there is no control socket") {
			t.Errorf("%s is not named in errors.txt, or is there", name)
		}
	}
	if lines := strings.Count(parts["errors.txt"], "\n"); lines != len(missing) || !strings.Contains(stderr, "lacks 12 parts") || strings.Count(stderr, "there is no control socket") != 1 {
		t.Errorf("%d lines in errors.txt: %q", lines, stderr)
	}
	var lists map[string]any
	if err := json.Unmarshal([]byte(parts["cni.json"]), &lists); err != nil || len(lists) != 3 || !strings.Contains(parts["cni.json"], "1400") {
		t.Errorf("%v %s", err, parts["cni.json"])
	}
	for _, name := range []string{"doctor.json", "penstock.yaml", "links.json", "qdiscs.json", "tc-filters.json", "ip-routes.json", "sysctls.txt", "version.txt", "nft.txt"} {
		if _, ok := parts[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}

// TestBundleBrokenOff: who has no patience with doctor has the daemon's answers.
func TestBundleBrokenOff(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	socket := serve(t, &fake{probing: stop})
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	var out, errs bytes.Buffer
	run(ctx, []string{"--socket", socket, "support-bundle", "-f", file, "--conf-dir", t.TempDir()}, &out, &errs)
	parts := readBundle(t, file)
	for _, name := range []string{"status.json", "peers.json", "doctor.json"} {
		if parts[name] == "" {
			t.Errorf("%s is missing: %s", name, errs.String())
		}
	}
	if !strings.Contains(parts["doctor.json"], "were not probed") {
		t.Errorf("doctor says %s", parts["doctor.json"])
	}
}

// readBundle reads an archive; the folder is cut from the names.
func readBundle(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, ok := strings.Cut(h.Name, "/")
		if !ok || h.Mode != 0o600 {
			t.Errorf("%+v", h)
		}
		parts[name] = string(b)
	}
}

// TestBundleMakesNoDirectory: a misspelt path is an error, not a new directory.
func TestBundleMakesNoDirectory(t *testing.T) {
	dir := t.TempDir()
	missing, file := filepath.Join(dir, "none"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for in, say := range map[string]string{
		missing: "the directory " + missing + " does not exist: make it, or give another with --file",
		file:    file + " is no directory",
	} {
		status, out, stderr := ctl(t, "--socket", filepath.Join(dir, "none.sock"), "support-bundle", "--conf-dir", dir, "-f", filepath.Join(in, "x.tgz"))
		if status != exitFailed || out != "" || !strings.Contains(stderr, say) {
			t.Errorf("%d %q %q, want %q", status, out, stderr, say)
		}
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("the directory was made")
	}
}
