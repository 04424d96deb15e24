package cmd_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// files below a directory, with their modes.
func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			list = append(list, info.Mode().String()+" "+strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func makeTarget(t *testing.T, args ...string) string {
	t.Helper()
	mk, err := exec.LookPath("make")
	if err != nil {
		t.Skip("make is not installed")
	}
	c := exec.CommandContext(t.Context(), mk, append([]string{"-C", "..", "--no-print-directory"}, args...)...)
	c.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestDebianVersions: without a tag they sort by the date of the commit.
func TestDebianVersions(t *testing.T) {
	for version, want := range map[string]string{"v1.2.3": `penstock_1\.2\.3_`, "v1.2.3-4-gabc": `penstock_1\.2\.3\+4\+gabc_`, "f3a26ee-dirty": `penstock_0~(20[0-9]{12}|0)\.f3a26ee\+dirty_`} {
		if out := makeTarget(t, "-n", "deb", "VERSION="+version); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s: no %s in\n%s", version, want, out)
		}
	}
}

// TestOddPaths: what would go to a wrong place, or into the unit in pieces, is refused in one line before anything is made.
func TestOddPaths(t *testing.T) {
	mk, err := exec.LookPath("make")
	if err != nil {
		t.Skip("make is not installed")
	}
	for _, value := range []string{"DESTDIR=/tmp/a b", "PREFIX=/opt/p q", "CNIBIN=/opt/a|b", "PREFIX=/opt/a&b", "CONFDIR=/etc/it's", "UNITDIR=/etc/a%i"} {
		out, err := exec.Command(mk, "-C", "..", "--no-print-directory", "need-paths", value).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "choose other directories") || strings.Count(string(out), "\n") > 2 {
			t.Errorf("%s: %v, %s", value, err, out)
		}
	}
	if out, err := exec.Command(mk, "-C", "..", "need-paths", "DESTDIR=/tmp/ünd_a-b.c~d+e").CombinedOutput(); err != nil {
		t.Errorf("%v, %s", err, out)
	}
	if out, err := exec.Command(mk, "-C", "..", "-n", "install", "DESTDIR=/tmp/ab").CombinedOutput(); err != nil || !strings.Contains(string(out), "PATHS_ASKED") {
		t.Errorf("make install does not ask: %v, %s", err, out)
	}
}

// TestInstall: everything is where it belongs and works from there, and make uninstall takes exactly that away again: what else lies
// in the same directories stays.
func TestInstall(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the programs: not with -short")
	}
	dir := t.TempDir()
	where := []string{"DESTDIR=" + dir, "PREFIX=/opt/p", "CNIBIN=/opt/cni", "UNITDIR=/lib/systemd/system", "CONFDIR=/etc/pen"}
	var foreign []string
	for _, f := range []string{"etc/pen/penstock.yaml", "opt/p/bin/penstock-other", "opt/p/share/man/man1/penstockctl-mine.1", "opt/cni/bridge"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), []byte("not ours\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		foreign = append(foreign, "-rw------- /"+f)
	}
	slices.Sort(foreign)

	makeTarget(t, append([]string{"install"}, where...)...)
	got := files(t, dir)
	for _, want := range append([]string{
		"-rwxr-xr-x /opt/p/sbin/penstockd", "-rwxr-xr-x /opt/p/bin/penstockctl", "-rwxr-xr-x /opt/cni/penstock",
		"-rw-r--r-- /lib/systemd/system/penstockd.service", "-rw-r--r-- /etc/pen/penstock.yaml.example",
		"-rw-r--r-- /opt/p/share/bash-completion/completions/penstockctl", "-rw-r--r-- /opt/p/share/zsh/site-functions/_penstockctl",
		"-rw-r--r-- /opt/p/share/fish/vendor_completions.d/penstockctl.fish",
		"-rw-r--r-- /opt/p/share/man/man1/penstockctl.1", "-rw-r--r-- /opt/p/share/man/man1/penstockctl-config-check.1",
		"-rw-r--r-- /opt/p/share/man/man8/penstockd.8", "-rw-r--r-- /opt/p/share/man/man8/penstock.8", "-rw-r--r-- /opt/p/share/man/man5/penstock.yaml.5",
		"-rw-r--r-- /opt/p/share/doc/penstock/alerts.yaml", "-rw-r--r-- /opt/p/share/doc/penstock/LICENSE",
	}, foreign...) {
		if !slices.Contains(got, want) {
			t.Errorf("not installed: %s", want)
		}
	}
	unit := read(t, filepath.Join(dir, "lib/systemd/system/penstockd.service"))
	for _, want := range []string{"ExecStart=/opt/p/sbin/penstockd --config /etc/pen/penstock.yaml\n", "ExecReload=/opt/p/bin/penstockctl ", "ExecStartPost=+-/opt/cni/penstock adopt\n"} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit has no %q", want)
		}
	}
	out, err := exec.Command(filepath.Join(dir, "opt/p/sbin/penstockd"), "--version").Output()
	if err != nil || !strings.HasPrefix(string(out), "penstockd ") || strings.TrimSpace(string(out)) == "penstockd dev" {
		t.Errorf("%q, %v", out, err)
	}
	manPages(t, filepath.Join(dir, "opt/p/share/man"))

	makeTarget(t, append([]string{"uninstall"}, where...)...)
	if left := files(t, dir); !slices.Equal(left, foreign) {
		t.Errorf("after uninstall there is\n%s\nwant\n%s", strings.Join(left, "\n"), strings.Join(foreign, "\n"))
	}
	os.Remove(filepath.Join(dir, "etc/pen/penstock.yaml"))
	makeTarget(t, append([]string{"install"}, where...)...)
	makeTarget(t, append([]string{"uninstall"}, where...)...)
	if _, err := os.Stat(filepath.Join(dir, "etc/pen")); err == nil {
		t.Error("the empty configuration directory is left")
	}
}

// manPages: man takes each page without a warning, and they say what the programs say.
func manPages(t *testing.T, dir string) {
	t.Helper()
	if program, err := exec.LookPath("man"); err == nil {
		for _, page := range []string{"man1/penstockctl.1", "man1/penstockctl-config-check.1", "man5/penstock.yaml.5", "man8/penstockd.8", "man8/penstock.8"} {
			c := exec.Command(program, "--warnings", "-l", filepath.Join(dir, page))
			c.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=200", "MAN_KEEP_FORMATTING=")
			var complaints strings.Builder
			c.Stderr = &complaints
			if _, err := c.Output(); err != nil && !strings.Contains(complaints.String(), "not found") {
				t.Errorf("man %s: %v: %s", page, err, &complaints)
			}
			if s := complaints.String(); strings.Contains(s, "warning") {
				t.Errorf("man %s: %s", page, s)
			}
		}
	}
	for page, want := range map[string]string{
		"man1/penstockctl-config-check.1": "not at the machine", "man5/penstock.yaml.5": "podCIDRs: [10.244.1.0/24]", "man8/penstockd.8": `\-cleanup`, "man8/penstock.8": `\-socket`,
	} {
		if !strings.Contains(read(t, filepath.Join(dir, page)), want) {
			t.Errorf("%s does not have %q", page, want)
		}
	}
}

// TestDebianPackage: dpkg installs it into a directory of its own, removes it, and after purge nothing is left, the configuration
// and the state that came meanwhile included.
func TestDebianPackage(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the programs: not with -short")
	}
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Skip("dpkg is not installed")
	}
	if os.Getuid() != 0 {
		t.Skip("dpkg installs as root only")
	}
	out := makeTarget(t, "deb")
	deb := filepath.Join("..", strings.TrimPrefix(strings.TrimSpace(out[strings.LastIndex(out, "==>"):]), "==> "))
	defer os.Remove(deb)
	root := t.TempDir()
	for _, d := range []string{"info", "updates", "triggers"} {
		if err := os.MkdirAll(filepath.Join(root, "var/lib/dpkg", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"status", "available"} {
		if err := os.WriteFile(filepath.Join(root, "var/lib/dpkg", f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) {
		t.Helper()
		c := exec.Command(dpkg, append([]string{"--root=" + root, "--force-script-chrootless", "--log=/dev/null"}, args...)...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("dpkg %s: %v\n%s", args, err, out)
		}
	}
	run("-i", deb)
	for _, f := range []string{"usr/sbin/penstockd", "usr/bin/penstockctl", "opt/cni/bin/penstock", "lib/systemd/system/penstockd.service", "etc/penstock/penstock.yaml.example",
		"usr/share/man/man8/penstockd.8.gz", "usr/share/bash-completion/completions/penstockctl", "usr/share/zsh/vendor-completions/_penstockctl", "usr/share/doc/penstock/copyright"} {
		if _, err := os.Stat(filepath.Join(root, f)); err != nil {
			t.Error(err)
		}
	}
	if unit := read(t, filepath.Join(root, "lib/systemd/system/penstockd.service")); !strings.Contains(unit, "ExecStart=/usr/sbin/penstockd --config /etc/penstock/penstock.yaml\n") {
		t.Errorf("the unit starts something else:\n%s", unit)
	}
	for _, f := range []string{"etc/penstock/penstock.yaml", "var/lib/penstock/pods/x.json"} {
		os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755)
		if err := os.WriteFile(filepath.Join(root, f), []byte("x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lists := filepath.Join(root, "etc/cni/net.d")
	if err := os.MkdirAll(lists, 0o755); err != nil {
		t.Fatal(err)
	}
	// As penstockctl cni install leaves it, which needs a daemon.
	sum := sha256.Sum256([]byte("{}\n"))
	for name, content := range map[string]string{"05-penstock.conflist": "{}\n", "penstock.installed": `{"list":"` + hex.EncodeToString(sum[:]) + `"}`} {
		if err := os.WriteFile(filepath.Join(lists, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run("-i", deb) // an upgrade
	if len(files(t, lists)) == 0 {
		t.Error("an upgrade took the CNI list away")
	}
	run("-r", "penstock")
	if left := files(t, lists); len(left) > 0 {
		t.Errorf("the runtime is left with a list without its plugin: %v", left)
	}
	if _, err := os.Stat(filepath.Join(root, "etc/penstock/penstock.yaml")); err != nil {
		t.Errorf("the configuration went with remove: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/penstockd")); err == nil {
		t.Error("the daemon is left after remove")
	}
	run("-P", "penstock")
	for _, f := range files(t, root) {
		if !strings.Contains(f, "/var/lib/dpkg/") {
			t.Errorf("left after purge: %s", f)
		}
	}
}
