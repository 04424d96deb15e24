package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	names := func(o options) []string {
		t.Helper()
		cells, err := choose(o)
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, c := range cells {
			list = append(list, c.name())
		}
		return list
	}
	all, barred := names(options{full: true}), names(options{})
	if len(barred) < 20 || len(all) < 20*len(barred)/2 {
		t.Errorf("%d of %d cells have bars", len(barred), len(all))
	}
	for _, c := range []struct {
		only string
		want string
	}{
		{"vxlan/veth/whole/tcp-1", "vxlan/veth/whole/tcp-1"},
		{"tun whole udp-64x1", "vxlan/tun/whole/udp-64x1"},
		{"routing whole udp-64x1", "routing/plain/whole/udp-64x1"}, // has no bar
		{"udp veth cut mixed-x16,vxlan veth whole rr-udp", "vxlan/veth/whole/rr-udp udp/veth/cut/mixed-x16"},
		{"whole veth udp-64*", "vxlan/veth/whole/udp-64x1 vxlan/veth/whole/udp-64x16"},
	} {
		if got := strings.Join(names(options{only: c.only}), " "); got != c.want {
			t.Errorf("%q: %s", c.only, got)
		}
	}
	for _, bad := range []string{"tcp-1 tcp-4", "vxlan [", " "} {
		if list, err := choose(options{only: bad}); err == nil {
			t.Errorf("%q chooses %d cells", bad, len(list))
		}
	}
}

// filled has a cell of every shape, one that failed, and odd figures.
func filled() *results {
	r := &results{Machine: machine{Kernel: "6.18", CPU: "a <fast> & good one", Cores: 2}, Commit: "abc", Pairs: 9, Seconds: 1, name: "bars"}
	samples := func(f float64) (list []sample) {
		for i := range 9 {
			v := f * (1 + float64(i)/100)
			list = append(list, sample{"rate": 1e6 * v, "cpu": 1e-6 / v, "loss": 0.01, "p50": 1e-5 / v, "p99": 1e-4 / v, "p999": math.NaN(), "memory": 1e7, "idlecpu": 1e-4})
		}
		return list
	}
	cells, _ := choose(options{})
	for _, c := range cells {
		x := &result{Cell: c.name(), Shape: c.Burden.Shape, Subject: samples(3.1)}
		if x.Shape != idle {
			x.Kernel = samples(1)
		}
		r.Cells = append(r.Cells, x)
	}
	r.Cells = append(r.Cells, &result{Cell: "udp/veth/tso/connect", Shape: connects, Kernel: samples(1), Subject: samples(2)},
		&result{Cell: "ipip/veth/cut/tcp-1", Text: "it\nfell over"})
	return r
}

func TestMarkdown(t *testing.T) {
	md := string(filled().markdown())
	for _, want := range []string{
		"| `vxlan/veth/whole/udp-64x1` | 64 B datagrams, 1 flow | 1.04 M/s | 3.22 M/s | ×3.10 | 0.00 | ≥ ×3.00 | ≥ ×6.00 | met |",
		"| ≤ ×0.60 | ≤ ×0.30 | met |", "≤ 64.0 MiB", "9.5 MiB", "- `ipip/veth/cut/tcp-1`: it fell over", "## Request and response", "not complete",
	} {
		if !strings.Contains(md, want) {
			t.Errorf("%q is missing in\n%s", want, md)
		}
	}
	for line := range strings.Lines(md) {
		if strings.Contains(line, "NaN") {
			t.Errorf("not a number: %s", line)
		}
	}
}

func TestChart(t *testing.T) {
	svg := filled().chart()
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
	}
	for _, want := range []string{"vxlan/veth/whole/udp-64x1<", "CPU a datagram ↓", "a &lt;fast&gt; &amp; good one", "×3.10 ± 0.00"} {
		if !strings.Contains(string(svg), want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
		t.Error("the chart has something that is no number")
	}
	if len((&results{}).chart()) == 0 {
		t.Error("no chart of nothing")
	}
}

// TestResume: a run that was broken off goes on where it was; another daemon, other settings, a complete run and
// cells that failed begin anew.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	daemon := filepath.Join(dir, "penstockd")
	t.Setenv("PENSTOCKD", daemon)
	if err := os.WriteFile(daemon, []byte("one"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := options{dir: filepath.Join(dir, "results"), pairs: 9, seconds: 1, burst: 1}
	begin := func(o options) *results {
		t.Helper()
		r, err := newResults(o)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := begin(o)
	want := filled().Cells
	r.Cells = want
	if err := r.write(); err != nil {
		t.Fatal(err)
	}
	again := begin(o)
	if len(again.Cells) != len(want)-1 || again.find("ipip/veth/cut/tcp-1") != nil {
		t.Errorf("%d cells of %d", len(again.Cells), len(want))
	}
	a, _ := json.Marshal(want[:len(want)-1])
	b, _ := json.Marshal(again.Cells)
	if !bytes.Equal(a, b) {
		t.Error("the cells have changed on their way through the file")
	}
	for name, change := range map[string]func(*options){
		"fresh":   func(o *options) { o.fresh = true },
		"pairs":   func(o *options) { o.pairs = 10 },
		"seconds": func(o *options) { o.seconds = 2 },
		"yaml":    func(o *options) { o.yaml = "workers: 1" },
		"burst":   func(o *options) { o.burst = 2 },
		"tcp":     func(o *options) { o.tcp = "reno" },
		"only":    func(o *options) { o.only = "udp" },
		"full":    func(o *options) { o.full = true },
	} {
		other := o
		change(&other)
		if n := len(begin(other).Cells); n != 0 {
			t.Errorf("%s: %d cells are taken over", name, n)
		}
	}
	if err := os.WriteFile(daemon, []byte("two"), 0o755); err != nil {
		t.Fatal(err)
	}
	if n := len(begin(o).Cells); n != 0 {
		t.Errorf("another daemon: %d cells are taken over", n)
	}
	os.WriteFile(daemon, []byte("one"), 0o755)
	r.Complete = true
	if err := r.write(); err != nil {
		t.Fatal(err)
	}
	if n := len(begin(o).Cells); n != 0 {
		t.Errorf("a complete run: %d cells are taken over", n)
	}
}
