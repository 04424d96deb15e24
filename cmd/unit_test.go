package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const unitFile = "penstockd/penstockd.service"

// directives of the unit; what is given several times is joined by spaces.
func directives(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(read(t, unitFile)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			all[key] = strings.TrimSpace(all[key] + " " + value)
		}
	}
	return all
}

// analyze gives systemd-analyze the unit with programs that exist on this machine.
func analyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: apt-get install systemd")
	}
	unit := regexp.MustCompile(`(?m)^(Exec\w+=[+-]*)\S+`).ReplaceAllString(read(t, unitFile), "${1}/bin/true")
	path := filepath.Join(t.TempDir(), "penstockd.service")
	if err := os.WriteFile(path, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, append(args, path)...).CombinedOutput()
	if strings.Contains(string(out), "Failed to initialize manager") {
		t.Skipf("systemd-analyze does not work here: %s", out)
	}
	return string(out), err
}

// TestUnitIsValid: systemd has nothing to say against the unit.
func TestUnitIsValid(t *testing.T) {
	if out, err := analyze(t, "verify", "--man=no"); err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestUnitIsTight: systemd's own score of what the unit may still do (0 to 10) stays where it is.
func TestUnitIsTight(t *testing.T) {
	out, err := analyze(t, "security", "--offline=true", "--threshold=35", "--no-pager")
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}

// TestUnitKeepsItsPromises are those of the design and of docs/operations.md, which systemd-analyze cannot know.
func TestUnitKeepsItsPromises(t *testing.T) {
	d := directives(t)
	for key, want := range map[string]string{
		"Type": "notify", "WatchdogSec": "15", "Restart": "always", "RestartSec": "1", "StartLimitIntervalSec": "0", "RuntimeDirectoryPreserve": "yes", "FileDescriptorStoreMax": "4096", "LimitNOFILE": "65536", "LimitNICE": "-19",
		"CapabilityBoundingSet": "CAP_NET_ADMIN CAP_NET_RAW", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "DeviceAllow": "/dev/net/tun rw", "DevicePolicy": "closed",
		"RuntimeDirectory": "penstock", "StateDirectory": "penstock", "ExecStartPost": "+-/opt/cni/bin/penstock adopt",
	} {
		if d[key] != want {
			t.Errorf("%s=%s, want %s", key, d[key], want)
		}
	}
}

// TestDropInForSocket: what docs/operations.md gives for another socket replaces each command of the unit that goes to the daemon by the
// same with that socket.
func TestDropInForSocket(t *testing.T) {
	manual := strings.ReplaceAll(read(t, "../docs/operations.md"), "\n    ", "\n")
	socket := regexp.MustCompile(` -?-socket /\S+\.sock`)
	for _, key := range []string{"ExecReload", "ExecStartPost"} {
		command := key + "=" + directives(t)[key]
		if without := socket.ReplaceAllString(manual, ""); !strings.Contains(without, "\n"+key+"=\n"+command+"\n") || strings.Contains(manual, "\n"+key+"=\n"+command+"\n") {
			t.Errorf("docs/operations.md has no drop-in that empties %s and gives %q with a socket", key, command)
		}
	}
}
