package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
)

// results is what a run writes, after every cell: NAME.json, NAME.md and NAME.svg.
type results struct {
	Machine  machine
	Commit   string // "-dirty" behind it if the tree was changed
	Started  time.Time
	Pairs    int
	Seconds  float64
	Burst    int
	TCP      string  // congestion control of all streams
	Weight   int     `json:",omitempty"` // of a daemon's scheduling group; 0: all are in one
	Tool     string  `json:",omitempty"` // that made the traffic; "": the built-in one
	YAML     string  `json:",omitempty"`
	Daemon   string  // SHA-256 of penstockd, by which an interrupted run is known again
	Others   float64 // cores that others used before the run began
	Complete bool
	Cells    []*result

	dir, name string
}

// result is a cell with all samples: those of a pair have the same index.
type result struct {
	Cell    string
	Shape   shape
	Text    string   `json:",omitempty"` // why it failed
	Kernel  []sample `json:",omitempty"` // the baseline
	Subject []sample
}

// spread is that of the paired ratios, or of the figure itself where there is nothing to compare with.
func (r *result) spread(metric string) spread {
	if r.Shape == idle {
		return spreadOf(series(r.Subject, metric))
	}
	return spreadOf(ratios(series(r.Kernel, metric), series(r.Subject, metric)))
}

func (r *result) enough() int {
	if r.Shape == idle {
		return enoughIdle
	}
	return enoughPairs
}

// newResults begins a run, with what an interrupted one of the same daemon, kernel and settings has measured.
func newResults(o options) (*results, error) {
	name := "bars"
	switch {
	case o.only != "" || o.tool != "":
		name = "quick"
	case o.full:
		name = "full"
	}
	r := &results{
		Machine: thisMachine(), Commit: commit(), Started: time.Now().UTC().Truncate(time.Second),
		Pairs: o.pairs, Seconds: o.seconds, Burst: o.burst, TCP: o.tcp, Weight: o.weight, Tool: o.tool, YAML: o.yaml, dir: o.dir, name: name,
	}
	var err error
	if r.Daemon, err = daemonSum(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory for the results: %w", err)
	}
	if o.fresh || name == "quick" || r.Daemon == "" {
		return r, nil
	}
	b, err := os.ReadFile(r.path("json"))
	if err != nil {
		return r, nil
	}
	var old results
	if json.Unmarshal(b, &old) == nil && r.continues(&old) {
		r.Started, r.Others = old.Started, old.Others
		for _, c := range old.Cells {
			if c.Text == "" {
				r.Cells = append(r.Cells, c)
			}
		}
	}
	return r, nil
}

// continues reports whether old is the same run, broken off.
func (r *results) continues(old *results) bool {
	return !old.Complete && old.Daemon == r.Daemon && old.Machine == r.Machine &&
		old.Pairs == r.Pairs && old.Seconds == r.Seconds && old.Burst == r.Burst && old.TCP == r.TCP && old.Weight == r.Weight && old.YAML == r.YAML
}

func (r *results) path(ext string) string { return filepath.Join(r.dir, r.name+"."+ext) }

func (r *results) find(cell string) *result {
	for _, c := range r.Cells {
		if c.Cell == cell {
			return c
		}
	}
	return nil
}

// write replaces the files; each appears whole or not at all.
func (r *results) write() error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		ext     string
		content []byte
	}{{"json", append(b, '\n')}, {"md", r.markdown()}, {"svg", r.chart()}} {
		tmp := r.path(f.ext) + ".new"
		if err := os.WriteFile(tmp, f.content, 0o644); err != nil {
			return fmt.Errorf("results: %w", err)
		}
		if err := os.Rename(tmp, r.path(f.ext)); err != nil {
			return fmt.Errorf("results: %w", err)
		}
	}
	return nil
}

// MarshalJSON leaves out what is no number, which JSON cannot say, and digits that mean nothing.
func (s sample) MarshalJSON() ([]byte, error) {
	m := map[string]json.Number{}
	for k, v := range s {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			m[k] = json.Number(fmt.Sprintf("%.6g", v))
		}
	}
	return json.Marshal(m)
}
