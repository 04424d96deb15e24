package e2e

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestDoctorBundle: a support bundle of a running daemon holds every part, and lacks none.
func TestDoctorBundle(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Start(t)
	n := l.Nodes[0]
	pod := n.AddPod(t, lab.Veth)
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	out, status, err := n.Ctl("support-bundle", "-f", file, "--conf-dir", t.TempDir())
	if err != nil || status != 0 {
		t.Fatalf("%d %v\n%s", status, err, out)
	}
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
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		parts[h.Name[strings.Index(h.Name, "/")+1:]] = string(b)
	}
	for name, holds := range map[string]string{
		"status.json": `"ready": true`, "peers.json": "node-b", "pods.json": pod.Container, "ports.json": pod.HostDevice, "ipam.json": "10.244.1.0/24", "routes.json": "10.244.2.0/24",
		"drops.json": "[", "metrics.txt": "penstock_build_info", "goroutines.txt": "goroutine 1", "heap.pb.gz": "\x1f\x8b", "cpu.pb.gz": "\x1f\x8b", "doctor.json": "peer node-b",
		"penstock.yaml": "node-a", "nft.txt": "table inet penstock chain prerouting", "links.json": "penstock0", "addresses.json": "10.244.1.0/32", "ip-routes.json": "10.244.0.0/16",
		"neighbours.json": "", "sysctls.txt": "net/ipv4/ip_forward = 1", "version.txt": "penstockctl", "process.txt": "CapEff", "cni.json": "{}",
	} {
		if text, ok := parts[name]; !ok || !strings.Contains(text, holds) {
			t.Errorf("%s (there: %v) lacks %q:\n%.300s", name, ok, holds, text)
		}
	}
	if text, ok := parts["errors.txt"]; ok {
		t.Errorf("errors.txt: %s", text)
	}
}
