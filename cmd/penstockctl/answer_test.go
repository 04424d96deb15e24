package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/penstock-net/penstock/forwarder/control"
)

// TestErrorsAsJSON: with -o json an error is one object on standard error with the exit status, wherever on the command line it is
// asked for, and nothing of it is on standard output.
func TestErrorsAsJSON(t *testing.T) {
	f := &fake{}
	socket := serve(t, f)
	dir := t.TempDir()
	for _, test := range []struct {
		args   string
		err    error
		status int
		code   control.Code
		say    string
	}{
		{"-o json nonsense", nil, exitUsage, "usage", "nonsense"},
		{"status --nonsense --output=json", nil, exitUsage, "usage", "nonsense"},
		{"status --nonsense -o json", nil, exitUsage, "usage", "nonsense"},
		{"detach c1 -ojson", nil, exitUsage, "usage", "2 arguments"},
		{"attach c1 eth0 --address x -o json", nil, exitUsage, "usage", "not an IP address"},
		{"--socket " + dir + "/none.sock status -o json", nil, exitUnreachable, "unreachable", "no control socket"},
		{"detach c1 eth0 -o json", control.Errorf(control.Conflict, "in use"), exitFailed, "conflict", "in use"},
		{"peers -o json", errors.New("broken on purpose"), exitFailed, "internal", "broken on purpose"},
		{"reload -o json", control.Errorf(control.InvalidConfig, "line 3"), exitConfig, "invalid_config", "line 3"},
		{"reload -o json", control.Errorf(control.RestartRequired, "workers"), exitConfig, "restart_required", "workers"},
		{"config check -o json " + dir + "/none.yaml", nil, exitFailed, "failed", "none.yaml"},
		{"--socket " + dir + "/none.sock status --wait 1ms -o json", nil, exitUnreachable, "unreachable", "no control socket"},
	} {
		f.err = test.err
		status, out, stderr := ctl(t, append([]string{"--socket", socket}, strings.Fields(test.args)...)...)
		var e struct{ Error failure }
		if err := json.Unmarshal([]byte(stderr), &e); err != nil || strings.Count(stderr, "\n") != 1 || out != "" {
			t.Errorf("%s: %v: %q %q", test.args, err, out, stderr)
			continue
		}
		if status != test.status || e.Error.Status != status || e.Error.Code != test.code || !strings.Contains(e.Error.Message, test.say) {
			t.Errorf("%s: %d %+v, want %d %s %q", test.args, status, e.Error, test.status, test.code, test.say)
		}
	}
	for status, code := range map[int]control.Code{exitFailed: "failed", exitUnreachable: "unreachable", exitWarnings: "warnings", exitNo: "no"} {
		want := failure{status, code, "said"}
		if got := (&tool{began: true}).judge(&verdict{status, "said"}); got != want {
			t.Errorf("a verdict of %d is %+v", status, got)
		}
	}
}

// asJSON calls a command with -o json and takes its answer.
func asJSON[T any](t *testing.T, status int, args ...string) (v T) {
	t.Helper()
	got, out, stderr := ctl(t, append(args, "-o", "json")...)
	if got != status || (stderr == "") != (status == 0) {
		t.Errorf("%s: %d %q", args, got, stderr)
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Errorf("%s: %v: %q", args, err, out)
	}
	return v
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAnswersAsJSON(t *testing.T) {
	p := newPlace(t)
	good, bad := filepath.Join(p.conf, "good"), filepath.Join(p.conf, "bad")
	p.write(good, "node: {podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n")
	p.write(bad, "node: {podCidrs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n")
	same(t, asJSON[checkedConfig](t, 0, "config", "check", good), checkedConfig{good, true, []mistake{}})
	same(t, asJSON[checkedConfig](t, exitConfig, "config", "check", bad),
		checkedConfig{bad, false, []mistake{{bad, 1, 8, "node.podCidrs", "this key is unknown: did you mean podCIDRs?"}}})
	same(t, asJSON[detachedPod](t, 0, "--socket", p.socket, "detach", "c1", "eth0"), detachedPod{"c1", "eth0", true})

	list, plugin := filepath.Join(p.conf, listName), filepath.Join(p.bin, pluginName)
	cni := func(args ...string) []string {
		return append([]string{"--socket", p.socket, "cni", "--bin-dir", p.bin, "--conf-dir", p.conf}, args...)
	}
	first := filepath.Join(p.conf, "01-a.conflist")
	p.write(first, `{"name":"a","plugins":[{"type":"ptp"}]}`)
	same(t, asJSON[cniInstalled](t, 0, cni("install", "--plugin", p.plugin)...), cniInstalled{[]string{plugin, list},
		[]string{first + " comes before " + listName + ", and the runtime takes the first: rename or remove it"}})
	os.Remove(first)
	same(t, asJSON[cniInstalled](t, 0, cni("install", "--plugin", p.plugin)...), cniInstalled{[]string{list}, []string{}})
	// What is done before a failure is told.
	p.pods = []control.Pod{{Container: "c1", Source: control.SourceIPAM}}
	same(t, asJSON[cniRemoved](t, exitFailed, cni("uninstall")...), cniRemoved{[]string{list}, []string{}})
	p.write(plugin, "of a package")
	same(t, asJSON[cniRemoved](t, 0, cni("uninstall")...), cniRemoved{[]string{}, []string{plugin}})
	same(t, asJSON[cniRemoved](t, 0, cni("uninstall")...), cniRemoved{[]string{}, []string{}})
	if listed := asJSON[cniList](t, 0, cni("install", "--print")...); listed["name"] != pluginName {
		t.Errorf("--print: %v", listed)
	}
}
