package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/doctor"
)

func TestDoctorWithoutDaemon(t *testing.T) {
	dir := t.TempDir()
	status, out, stderr := ctl(t, "--socket", filepath.Join(dir, "none.sock"), "doctor", "--config", filepath.Join(dir, "none.yaml"), "--conf-dir", dir)
	if status != exitUnreachable || !strings.Contains(out, "journalctl -u penstockd") || !strings.Contains(stderr, " and ") {
		t.Errorf("%d %q\n%s", status, stderr, out)
	}
	_, brief, _ := ctl(t, "--socket", filepath.Join(dir, "none.sock"), "doctor", "-q", "--config", filepath.Join(dir, "none.yaml"), "--conf-dir", dir)
	if strings.Contains(brief, "\nskipped") || strings.Contains(brief, "\nok") || !strings.Contains(brief, "failure") {
		t.Errorf("-q shows more than findings:\n%s", brief)
	}
	if _, help, _ := ctl(t, "doctor", "--help"); !strings.Contains(help, "duplicate-address") || !strings.Contains(help, "5 only warnings") {
		t.Errorf("help:\n%s", help)
	}
}

func TestJudgement(t *testing.T) {
	report := func(reachable bool, all ...doctor.Result) (r doctor.Report) {
		r.Reachable = reachable
		for _, x := range all {
			r.Checks = append(r.Checks, doctor.Check{Result: x})
		}
		return r
	}
	for _, c := range []struct {
		r      doctor.Report
		status int
	}{
		{report(true), 0}, {report(true, doctor.OK, doctor.Skipped), 0}, {report(true, doctor.Warning), exitWarnings},
		{report(true, doctor.Warning, doctor.Failure), exitFailed}, {report(false, doctor.Failure), exitUnreachable}, {report(false), exitUnreachable},
	} {
		err := judgement(c.r)
		v, ok := err.(*verdict)
		if status := 0; ok && v.status != c.status || !ok && c.status != status {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
}

// TestDoctorReadsCNI: which list is in force, and what in ours does nothing or is refused.
func TestDoctorReadsCNI(t *testing.T) {
	const ours = `{"name":"penstock","plugins":[{"type":"penstock","attach":"veth"}%s]}`
	with := func(more string) string { return strings.Replace(ours, "%s", more, 1) }
	for _, c := range []struct {
		name   string
		files  map[string]string
		result doctor.Result
		say    string
	}{
		{"none", nil, doctor.Skipped, "no CNI list"},
		{"ours", map[string]string{"05-penstock.conflist": with("")}, doctor.OK, "is in force"},
		{"another", map[string]string{"10-x.conflist": `{"name":"x","plugins":[{"type":"bridge"}]}`}, doctor.Skipped, "10-x.conflist is in force"},
		{"another first", map[string]string{"01-x.conflist": `{"name":"x","plugins":[{"type":"bridge"}]}`, "05-penstock.conflist": with("")}, doctor.Warning, "comes before"},
		{"bandwidth", map[string]string{"05-penstock.conflist": with(`,{"type":"bandwidth"}`)}, doctor.Warning, "limits nothing"},
		{"order", map[string]string{"05-penstock.conflist": `{"plugins":[{"type":"bridge"},{"type":"portmap"},{"type":"penstock","attach":"routed"}]}`}, doctor.Warning, "portmap stands before"},
		{"routed alone", map[string]string{"05-penstock.conflist": `{"plugins":[{"type":"penstock","attach":"routed"}]}`}, doctor.Warning, "every ADD is refused"},
		{"veth behind a bridge", map[string]string{"05-penstock.conflist": `{"plugins":[{"type":"bridge"},{"type":"penstock","attach":"veth"}]}`}, doctor.Warning, "every ADD is refused"},
		{"rubbish", map[string]string{"05-penstock.conflist": with(""), "99-x.conf": "{"}, doctor.Warning, "not JSON"},
	} {
		dir := t.TempDir()
		for name, content := range c.files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		found := false
		for _, k := range examineCNI(dir) {
			found = found || k.Result == c.result && strings.Contains(k.Finding, c.say)
			if k.Name != "cni" || k.Result == doctor.Warning && k.Remedy == "" {
				t.Errorf("%s: %+v", c.name, k)
			}
		}
		if !found {
			t.Errorf("%s: %+v, want %s with %q", c.name, examineCNI(dir), c.result, c.say)
		}
	}
}
