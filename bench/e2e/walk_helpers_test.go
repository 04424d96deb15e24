package e2e

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/docs/pages"
)

// A walk is what an operator types, and what is printed: a page shows it in blocks <!-- out: KEY -->.
type walk struct {
	t       *testing.T
	page    *pages.Page
	printed map[string]string // by key
}

func newWalk(t *testing.T, page string) *walk {
	return &walk{t, pages.Open(t, page), map[string]string{}}
}

// netd is where a node's container runtime would look for its lists.
func netd(n *lab.Node) string { return filepath.Join(filepath.Dir(n.Daemon.Config), "net.d") }

func short(p *lab.Pod) string { return p.Container[:12] }

// places are where a node of the lab has what stands in /etc, /run and /opt elsewhere; a page shows the latter.
func places(n *lab.Node) map[string]string {
	plugins, err := lab.PluginDir()
	if err != nil {
		plugins = "none"
	}
	return map[string]string{
		n.Daemon.Socket: "/run/penstock/penstock.sock", netd(n): "/etc/cni/net.d", n.Daemon.Config: "/etc/penstock/penstock.yaml",
		bin(n): "/opt/cni/bin", plugins + "/penstock": "/usr/local/bin/penstock",
	}
}

// bin is where a node's container runtime would look for its plugins.
func bin(n *lab.Node) string { return filepath.Join(filepath.Dir(n.Daemon.Config), "bin") }

// located is what an operator types, with the lab's places where a command's defaults would be the machine's.
func located(n *lab.Node, args []string) []string {
	switch {
	case args[0] == "doctor" || args[0] == "support-bundle":
		return append(args, "--conf-dir", netd(n), "--config", n.Daemon.Config)
	case args[0] == "config" && args[1] == "check":
		return append(args, n.Daemon.Config)
	case args[0] == "cni" && args[1] == "install":
		dir, _ := lab.PluginDir()
		args = append(args, "--plugin", dir+"/penstock")
		fallthrough
	case args[0] == "cni":
		return append(args, "--conf-dir", netd(n), "--bin-dir", bin(n))
	}
	return args
}

// run runs penstockctl on a node. The function that it returns is told what of the output matters: it must be printed, and stand
// on the page under this key.
func (w *walk) run(key string, n *lab.Node, wantStatus int, args ...string) func(matters ...string) {
	w.t.Helper()
	command := "penstockctl " + strings.Join(args, " ")
	out, status, err := n.Ctl(located(n, slices.Clone(args))...)
	if err != nil {
		w.t.Fatal(err)
	}
	if status != wantStatus {
		w.t.Errorf("%s: %s on %s: exit status %d, want %d:\n%s", key, command, n.Name, status, wantStatus, out)
	}
	for here, there := range places(n) {
		out = strings.ReplaceAll(out, here, there)
	}
	return func(matters ...string) {
		w.t.Helper()
		w.shows(key, n.Name+"# "+command, out, matters...)
	}
}

// shows holds the page's block to an output: both have what matters, and the same tables; and no failure is shown that was not told.
func (w *walk) shows(key, command, out string, matters ...string) {
	w.t.Helper()
	w.printed[key] = command + "\n" + out
	if pages.Updating() {
		w.page.Set("out: "+key, fmt.Sprintf("```console\n%s\n%s```\n", command, layOut(out, 120)))
	}
	block := w.page.Block("out: " + key)
	anew := "run UPDATE=1 go test ./bench/e2e -run " + w.t.Name()
	for _, m := range matters {
		if !strings.Contains(plain(out), plain(m)) {
			w.t.Errorf("%s: %s does not print %q:\n%s", key, command, m, out)
		}
		if !strings.Contains(plain(block), plain(m)) {
			w.t.Errorf("%s does not show %q under %s: %s", w.page.Name, m, key, anew)
		}
	}
	if is, was := headings(out), headings(block); !slices.Equal(is, was) {
		w.t.Errorf("%s shows under %s tables of %q, and %s prints %q: %s", w.page.Name, key, was, command, is, anew)
	}
	for _, row := range failures(block) {
		if !strings.Contains(plain(out), plain(row)) {
			w.t.Errorf("%s shows under %s what is not printed: %q; %s printed\n%s", w.page.Name, key, row, command, out)
		}
	}
}

// finish finds what the page shows and nobody has run.
func (w *walk) finish() {
	for _, key := range w.page.Keys("out") {
		if _, ok := w.printed[strings.TrimPrefix(key, "out: ")]; !ok {
			w.t.Errorf("%s shows %s, which the test does not run", w.page.Name, key)
		}
	}
}

var (
	wide  = regexp.MustCompile(` {2,}`)
	title = regexp.MustCompile(`^[A-Z]{2,}[A-Za-z/ ]*$`)
)

// cells are a row's.
func cells(line string) []string { return wide.Split(strings.TrimSpace(line), -1) }

// headings are the heads of the tables in an output: lines of words in capitals.
func headings(out string) (all []string) {
	for line := range strings.Lines(out) {
		row := cells(line)
		if len(row) > 1 && !slices.ContainsFunc(row, func(c string) bool { return !title.MatchString(c) }) {
			all = append(all, strings.Join(row, " | "))
		}
	}
	return all
}

var (
	times   = regexp.MustCompile(`\b\d+(\.\d+)?(ms|µs|s|m\d+s)\b`)
	numbers = regexp.MustCompile(`(^|[ (])\d+(\.\d+)?[kMG]?([ ,)]|$)`)
)

// plain is an output without what differs from run to run, and without its layout.
func plain(s string) string {
	s = times.ReplaceAllString(strings.Join(strings.Fields(s), " "), "T")
	for _, keep := range []string{"1350", "1450"} { // these numbers are the point
		s = strings.ReplaceAll(s, keep, "«"+keep+"»")
	}
	for range 2 { // neighbours share a blank
		s = numbers.ReplaceAllString(s, "${1}N$3")
	}
	return s
}

// failures are the beginnings of the rows that tell a failure.
func failures(block string) (rows []string) {
	for line := range strings.Lines(block) {
		if strings.HasPrefix(line, "failure ") {
			rows = append(rows, strings.TrimSpace(line))
		}
	}
	return rows
}

// layOut breaks lines as a terminal of that width shows them: the text in a table's last column goes on under itself. Other
// tables stay as they are.
func layOut(out string, width int) string {
	var b strings.Builder
	indent := -1
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		for _, column := range []string{"FINDING", "MEANING"} {
			if strings.HasSuffix(line, column) {
				indent = len(line) - len(column)
			}
		}
		runes := []rune(line)
		for indent >= 0 && indent < width/2 && len(runes) > width {
			at := width
			for at > indent+3 && runes[at] != ' ' {
				at--
			}
			if at == indent+3 {
				at = width // one long word
			}
			b.WriteString(strings.TrimRight(string(runes[:at]), " ") + "\n")
			runes = append([]rune(strings.Repeat(" ", indent+2)), []rune(strings.TrimLeft(string(runes[at:]), " "))...)
		}
		b.WriteString(string(runes) + "\n")
	}
	return b.String()
}

// TestLayOut: no line but of other tables is wider, and no word is lost.
func TestLayOut(t *testing.T) {
	text := "RESULT   CHECK  FINDING\nfailure  peer   " + strings.Repeat("some words and more ", 20) + "\nwarning  x      " + strings.Repeat("w", 200) + "\n"
	out := layOut(text, 60)
	if squeeze(out) != squeeze(text) {
		t.Errorf("words were lost:\n%s", out)
	}
	for line := range strings.Lines(out) {
		if len(line) > 61 {
			t.Errorf("%d wide: %q", len(line), line)
		}
	}
	if wide := strings.Repeat("a b ", 100) + "\n"; layOut(wide, 60) != wide {
		t.Error("another table was broken")
	}
}

func TestHeadings(t *testing.T) {
	const out = "node  node-a\n\nPOD  OUT pkt/s  IN bit/s\nX    1          2\n\nGIVEN BY  FREE\nOK\n"
	if got := strings.Join(headings(out), "; "); got != "POD | OUT pkt/s | IN bit/s; GIVEN BY | FREE" {
		t.Error(got)
	}
}

func squeeze(s string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(s, "w", "")), " ")
}
