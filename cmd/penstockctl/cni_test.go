package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/forwarder/control"
)

// cniPlace is two directories, a plugin to install, and a pretended daemon.
type cniPlace struct {
	t                         *testing.T
	socket, bin, conf, plugin string
	status                    control.Status
	pods                      []control.Pod
}

func newPlace(t *testing.T) *cniPlace {
	dir := t.TempDir()
	p := &cniPlace{t: t, socket: filepath.Join(dir, "p.sock"), bin: filepath.Join(dir, "bin"), conf: filepath.Join(dir, "net.d"), plugin: filepath.Join(dir, "built")}
	p.status.Ready = true
	p.write(p.plugin, "#!/bin/true")
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any = p.status
		if r.URL.Path == "/v1/pods" {
			answer = map[string]any{"pods": p.pods}
		}
		json.NewEncoder(w).Encode(answer)
	})}}
	s.Start()
	t.Cleanup(s.Close)
	return p
}

func (p *cniPlace) write(path, content string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *cniPlace) run(args ...string) (int, string) {
	var out bytes.Buffer
	code := run(context.Background(), append([]string{"--socket", p.socket, "cni", "--bin-dir", p.bin, "--conf-dir", p.conf}, args...), &out, &out)
	return code, out.String()
}

func (p *cniPlace) installed() (list string, plugin bool) {
	b, _ := os.ReadFile(filepath.Join(p.conf, listName))
	_, err := os.Stat(filepath.Join(p.bin, pluginName))
	left, _ := filepath.Glob(filepath.Join(p.conf, ".penstock-*"))
	more, _ := filepath.Glob(filepath.Join(p.bin, ".penstock-*"))
	if len(left)+len(more) > 0 {
		p.t.Errorf("temporary files are left: %v %v", left, more)
	}
	return string(b), err == nil
}

func TestCNIInstall(t *testing.T) {
	p := newPlace(t)
	p.write(filepath.Join(p.bin, "portmap"), "")
	code, out := p.run("install", "--plugin", p.plugin)
	list, plugin := p.installed()
	if code != 0 || !plugin || strings.Contains(out, "warning") {
		t.Fatalf("%d %s", code, out)
	}
	for _, want := range []string{`"attach": "veth"`, p.socket, `"bandwidth": true`, `"portmap"`, `"1.1.0"`} {
		if !strings.Contains(list, want) {
			t.Errorf("the list has no %s:\n%s", want, list)
		}
	}
	if fi, _ := os.Stat(filepath.Join(p.bin, pluginName)); fi.Mode().Perm() != 0o755 {
		t.Errorf("the plugin's mode is %v", fi.Mode())
	}
	code, printed := p.run("install", "--print")
	if code != 0 || printed != list {
		t.Errorf("--print: %d %s", code, printed)
	}
	for _, attach := range []string{"routed", "x"} {
		if code, out := p.run("install", "--attach", attach); code == 0 {
			t.Errorf("--attach %s: %s", attach, out)
		}
	}
	p.pods = []control.Pod{{Container: "c1", Source: control.SourceIPAM}, {Container: "c2", Source: control.SourceManual}}
	if code, out := p.run("uninstall"); code == 0 || !strings.Contains(out, "1 pods are still attached") {
		t.Errorf("%d %s", code, out)
	}
	if list, plugin = p.installed(); list != "" || !plugin {
		t.Errorf("with pods: list %q, plugin %v", list, plugin)
	}
	p.pods = p.pods[1:]
	for range 2 {
		if code, out := p.run("uninstall"); code != 0 {
			t.Errorf("%d %s", code, out)
		}
	}
	if _, plugin = p.installed(); plugin {
		t.Error("the plugin is left")
	}
}

// TestCNIInstallNotReady: nothing is written before the daemon is ready, or where it cannot be asked.
func TestCNIInstallNotReady(t *testing.T) {
	p := newPlace(t)
	p.status = control.Status{Reason: "2 pods wait for adopt"}
	code, out := p.run("install", "--plugin", p.plugin)
	if code == 0 || !strings.Contains(out, "2 pods wait for adopt") {
		t.Errorf("%d %s", code, out)
	}
	p.socket = filepath.Join(t.TempDir(), "none")
	if code, _ := p.run("install", "--plugin", p.plugin); code != exitUnreachable {
		t.Errorf("%d", code)
	}
	if list, plugin := p.installed(); list != "" || plugin {
		t.Errorf("written: %q, %v", list, plugin)
	}
	p = newPlace(t)
	p.run("install", "--plugin", p.plugin)
	p.socket = filepath.Join(t.TempDir(), "none")
	if code, _ := p.run("uninstall"); code != exitUnreachable {
		t.Errorf("uninstall without a daemon: %d", code)
	}
	if code, out := p.run("uninstall", "--force"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	p.empty()
}

// empty checks that nothing at all is in either directory.
func (p *cniPlace) empty(but ...string) {
	p.t.Helper()
	for _, dir := range []string{p.bin, p.conf} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !slices.Contains(but, e.Name()) {
				p.t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
}

// TestCNIUninstallTakesItsOwn: a plugin that was there, a list of somebody else's and one that was changed stay.
func TestCNIUninstallTakesItsOwn(t *testing.T) {
	p := newPlace(t)
	list, plugin := filepath.Join(p.conf, listName), filepath.Join(p.bin, pluginName)
	// The plugin of a package is used and stays.
	p.write(plugin, "#!/bin/true")
	if code, out := p.run("install", "--plugin", p.plugin); code != 0 || strings.Contains(out, "wrote "+plugin) {
		t.Errorf("%d %s", code, out)
	}
	if code, out := p.run("uninstall"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	p.empty(pluginName)
	// Somebody's list of our name is not written over, and not removed.
	p.write(list, `{"name":"mine","plugins":[{"type":"penstock"}]}`)
	if code, out := p.run("install", "--plugin", p.plugin); code == 0 || !strings.Contains(out, "was not written by cni install") {
		t.Errorf("%d %s", code, out)
	}
	if code, out := p.run("uninstall"); code != 0 || !strings.Contains(out, "has written nothing") {
		t.Errorf("%d %s", code, out)
	}
	if got, _ := p.installed(); !strings.Contains(got, "mine") {
		t.Errorf("somebody's list is now %s", got)
	}
	if code, out := p.run("install", "--plugin", p.plugin, "--force"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	// Ours, changed by hand.
	p.write(list, `{"name":"changed","plugins":[{"type":"penstock"}]}`)
	if code, out := p.run("uninstall"); code == 0 || !strings.Contains(out, "was changed") {
		t.Errorf("%d %s", code, out)
	}
	if code, out := p.run("uninstall", "--force"); code != 0 {
		t.Errorf("%d %s", code, out)
	}
	p.empty(pluginName)
	// A newer plugin replaces the old one and is ours; what replaces ours is not.
	p.write(plugin, "old")
	if code, out := p.run("install", "--plugin", p.plugin); code != 0 || !strings.Contains(out, "wrote "+plugin) {
		t.Errorf("%d %s", code, out)
	}
	p.write(plugin, "of a package")
	if code, out := p.run("uninstall"); code != 0 || !strings.Contains(out, "stays") {
		t.Errorf("%d %s", code, out)
	}
	p.empty(pluginName)
}

func TestCNIChained(t *testing.T) {
	p := newPlace(t)
	if code, out := p.run("install", "--chained", "--plugin", p.plugin); code == 0 || !strings.Contains(out, "no CNI list") {
		t.Errorf("%d %s", code, out)
	}
	p.write(filepath.Join(p.conf, "10-net.conflist"), `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}`)
	for _, how := range []string{"--plugin=" + p.plugin, "--print"} {
		if code, out := p.run("install", "--chained", how); code == 0 || !strings.Contains(out, `10-net.conflist: the bridge lacks "isGateway"`) {
			t.Errorf("%s: %d %s", how, code, out)
		}
	}
	if code, out := p.run("install", "--chained", "--print", "--force"); code != 0 || !strings.Contains(out, "penstock") {
		t.Errorf("%d %s", code, out)
	}
	p.write(filepath.Join(p.conf, "10-net.conflist"), `{"cniVersion":"1.0.0","name":"net","x":1,"plugins":[{"type":"bridge","isGateway":true,"mtu":1450},{"type":"portmap"},{"type":"bandwidth"}]}`)
	if code, out := p.run("install", "--chained", "--plugin", p.plugin); code != 0 || strings.Contains(out, "warning") {
		t.Fatalf("%d %s", code, out)
	}
	var l cniList
	list, _ := p.installed()
	if err := json.Unmarshal([]byte(list), &l); err != nil {
		t.Fatal(err)
	}
	var types []any
	for _, x := range l.plugins() {
		types = append(types, x["type"])
	}
	if len(types) != 4 || types[0] != "bridge" || types[1] != "penstock" || types[2] != "portmap" || l["x"] != 1.0 || l["name"] != "net" || l.plugins()[1]["attach"] != "routed" || l.plugins()[1]["capabilities"] != nil {
		t.Errorf("%s", list)
	}
	if code, out := p.run("install", "--chained", "--plugin", p.plugin); code != 0 { // again: not behind ourselves
		t.Errorf("%d %s", code, out)
	}
	if again, _ := p.installed(); again != list {
		t.Errorf("a second time: %s", again)
	}
	os.Remove(filepath.Join(p.conf, "10-net.conflist"))
	p.write(filepath.Join(p.conf, "20-one.conf"), `{"cniVersion":"0.4.0","name":"one","type":"ptp","mtu":1400}`)
	if code, printed := p.run("install", "--chained", "--print"); code != 0 || !strings.Contains(printed, `"mtu": 1400`) || !strings.Contains(printed, `"name": "one"`) {
		t.Errorf("%d %s", code, printed)
	}
	p.write(filepath.Join(p.conf, "20-one.conf"), `{"cniVersion":"0.4.0","name":"one","type":"macvlan"}`)
	if code, out := p.run("install", "--chained", "--print"); code == 0 || !strings.Contains(out, "bridge and ptp only") {
		t.Errorf("%d %s", code, out)
	}
}

func TestCNIWarnings(t *testing.T) {
	p := newPlace(t)
	p.write(filepath.Join(p.conf, "01-a.conflist"), `{"name":"a","plugins":[{"type":"penstock","attach":"tun"},{"type":"bandwidth"}]}`)
	p.write(filepath.Join(p.conf, "02-b.conflist"), `{"name":"b","plugins":[{"type":"penstock"},{"type":"bandwidth"}]}`)
	p.write(filepath.Join(p.conf, "03-c.conflist"), `{"name":"c","plugins":[{"type":"bridge"},{"type":"penstock"},{"type":"bandwidth"}]}`)
	p.write(filepath.Join(p.conf, "04-d.conflist"), `{"name":"d","plugins":[{"type":"bridge","isDefaultGateway":true},{"type":"penstock","mtu":1400}]}`)
	p.write(filepath.Join(p.conf, "05-e.conflist"), `{"name":"e","plugins":[{"type":"bridge"},{"type":"portmap"}]}`)
	code, out := p.run("install", "--plugin", p.plugin)
	if code != 0 || strings.Count(out, "warning") != 5 || !strings.Contains(out, `03-c.conflist: the bridge lacks "isGateway"`) || !strings.Contains(out, `03-c.conflist: neither the bridge nor penstock has an "mtu"`) || !strings.Contains(out, "01-a.conflist comes before") ||
		!strings.Contains(out, "behind attach tun") || !strings.Contains(out, "02-b.conflist: the plugin bandwidth limits nothing behind attach veth") {
		t.Errorf("%d %s", code, out)
	}
}
