package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// A walk is what an operator types, and what is printed.
type walk struct {
	t    *testing.T
	page string // docs/debugging.md
	seen map[string]bool
}

const debuggingPage = "../../docs/debugging.md"

// TestDebuggingWalkthrough injects the three faults of docs/debugging.md into a real network and does there what the page says,
// with penstockctl alone. What the page shows must be what is printed, but for numbers and times; UPDATE_DOCS=1 writes it anew.
func TestDebuggingWalkthrough(t *testing.T) {
	lab.Require(t)
	page, err := os.ReadFile(debuggingPage)
	if err != nil {
		t.Fatal(err)
	}
	w := &walk{t: t, page: string(page), seen: map[string]bool{}}
	l := lab.New(t, lab.Config{Nodes: 3})
	l.Start(t)
	a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	pod, other := a.AddPod(t, lab.Veth), a.AddPod(t, lab.Veth)
	for _, n := range []*lab.Node{b, c} {
		pingBoth(t, &pod.Host, &n.AddPod(t, lab.Veth).Host)
	}

	w.run("healthy", a, 0, "doctor", "-q")("0 failures, 0 warnings")

	b.Daemon.Kill()
	w.run("down/doctor", a, 1, "doctor", "-q")("failure peer node-b the node 192.0.2.2 answers, but nobody behind the tunnel (10.244.2.0)", "is penstockd running")
	w.run("down/there", b, 3, "doctor", "-q")("failure daemon it cannot be reached", "penstockd has died", "journalctl -u penstockd")
	b.Start(t)
	w.run("down/mended", a, 0, "doctor", "-q", "node-b")("0 failures")

	link, err := l.Fabric.Netlink().LinkByName("n2") // the end of node-c's link, in a bridge that tells nobody what it loses
	if err == nil {
		err = l.Fabric.Netlink().LinkSetMTU(link, 1400)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.run("mtu/doctor", a, 1, "doctor", "-q")("failure peer node-c packets of more than 1350 bytes are lost on the way, and pods send up to 1450", "set encap.mtu: 1350 on all nodes")
	w.run("mtu/peers", a, 0, "peers")("node-c")
	for _, n := range l.Nodes {
		n.Daemon.Reload(t, "encap: {mtu: 1350}")
	}
	w.run("mtu/mended", a, 5, "doctor", "node-c")("packets of 1350 bytes pass both ways", "warning mtu pods get an MTU of 1350 now, and these have a larger one from before")
	for _, n := range l.Nodes {
		n.Daemon.Reload(t)
	}
	if err := l.Fabric.Netlink().LinkSetMTU(link, 1500); err != nil {
		t.Fatal(err)
	}

	stop := spoof(t, pod)
	w.run("spoof/doctor", a, 5, "doctor", "-q")("warning drops spoofed: N in", "a pod sent with a source that is not its address", short(pod)+"/eth0 10.244.1.2")
	w.run("spoof/ports", a, 0, "ports")(pod.HostDevice, other.HostDevice)
	w.run("spoof/drops", a, 0, "drops")("a pod sent with a source that is not its address")
	stop()
	w.finish()
	conserved(t, l)
}

// netd is where a node's container runtime would look for its lists.
func netd(n *lab.Node) string { return filepath.Join(filepath.Dir(n.Daemon.Config), "net.d") }

func short(p *lab.Pod) string { return p.Container[:12] }

// run runs penstockctl on a node. The function that it returns is told what of the output matters: it must be printed, and stand
// on the page under this key.
func (w *walk) run(key string, n *lab.Node, wantStatus int, args ...string) func(matters ...string) {
	w.t.Helper()
	w.seen[key] = true
	command := "penstockctl " + strings.Join(args, " ")
	if args[0] == "doctor" {
		args = append(args, "--conf-dir", netd(n), "--config", n.Daemon.Config)
	}
	out, status, err := n.Ctl(args...)
	if err != nil {
		w.t.Fatal(err)
	}
	if status != wantStatus {
		w.t.Errorf("%s: %s on %s: exit status %d, want %d:\n%s", key, command, n.Name, status, wantStatus, out)
	}
	out = strings.NewReplacer(n.Daemon.Socket, "/run/penstock/penstock.sock", netd(n), "/etc/cni/net.d", n.Daemon.Config, "/etc/penstock/penstock.yaml").Replace(out)
	return func(matters ...string) {
		w.t.Helper()
		w.put(key, fmt.Sprintf("%s# %s\n%s", n.Name, command, layOut(out, 120)))
		for _, m := range matters {
			if !strings.Contains(plain(out), plain(m)) {
				w.t.Errorf("%s: %s on %s does not print %q:\n%s", key, command, n.Name, m, out)
			}
			if !strings.Contains(plain(w.block(key)), plain(m)) {
				w.t.Errorf("docs/debugging.md does not show %q under %s: run UPDATE_DOCS=1 go test ./bench/e2e -run TestDebuggingWalkthrough", m, key)
			}
		}
		for _, row := range failures(w.block(key)) {
			if !strings.Contains(plain(out), plain(row)) {
				w.t.Errorf("docs/debugging.md shows under %s what is not printed: %q; %s printed\n%s", key, row, command, out)
			}
		}
	}
}

func marks(key string) (begin, end string) { return "<!-- out: " + key + " -->\n", "<!-- /out -->\n" }

// block is what the page shows under a key.
func (w *walk) block(key string) string {
	begin, end := marks(key)
	_, rest, ok := strings.Cut(w.page, begin)
	text, _, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		w.t.Fatalf("docs/debugging.md has no place for %s", key)
	}
	return text
}

func (w *walk) put(key, text string) {
	if os.Getenv("UPDATE_DOCS") == "" {
		return
	}
	begin, end := marks(key)
	w.page = strings.Replace(w.page, begin+w.block(key)+end, begin+"```console\n"+text+"```\n"+end, 1)
}

// finish writes the page, and finds what it shows and nobody has run.
func (w *walk) finish() {
	for _, m := range regexp.MustCompile(`<!-- out: (\S+) -->`).FindAllStringSubmatch(w.page, -1) {
		if !w.seen[m[1]] {
			w.t.Errorf("docs/debugging.md shows %s, which the test does not run", m[1])
		}
	}
	if os.Getenv("UPDATE_DOCS") == "" {
		return
	}
	if err := os.WriteFile(debuggingPage, []byte(w.page), 0o644); err != nil {
		w.t.Fatal(err)
	}
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

func squeeze(s string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(s, "w", "")), " ")
}
