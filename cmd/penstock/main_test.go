package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/docs/pages"
)

// TestMain lets the test binary be the plugin.
func TestMain(m *testing.M) {
	if os.Getenv("PLUGIN") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func plugin(t *testing.T, verb string) ([]byte, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = []string{"PLUGIN=1", "CNI_COMMAND=" + verb, "CNI_CONTAINERID=c1", "CNI_NETNS=/proc/self/ns/net", "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin"}
	c.Stdin = strings.NewReader(`{"cniVersion":"1.1.0","name":"penstock","type":"penstock","socket":"/nonexistent/penstock.sock"}`)
	return c.Output()
}

func TestVersion(t *testing.T) {
	out, err := plugin(t, "VERSION")
	var v struct{ SupportedVersions []string }
	if e := json.Unmarshal(out, &v); err != nil || e != nil || strings.Join(v.SupportedVersions, " ") != "0.3.1 0.4.0 1.0.0 1.1.0" {
		t.Errorf("%s: %v, %v", out, err, e)
	}
}

// TestVerbsAreWired: each verb ends in its own error where nothing can be done; package cni has the tests of what they do.
func TestVerbsAreWired(t *testing.T) {
	for verb, code := range map[string]uint{
		"ADD": types.ErrInvalidEnvironmentVariables, "CHECK": types.ErrInvalidNetworkConfig, "STATUS": types.ErrPluginNotAvailable, "GC": types.ErrTryAgainLater,
	} {
		out, err := plugin(t, verb)
		var e types.Error
		if err == nil || json.Unmarshal(out, &e) != nil || e.Code != code || e.Msg == "" {
			t.Errorf("%s: %q, %v", verb, out, err)
		}
	}
}

// TestManual: docs/operations.md has the flags of penstock adopt.
func TestManual(t *testing.T) {
	c := exec.CommandContext(t.Context(), os.Args[0], "adopt", "--help")
	c.Env = []string{"PLUGIN=1"}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	pages.Open(t, "operations.md").Keep("help: penstock adopt", "```console\n# penstock adopt --help\n"+string(out)+"```\n")
}

func TestAbout(t *testing.T) {
	out, err := exec.Command(os.Args[0], "-test.run=^$").CombinedOutput()
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	c := exec.CommandContext(t.Context(), os.Args[0])
	c.Env = []string{"PLUGIN=1"}
	if out, err = c.CombinedOutput(); err != nil || !strings.Contains(string(out), "CNI plugin of penstockd") {
		t.Errorf("called without a verb: %s, %v", out, err)
	}
}
