package main

import (
	"cmp"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/penstock-net/penstock/docs/pages"
	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/doctor"
)

// newRoot is penstockctl with all its commands and flags, also those that cobra adds when one is called.
func newRoot() *cobra.Command {
	root := (&tool{out: io.Discard, errs: io.Discard}).root()
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	mendCobra(root)
	everyCommand(root, func(c *cobra.Command) { c.InitDefaultHelpFlag() })
	return root
}

func everyCommand(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, sub := range c.Commands() {
		everyCommand(sub, fn)
	}
}

// TestManualCommands: docs/commands.md has every command and every flag, and none besides.
func TestManualCommands(t *testing.T) {
	table := pages.NewTable("command or flag", "what it does")
	flag := func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := "`--" + f.Name + "`"
		if kind != "" {
			name = "`--" + f.Name + " " + strings.ToUpper(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(kind, "16"), "u"), "s")) + "`"
		}
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
			usage += " (default " + f.DefValue + ")"
		}
		if _, ok := f.Annotations[cobra.BashCompOneRequiredFlag]; ok {
			usage += " (must be given)"
		}
		table.Row("· "+name, usage)
	}
	everyCommand(newRoot(), func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s does not say what it does", c.CommandPath())
		}
		use := strings.TrimSuffix(c.CommandPath(), c.Name()) + strings.TrimSuffix(c.Use, " [flags]")
		table.Row("**`"+cmp.Or(strings.TrimPrefix(use, "penstockctl "), use)+"`**", c.Short)
		c.PersistentFlags().VisitAll(flag)
		c.LocalNonPersistentFlags().VisitAll(flag)
	})
	pages.Open(t, "commands.md").Keep("commands", table.String())
}

// answers are what commands print with -o json.
var answers = map[string]any{
	"status": control.Status{}, "pods": []control.Pod{}, "ipam": control.IPAM{}, "ports": []control.Port{}, "peers": []control.Peer{},
	"routes": []control.Route{}, "fdb": []control.FDBEntry{}, "drops": []control.Drop{}, "trace": control.Trace{}, "doctor": doctor.Report{},
	"bench": control.Bench{}, "reload": control.Reloaded{}, "loglevel": control.LogLevel{}, "attach": control.Port{},
	"top": topPicture{}, "capture": capturedLine{}, "version": versionPair{}, "support-bundle": bundleMade{}, "detach": detachedPod{},
	"config check": checkedConfig{}, "config example": exampleConfig{}, "cni install": cniInstalled{}, "cni uninstall": cniRemoved{},
}

// keys of what a type is as JSON.
func keys(of reflect.Type) (all []string) {
	for of.Kind() == reflect.Slice || of.Kind() == reflect.Pointer {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct {
		return nil
	}
	for i := range of.NumField() {
		name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
		switch {
		case of.Field(i).Anonymous && name == "":
			all = append(all, keys(of.Field(i).Type)...)
		case name != "-" && of.Field(i).IsExported():
			all = append(all, cmp.Or(name, of.Field(i).Name))
		}
	}
	return all
}

// TestManualJSON: docs/commands.md has the keys of every command's JSON, and what is printed has no other.
func TestManualJSON(t *testing.T) {
	table := pages.NewTable("command", "keys")
	everyCommand(newRoot(), func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), "penstockctl ")
		answer, ok := answers[path]
		if !ok {
			// help and completions are text for people and shells, man writes files.
			if !c.HasSubCommands() && !slices.Contains([]string{"help", "man"}, path) && !strings.HasPrefix(path, "completion") {
				t.Errorf("%s has no answer with -o json", path)
			}
			return
		}
		list := "`" + strings.Join(keys(reflect.TypeOf(answer)), "`, `") + "`"
		if reflect.TypeOf(answer).Kind() == reflect.Slice {
			list = "`" + c.Name() + "`, a list of objects: " + list
		}
		table.Row("`"+path+"`", list)
	})
	pages.Open(t, "commands.md").Keep("json", table.String())

	wrong := filepath.Join(t.TempDir(), "wrong.yaml")
	if err := os.WriteFile(wrong, []byte("encap: {type: gre}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	place := func() string {
		dir := t.TempDir()
		return " --bin-dir " + dir + "/bin --conf-dir " + dir + "/net.d --plugin " + wrong // any file does
	}
	socket := serve(t, &fake{level: "info"})
	for name, answer := range answers {
		args := map[string]string{"trace": "trace 10.244.1.2 10.244.2.2", "bench": "bench node-b", "attach": "attach c1 eth0 --address 10.244.1.2", "detach": "detach c1 eth0"}[name]
		switch name {
		case "doctor":
			args = "doctor --conf-dir " + t.TempDir()
		case "support-bundle":
			args = "support-bundle --conf-dir " + t.TempDir() + " -f " + filepath.Join(t.TempDir(), "b.tar.gz")
		case "config check":
			args = "config check " + wrong
		case "cni install":
			args = "cni install" + place()
		case "cni uninstall":
			at := place()
			if status, _, stderr := ctl(t, append([]string{"--socket", socket}, strings.Fields("cni install"+at)...)...); status != 0 {
				t.Fatal(stderr)
			}
			args = "cni uninstall" + at[:strings.Index(at, " --plugin")]
		case "top":
			args = "top -n 1 -d 100ms"
		case "capture":
			continue // what it prints is encoded from that type alone
		}
		_, out, stderr := ctl(t, append([]string{"--socket", socket, "-o", "json"}, strings.Fields(cmp.Or(args, name))...)...)
		var top map[string]json.RawMessage
		if err := json.Unmarshal([]byte(out), &top); err != nil {
			t.Errorf("%s: %v: %q %q", name, err, out, stderr)
			continue
		}
		if reflect.TypeOf(answer).Kind() == reflect.Slice {
			var list []map[string]json.RawMessage
			if err := json.Unmarshal(top[name], &list); err != nil || len(top) != 1 || len(list) == 0 {
				t.Errorf("%s: %v: %q", name, err, out)
				continue
			}
			top = list[0]
		}
		for k := range top {
			if !slices.Contains(keys(reflect.TypeOf(answer)), k) {
				t.Errorf("%s prints the key %s, which %T does not have", name, k, answer)
			}
		}
	}
}

// TestManualShowsOutput: docs/penstockctl.md shows real output of every command (bench/e2e holds it to that), each typed as the
// command wants it.
func TestManualShowsOutput(t *testing.T) {
	root, page, shown := newRoot(), pages.Open(t, "penstockctl.md"), map[string]bool{}
	for _, key := range page.Keys("out") {
		line, _, _ := strings.Cut(strings.TrimPrefix(page.Block(key), "```console\n"), "\n")
		_, typed, ok := strings.Cut(line, "# penstockctl ")
		c, _, err := root.Find(strings.Fields(typed))
		if !ok || err != nil {
			t.Errorf("%s begins with %q, which calls no command", key, line)
			continue
		}
		shown[c.CommandPath()] = true
	}
	pages.Open(t, "operations.md").Keep("example", "```yaml\n"+string(config.Example)+"```\n")
	shown["penstockctl config example"] = true
	everyCommand(root, func(c *cobra.Command) {
		switch {
		case c.HasSubCommands() || c.Name() == "help": // what they print is help
		case c.Hidden || c.Parent().Name() == "completion": // what they print is for programs
		case !shown[c.CommandPath()]:
			t.Errorf("docs/penstockctl.md shows no output of %s", c.CommandPath())
		}
	})
}

// calls are the command lines of penstockctl in a page: in code, up to what is no part of them.
var calls = regexp.MustCompile("(?:^|[`# (])penstockctl( [^`|#→…&\n]*)")

// TestPagesCallWhatIsThere: no page calls a command, or gives a flag, that penstockctl does not have.
func TestPagesCallWhatIsThere(t *testing.T) {
	top := pages.Root(t)
	files, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, path := range append(files, filepath.Join(top, "README.md"), filepath.Join(top, "SECURITY.md")) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			for _, m := range calls.FindAllStringSubmatch(line, -1) {
				inCode := strings.Contains(line, "`penstockctl"+m[1]) || strings.HasPrefix(line, "    penstockctl") || strings.Contains(line, "# penstockctl")
				if !inCode {
					continue
				}
				typed, _, _ := strings.Cut(strings.TrimSpace(m[1]), "  ")
				words := strings.Fields(strings.NewReplacer("[", "", "]", "").Replace(typed))
				if len(words) == 0 {
					continue
				}
				seen++
				c, rest, err := newRoot().Find(words)
				if err == nil {
					err = c.ParseFlags(rest)
				}
				if words := c.Flags().Args(); err != nil || c.HasSubCommands() && len(words) > 0 && words[0] != strings.ToUpper(words[0]) { // COMMAND stands for any
					t.Errorf("%s: penstockctl %s: %v", filepath.Base(path), typed, err)
				}
			}
		}
	}
	if seen < 60 {
		t.Errorf("only %d command lines: the pages are not read as they are written", seen)
	}
}
