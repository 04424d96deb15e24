package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
)

// man writes the man pages, for make install: those of penstockctl from its commands, those of the other programs from what they
// print as help, and that of the configuration from the example. So a page says what the program says.
func (t *tool) man(root *cobra.Command) *cobra.Command {
	var daemon, plugin string
	c := &cobra.Command{
		Use:    "man DIR --penstockd PATH --penstock PATH",
		Short:  "Write the man pages of all programs into a directory, as make install does",
		Hidden: true,
		Args:   takes(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, section := range []string{"man1", "man5", "man8"} {
				if err := os.MkdirAll(filepath.Join(args[0], section), 0o755); err != nil {
					return err
				}
			}
			root.DisableAutoGenTag = true // its date would make each build another
			header := &doc.GenManHeader{Section: "1", Source: "Penstock " + control.Version(), Manual: "Penstock"}
			if err := doc.GenManTree(root, header, filepath.Join(args[0], "man1")); err != nil {
				return fmt.Errorf("the man pages of penstockctl cannot be written: %w", err)
			}
			pages := []page{{
				name: "penstock.yaml", section: "5", short: "configuration of penstockd",
				text: string(config.Example), also: "penstockd(8), penstockctl(1); penstockctl config check",
			}}
			for _, p := range []struct {
				path, short, also string
				args              []string
			}{
				{daemon, "the Penstock daemon, which carries pod traffic between nodes", "penstockctl(1), penstock.yaml(5), penstock(8)", []string{"--help"}},
				{plugin, "the CNI plugin of Penstock, and penstock adopt", "penstockd(8), penstockctl(1)", []string{"adopt", "--help"}},
			} {
				out, err := exec.Command(p.path, p.args...).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%s does not print its help: %w", p.path, err)
				}
				pages = append(pages, page{name: filepath.Base(p.path), section: "8", short: p.short, text: string(out), also: p.also})
			}
			for _, p := range pages {
				if err := os.WriteFile(filepath.Join(args[0], "man"+p.section, p.name+"."+p.section), p.roff(), 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&daemon, "penstockd", "penstockd", "the daemon's program")
	c.Flags().StringVar(&plugin, "penstock", "penstock", "the plugin's program")
	return c
}

// page is a man page whose text is shown as it is.
type page struct{ name, section, short, text, also string }

func (p page) roff() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %q %q \"\" %q \"Penstock\"\n.SH NAME\n%s \\- %s\n.SH DESCRIPTION\n.nf\n", strings.ToUpper(p.name), p.section, "Penstock "+control.Version(), p.name, p.short)
	for line := range strings.Lines(p.text) {
		line = strings.ReplaceAll(strings.ReplaceAll(line, `\`, `\e`), "-", `\-`)
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line
		}
		b.WriteString(line)
	}
	fmt.Fprintf(&b, ".fi\n.SH SEE ALSO\n%s\n", p.also)
	return []byte(b.String())
}
