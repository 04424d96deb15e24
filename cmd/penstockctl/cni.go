package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

// cniFiles is where the container runtime looks for plugins and lists, and what is put there.
type cniFiles struct {
	binDir, confDir string
	plugin          string // the program to install; empty: found
	attach          string
	chained, force  bool
	print           bool
}

const (
	pluginName = "penstock"             // the file's name is the CNI type
	listName   = "05-penstock.conflist" // a runtime takes the first list by name
)

// cniList and cniPlugin keep the keys that they do not know.
type (
	cniList   map[string]any
	cniPlugin = map[string]any
)

func (l cniList) plugins() (all []cniPlugin) {
	list, _ := l["plugins"].([]any)
	for _, p := range list {
		if m, ok := p.(cniPlugin); ok {
			all = append(all, m)
		}
	}
	return all
}

func (t *tool) cni() *cobra.Command {
	f := &cniFiles{}
	c := group(&cobra.Command{Use: "cni", Short: "Install or remove the CNI plugin"})
	c.PersistentFlags().StringVar(&f.binDir, "bin-dir", "/opt/cni/bin", "where the runtime looks for plugins")
	c.PersistentFlags().StringVar(&f.confDir, "conf-dir", "/etc/cni/net.d", "where the runtime looks for CNI lists")
	install := &cobra.Command{
		Use:   "install",
		Short: "Write the plugin and a CNI list; from then on the runtime makes its pods with Penstock",
		Long: `Write the plugin and a CNI list; from then on the runtime makes its pods with Penstock.

It is done only when the daemon is ready, and each file appears whole or not at all. The list is ` + listName + `, which comes
before others. With --chained it is the list that the runtime uses now, with penstock behind its first plugin (a bridge or
ptp); the old list stays where it is and is in force again after uninstall. What was written is noted in ` + recordName + `
beside the list, so that uninstall takes away that and nothing else.`,
		Args: takes(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			switch routed := f.attach == control.AttachRouted; {
			case f.chained && c.Flags().Changed("attach") && !routed:
				return misused("--attach %s does not go with --chained, which attaches pods routed: leave one of them out", f.attach)
			case !f.chained && routed:
				return misused("--attach routed is for pods behind another plugin: give --chained instead")
			case !routed:
				if err := oneOf("--attach", f.attach, control.AttachVeth, control.AttachTUN); err != nil {
					return err
				}
			}
			did := cniInstalled{[]string{}, []string{}}
			err := t.cniInstall(c, f, &did)
			if t.output == "json" && !f.print && (err == nil || len(did.Wrote) > 0) {
				return errors.Join(t.json(did), err)
			}
			return err
		},
	}
	install.Flags().StringVar(&f.attach, "attach", control.AttachVeth, "how pods are attached: veth or tun")
	install.Flags().BoolVar(&f.chained, "chained", false, "chain penstock behind the plugin that makes pods now")
	install.Flags().BoolVar(&f.print, "print", false, "print the list, and write nothing")
	install.Flags().StringVar(&f.plugin, "plugin", "", "the plugin's program (default: penstock beside this program)")
	install.Flags().BoolVar(&f.force, "force", false, "write over a list of that name that install has not written, or that was changed since; chain behind a bridge that is no gateway")
	uninstall := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove what install has written: the CNI list, and the plugin when no pod needs it any more",
		Args:  takes(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			did := cniRemoved{[]string{}, []string{}}
			err := t.cniUninstall(c, f, &did)
			if t.output == "json" && (err == nil || len(did.Removed) > 0) {
				return errors.Join(t.json(did), err)
			}
			return err
		},
	}
	uninstall.Flags().BoolVar(&f.force, "force", false, "remove the plugin though pods are there, or the daemon cannot be asked")
	c.AddCommand(install, uninstall)
	return c
}

// say prints what was done, at once; with -o json one answer has it all at the end.
func (t *tool) say(format string, a ...any) {
	if t.output != "json" {
		fmt.Fprintf(t.out, format+"\n", a...)
	}
}

// cniInstall notes in did what it has done, also if it then fails.
func (t *tool) cniInstall(c *cobra.Command, f *cniFiles, did *cniInstalled) error {
	list, err := f.list(t.socket)
	if err != nil {
		return err
	}
	content, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	content = append(content, '\n')
	if f.print {
		_, err := t.out.Write(content)
		return err
	}
	program, err := f.program()
	if err != nil {
		return err
	}
	err = t.daemon(c, func(ctx context.Context, client *control.Client) error {
		s, err := client.Status(ctx)
		if err == nil && !s.Ready {
			err = control.Errorf(control.NotReady, "penstockd is not ready, nothing is installed: %s", s.Reason)
		}
		return err
	})
	if err != nil {
		return err
	}
	plugin, err := os.ReadFile(program)
	if err != nil {
		return fmt.Errorf("the plugin cannot be read: %w", err)
	}
	target, path := filepath.Join(f.binDir, pluginName), filepath.Join(f.confDir, listName)
	written, err := f.readRecord()
	if err != nil {
		return err
	}
	if sum := sumOf(path); sum != "" && sum != digest(content) && sum != written.List && !f.force {
		return fmt.Errorf("%s was not written by cni install, or was changed since: move it away, or write over it with --force", path)
	}
	// Noted before it is done. A plugin that is there already, of a package or of make install, is not ours to remove.
	was := sumOf(target)
	if was != digest(plugin) {
		written.Plugin = digest(plugin)
	}
	written.List = digest(content)
	if err := f.writeRecord(written); err != nil {
		return err
	}
	if was != digest(plugin) {
		if err := writeInto(target, bytes.NewReader(plugin), 0o755); err != nil {
			return err
		}
		did.Wrote = append(did.Wrote, target)
		t.say("wrote %s", target)
	}
	// The plugin is there before a list names it.
	if err := writeInto(path, bytes.NewReader(content), 0o600); err != nil {
		return err
	}
	did.Wrote = append(did.Wrote, path)
	t.say("wrote %s", path)
	for _, w := range f.warnings() {
		did.Warnings = append(did.Warnings, w)
		t.say("warning: %s", w)
	}
	return nil
}

// cniUninstall notes in did what it has done, also if it then fails.
func (t *tool) cniUninstall(c *cobra.Command, f *cniFiles, did *cniRemoved) error {
	written, err := f.readRecord()
	if err != nil {
		return err
	}
	if written == (record{}) {
		t.say("cni install has written nothing into %s that would still be there", f.confDir)
		return nil
	}
	path, target := filepath.Join(f.confDir, listName), filepath.Join(f.binDir, pluginName)
	switch sum := sumOf(path); {
	case sum == "":
	case sum != written.List && !f.force:
		return fmt.Errorf("%s was changed since cni install has written it: remove it yourself, or use --force", path)
	default:
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("the CNI list cannot be removed: %w", err)
		}
		did.Removed = append(did.Removed, path)
		t.say("removed %s", path)
	}
	written.List = ""
	if err := f.writeRecord(written); err != nil {
		return err
	}
	switch sum := sumOf(target); {
	case written.Plugin == "" || sum == "":
		return f.writeRecord(record{})
	case sum != written.Plugin && !f.force:
		did.Kept = append(did.Kept, target)
		t.say("%s is not the one that cni install has written, and stays", target)
		return f.writeRecord(record{})
	}
	if !f.force {
		// Without the plugin the runtime could not take its pods off the network.
		err := t.daemon(c, func(ctx context.Context, client *control.Client) error {
			pods, err := client.Pods(ctx)
			if err != nil {
				return err
			}
			pods = slices.DeleteFunc(pods, func(p control.Pod) bool { return p.Source == control.SourceManual })
			if len(pods) > 0 {
				return fmt.Errorf("%d pods are still attached, and to take them off the runtime needs %s, which stays: remove the pods first, or use --force", len(pods), target)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the plugin cannot be removed: %w", err)
	}
	did.Removed = append(did.Removed, target)
	t.say("removed %s", target)
	return f.writeRecord(record{})
}

// list is what to write: one of our own, or the one in force with us in it.
func (f *cniFiles) list(socket string) (cniList, error) {
	if !f.chained {
		plugins := []any{cniPlugin{
			"type": pluginName, "attach": f.attach, "socket": socket, "capabilities": map[string]any{"bandwidth": true, "ips": true},
		}}
		if f.attach == control.AttachVeth {
			plugins[0].(cniPlugin)["capabilities"].(map[string]any)["mac"] = true
		}
		if _, err := os.Stat(filepath.Join(f.binDir, "portmap")); err == nil {
			plugins = append(plugins, cniPlugin{"type": "portmap", "capabilities": map[string]any{"portMappings": true}})
		}
		return cniList{"cniVersion": "1.0.0", "cniVersions": []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}, "name": pluginName, "plugins": plugins}, nil
	}
	names, err := f.lists()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if name == listName {
			continue
		}
		l, err := readList(filepath.Join(f.confDir, name))
		if err != nil {
			return nil, err
		}
		all := l.plugins()
		if len(all) == 0 || slices.ContainsFunc(all, func(p cniPlugin) bool { return p["type"] == pluginName }) {
			continue
		}
		if first := all[0]["type"]; first != "bridge" && first != "ptp" {
			return nil, fmt.Errorf("%s makes pods with %v, and penstock can be chained behind bridge and ptp only", filepath.Join(f.confDir, name), first)
		}
		if lacksGateway(all[0]) && !f.force {
			return nil, fmt.Errorf("%s: %s: add it, or chain penstock in all the same with --force", filepath.Join(f.confDir, name), noGateway)
		}
		plugins := []any{all[0], cniPlugin{"type": pluginName, "attach": control.AttachRouted, "socket": socket}}
		for _, p := range all[1:] { // among them the plugin bandwidth, which works behind a bridge
			plugins = append(plugins, p)
		}
		l["plugins"] = plugins
		return l, nil
	}
	return nil, fmt.Errorf("there is no CNI list in %s to chain penstock into", f.confDir)
}

// lists are the files that a runtime reads, in its order.
func (f *cniFiles) lists() (names []string, err error) {
	entries, err := os.ReadDir(f.confDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the CNI lists cannot be read: %w", err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); slices.Contains([]string{".conf", ".conflist", ".json"}, ext) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil // ReadDir sorts
}

// readList makes a list also of a file that holds one plugin.
func readList(path string) (cniList, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("a CNI list cannot be read: %w", err)
	}
	var l cniList
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("%s is not JSON: %w", path, err)
	}
	if _, ok := l["plugins"]; !ok && l["type"] != nil {
		p := cniPlugin{}
		for k, v := range l {
			if k != "name" && k != "cniVersion" {
				p[k] = v
			}
		}
		l = cniList{"name": l["name"], "cniVersion": l["cniVersion"], "plugins": []any{p}}
	}
	return l, nil
}

// program is the plugin to install.
func (f *cniFiles) program() (string, error) {
	if f.plugin != "" {
		return f.plugin, nil
	}
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	places := []string{filepath.Join(f.binDir, pluginName)}
	if err == nil {
		places = append([]string{filepath.Join(filepath.Dir(self), pluginName)}, places...)
	}
	for _, p := range places {
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf("the plugin is not at %s: say with --plugin where it is", strings.Join(places, " or "))
}

// warnings name what is in force and does not do what its owner thinks.
func (f *cniFiles) warnings() (all []string) {
	names, err := f.lists()
	if err != nil {
		return nil
	}
	if names[0] != listName {
		all = append(all, fmt.Sprintf("%s comes before %s, and the runtime takes the first: rename or remove it", filepath.Join(f.confDir, names[0]), listName))
	}
	for _, name := range names {
		l, err := readList(filepath.Join(f.confDir, name))
		if err != nil {
			continue
		}
		for _, s := range append(bandwidthTrouble(l), bridgeTrouble(l)...) {
			all = append(all, fmt.Sprintf("%s: %s", filepath.Join(f.confDir, name), s))
		}
	}
	return all
}

// bandwidthTrouble: the reference plugin bandwidth puts its limiters where the daemon's sockets are not (design section 3): a
// packet tap sees a pod's frames before the ingress limiter, and what the daemon writes skips the egress one.
func bandwidthTrouble(l cniList) (trouble []string) {
	attach := ""
	for i, p := range l.plugins() {
		switch p["type"] {
		case pluginName:
			attach, _ = p["attach"].(string)
			if attach == "" && i == 0 {
				attach = control.AttachVeth
			}
		case "bandwidth":
			if attach == control.AttachVeth || attach == control.AttachTUN {
				trouble = append(trouble, "the plugin bandwidth limits nothing behind attach "+attach+": remove it and give penstock the capability bandwidth, the daemon limits by itself")
			}
		}
	}
	return trouble
}

const noGateway = `the bridge lacks "isGateway": true, so that the host has no route to its pods, if nobody else gives the bridge an address, and penstock refuses every one`

func lacksGateway(p cniPlugin) bool {
	is := func(key string) bool { on, _ := p[key].(bool); return on }
	return p["type"] == "bridge" && !is("isGateway") && !is("isDefaultGateway")
}

// bridgeTrouble: penstock behind a bridge hands the host what comes for its pods, and the host must know the way to them.
func bridgeTrouble(l cniList) (trouble []string) {
	all := l.plugins()
	us := slices.IndexFunc(all, func(p cniPlugin) bool { return p["type"] == pluginName })
	if us < 1 || all[0]["type"] != "bridge" {
		return nil
	}
	if lacksGateway(all[0]) {
		trouble = append(trouble, noGateway)
	}
	if all[0]["mtu"] == nil && all[us]["mtu"] == nil {
		trouble = append(trouble, `neither the bridge nor penstock has an "mtu", so the pods have the bridge's: give penstock the mtu that penstockctl status shows`)
	}
	return trouble
}
