package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
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
	c.Env = []string{"PLUGIN=1", "CNI_COMMAND=" + verb, "CNI_CONTAINERID=c1", "CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=1", "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin"}
	c.Stdin = strings.NewReader(`{"cniVersion":"1.1.0","name":"penstock","type":"penstock"}`)
	return c.Output()
}

func TestVersion(t *testing.T) {
	out, err := plugin(t, "VERSION")
	var v struct{ SupportedVersions []string }
	if e := json.Unmarshal(out, &v); err != nil || e != nil || strings.Join(v.SupportedVersions, " ") != "0.3.1 0.4.0 1.0.0 1.1.0" {
		t.Errorf("%s: %v, %v", out, err, e)
	}
}

func TestVerbsEndWithACNIError(t *testing.T) {
	for _, verb := range []string{"ADD", "DEL", "CHECK", "STATUS", "GC"} {
		out, err := plugin(t, verb)
		var e types.Error
		if err == nil || json.Unmarshal(out, &e) != nil || e.Code != types.ErrPluginNotAvailable || e.Msg == "" {
			t.Errorf("%s: %q, %v", verb, out, err)
		}
	}
}
