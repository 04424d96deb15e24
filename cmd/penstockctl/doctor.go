package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/doctor"
)

// verdict is an outcome that is no error of ours, with its exit status.
type verdict struct {
	status int
	text   string
}

func (v *verdict) Error() string { return v.text }

func (t *tool) doctor() *cobra.Command {
	var configPath, cniDir string
	var brief bool
	c := &cobra.Command{
		Use:   "doctor [PEER…]",
		Short: "Examine this node and the way to its peers; each finding comes with its remedy",
		Long:  doctorHelp(),
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("config") {
				configPath = "" // nobody says that the daemon's is there
			}
			r := t.examine(c.Context(), configPath, cniDir, args, 0)
			if t.output == "json" {
				if err := t.json(r); err != nil {
					return err
				}
			} else {
				t.printReport(r, brief)
			}
			return judgement(r)
		},
		ValidArgsFunction: t.completePeer,
	}
	c.Flags().StringVar(&configPath, "config", config.DefaultPath, "the daemon's configuration file, if the daemon cannot be asked")
	c.Flags().StringVar(&cniDir, "conf-dir", "/etc/cni/net.d", "where the container runtime looks for CNI lists")
	c.Flags().BoolVarP(&brief, "quiet", "q", false, "show findings only")
	return c
}

func doctorHelp() string {
	var b strings.Builder
	b.WriteString(`Examine this node and the way to its peers; each finding comes with its remedy.

Nothing is changed. Peers are probed by real packets through the tunnel: without PEER all of them. It works without a daemon
too, and then says what would keep it from starting. Run it as root, where the daemon runs.

Exit status: 0 nothing found, 1 something breaks traffic, 5 only warnings, 3 the daemon cannot be reached.

Checks:
`)
	for _, n := range doctor.Names {
		fmt.Fprintf(&b, "  %-18s %s\n", n.Name, n.Looks)
	}
	return b.String()
}

// examine is what doctor finds; probing bounds how long it probes peers, unless it is 0.
func (t *tool) examine(ctx context.Context, configPath, cniDir string, peers []string, probing time.Duration) doctor.Report {
	o := doctor.Options{Socket: t.socket, Config: configPath, Peers: peers, CNI: func() []doctor.Check { return examineCNI(cniDir) }, Probing: probing}
	if windowWidth(t.errs) > 0 && drawable(os.Getenv("TERM")) {
		o.Progress = func(done, all int) {
			fmt.Fprintf(t.errs, "\r%d of %d peers probed", done, all)
			if done == all {
				fmt.Fprint(t.errs, "\r\x1b[K")
			}
		}
	}
	return doctor.Examine(ctx, o)
}

func judgement(r doctor.Report) error {
	failures, warnings := r.Count(doctor.Failure), r.Count(doctor.Warning)
	text := counted(failures, "failure") + " and " + counted(warnings, "warning")
	switch {
	case !r.Reachable:
		return &verdict{exitUnreachable, text}
	case failures > 0:
		return &verdict{exitFailed, text}
	case warnings > 0:
		return &verdict{exitWarnings, text}
	}
	return nil
}

func (t *tool) printReport(r doctor.Report, brief bool) {
	p := &table{out: t.out, head: []string{"RESULT", "CHECK", "FINDING"}, flexible: 2, wrap: true}
	for _, c := range r.Merged() {
		if brief && (c.Result == doctor.OK || c.Result == doctor.Skipped) {
			continue
		}
		p.row(string(c.Result), c.Name, c.Finding)
		if c.Remedy != "" {
			p.row("", "", "→ "+c.Remedy)
		}
	}
	if len(p.rows) > 0 {
		p.print()
		fmt.Fprintln(t.out)
	}
	fmt.Fprintf(t.out, "%s: %s, %s, %d ok, %d skipped\n", cmp.Or(r.Node, "this node"), counted(r.Count(doctor.Failure), "failure"), counted(r.Count(doctor.Warning), "warning"),
		r.Count(doctor.OK), r.Count(doctor.Skipped))
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// examineCNI looks at what the container runtime reads.
func examineCNI(dir string) []doctor.Check {
	one := func(r doctor.Result, remedy, finding string, a ...any) []doctor.Check {
		return []doctor.Check{{Name: "cni", Result: r, Finding: fmt.Sprintf(finding, a...), Remedy: remedy}}
	}
	names, err := (&cniFiles{confDir: dir}).lists()
	if err != nil {
		return one(doctor.Skipped, "", "%v", err)
	}
	var checks []doctor.Check
	first, ours := "", ""
	for _, name := range names {
		path := filepath.Join(dir, name)
		l, err := readList(path)
		if err != nil {
			checks = append(checks, one(doctor.Warning, "mend or remove the file: a runtime that meets it first has no network", "%v", err)...)
			continue
		}
		if first == "" {
			first = name
		}
		if !slices.ContainsFunc(l.plugins(), func(p cniPlugin) bool { return p["type"] == pluginName }) {
			continue
		}
		ours = cmp.Or(ours, name)
		for _, s := range slices.Concat(bandwidthTrouble(l), bridgeTrouble(l), orderTrouble(l)) {
			checks = append(checks, one(doctor.Warning, "penstockctl cni install --print shows a list that works", "%s: %s", path, s)...)
		}
	}
	switch {
	case len(names) == 0:
		return one(doctor.Skipped, "", "there is no CNI list in %s: no container runtime makes pods with Penstock", dir)
	case ours == "":
		return append(checks, one(doctor.Skipped, "", "no list in %s has penstock in it; %s is in force", dir, first)...)
	case first != ours:
		return append(checks, one(doctor.Warning, "rename or remove the one that comes first", "%s comes before %s, and the runtime takes the first: pods are not made with penstock", filepath.Join(dir, first), ours)...)
	case len(checks) == 0:
		return one(doctor.OK, "", "%s is in force", filepath.Join(dir, ours))
	}
	return checks
}

// orderTrouble: penstock makes the pod's interface, or is chained behind the plugin that does; what shapes or publishes comes
// behind it.
func orderTrouble(l cniList) (trouble []string) {
	plugins := l.plugins()
	for i, p := range plugins {
		if p["type"] != pluginName {
			continue
		}
		attach, _ := p["attach"].(string)
		switch {
		case i == 0 && attach == control.AttachRouted:
			trouble = append(trouble, "penstock is first with attach routed, which is for behind another plugin's interface: every ADD is refused")
		case i > 0 && (attach == control.AttachVeth || attach == control.AttachTUN):
			trouble = append(trouble, fmt.Sprintf("penstock stands behind %v with attach %s, which makes an interface of its own: every ADD is refused", plugins[0]["type"], attach))
		}
		for _, before := range plugins[:i] {
			if before["type"] == "portmap" || before["type"] == "firewall" || before["type"] == "tuning" {
				trouble = append(trouble, fmt.Sprintf("%v stands before penstock, and belongs behind it", before["type"]))
			}
		}
	}
	return trouble
}
