package lab

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Metrics is one reading of /metrics.
type Metrics []Sample

// Sample is one line of it.
type Sample struct {
	Name   string
	Labels map[string]string
	Value  float64
}

// The account of design section 6, by the names of section 8.
const (
	received  = "penstock_received_packets_total"
	generated = "penstock_generated_packets_total"
	forwarded = "penstock_forwarded_packets_total"
	dropped   = "penstock_dropped_packets_total"
)

// ParseMetrics reads the Prometheus text format: name{label="value",…} number.
func ParseMetrics(text string) (Metrics, error) {
	var m Metrics
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		s, err := parseSample(line)
		if err != nil {
			return nil, fmt.Errorf("lab: metrics line %q: %w", line, err)
		}
		m = append(m, s)
	}
	return m, nil
}

func parseSample(line string) (s Sample, err error) {
	end := strings.IndexAny(line, "{ ")
	if end < 0 {
		return s, fmt.Errorf("no value")
	}
	s.Name, s.Labels = line[:end], map[string]string{}
	rest := line[end:]
	if rest[0] == '{' {
		rest = rest[1:]
		for rest != "" && rest[0] != '}' {
			name, after, ok := strings.Cut(rest, "=")
			if !ok {
				return s, fmt.Errorf("label without a value")
			}
			quoted, err := strconv.QuotedPrefix(after)
			if err != nil {
				return s, fmt.Errorf("label %s: %w", name, err)
			}
			if s.Labels[name], err = strconv.Unquote(quoted); err != nil {
				return s, fmt.Errorf("label %s: %w", name, err)
			}
			rest = strings.TrimPrefix(after[len(quoted):], ",")
		}
		rest = strings.TrimPrefix(rest, "}")
	}
	fields := strings.Fields(rest) // a time stamp may follow
	if len(fields) == 0 {
		return s, fmt.Errorf("no value")
	}
	s.Value, err = strconv.ParseFloat(fields[0], 64)
	return s, err
}

// Sum adds the samples of a name whose labels match all given pairs: Sum(name, "reason", "ttl").
func (m Metrics) Sum(name string, labels ...string) float64 {
	sum := 0.0
next:
	for _, s := range m {
		if s.Name != name {
			continue
		}
		for i := 0; i+1 < len(labels); i += 2 {
			if s.Labels[labels[i]] != labels[i+1] {
				continue next
			}
		}
		sum += s.Value
	}
	return sum
}

// Dropped are the drops by reason, those that happened only.
func (m Metrics) Dropped() map[string]uint64 {
	drops := map[string]uint64{}
	for _, s := range m {
		if s.Name == dropped && s.Value > 0 {
			drops[s.Labels["reason"]] += uint64(s.Value)
		}
	}
	return drops
}

// Sub is what was counted since before.
func (m Metrics) Sub(before Metrics) Metrics {
	key := func(s Sample) string {
		var b strings.Builder
		b.WriteString(s.Name)
		for _, l := range slices.Sorted(maps.Keys(s.Labels)) {
			fmt.Fprintf(&b, ",%s=%q", l, s.Labels[l])
		}
		return b.String()
	}
	then := map[string]float64{}
	for _, s := range before {
		then[key(s)] = s.Value
	}
	diff := make(Metrics, len(m))
	for i, s := range m {
		s.Value -= then[key(s)]
		diff[i] = s
	}
	return diff
}

// Missing is received + generated − forwarded − dropped: 0 when every frame has one end.
func (m Metrics) Missing() float64 {
	return m.Sum(received) + m.Sum(generated) - m.Sum(forwarded) - m.Sum(dropped)
}

// Account prints the conservation law's terms, one a line.
func (m Metrics) Account() string {
	var b strings.Builder
	for _, name := range []string{received, generated, forwarded, dropped} {
		fmt.Fprintf(&b, "%-40s %.0f\n", name, m.Sum(name))
		var lines []string
		for _, s := range m {
			if s.Name == name && s.Value != 0 {
				var labels []string
				for _, l := range slices.Sorted(maps.Keys(s.Labels)) {
					labels = append(labels, l+"="+s.Labels[l])
				}
				lines = append(lines, fmt.Sprintf("    %-36s %.0f\n", strings.Join(labels, " "), s.Value))
			}
		}
		sort.Strings(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	fmt.Fprintf(&b, "%-40s %.0f\n", "unaccounted for", m.Missing())
	return b.String()
}

// Metrics reads the daemon's metrics.
func (d *Daemon) Metrics(t TB) Metrics {
	t.Helper()
	m, err := d.metrics()
	if err != nil {
		t.Fatalf("lab: metrics of %s: %v", d.Node.Name, err)
	}
	return m
}

func (d *Daemon) metrics() (Metrics, error) {
	code, body, err := d.Get("/metrics")
	if err != nil {
		return nil, err
	}
	if code != 200 {
		return nil, fmt.Errorf("HTTP status %d", code)
	}
	return ParseMetrics(string(body))
}

// account are the four sums, for a comparison of readings.
func (m Metrics) account() [4]float64 {
	return [4]float64{m.Sum(received), m.Sum(generated), m.Sum(forwarded), m.Sum(dropped)}
}

// AtRest waits until no packet has moved for 100 ms and returns the reading. The law holds exactly only then.
func (d *Daemon) AtRest(t TB) Metrics {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	last := d.Metrics(t)
	for time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
		now := d.Metrics(t)
		if now.account() == last.account() {
			return now
		}
		last = now
	}
	return last
}

// AssertConserved fails the test unless, at rest, received + generated = forwarded + dropped.
func (d *Daemon) AssertConserved(t TB) Metrics {
	t.Helper()
	m := d.AtRest(t)
	if m.Sum(received) == 0 {
		t.Errorf("penstockd on %s says it has received nothing at all: the metrics are not what they should be", d.Node.Name)
	}
	if m.Missing() != 0 {
		t.Errorf("penstockd on %s lost account of %.0f frames:\n%s", d.Node.Name, m.Missing(), m.Account())
	}
	return m
}

// AssertDrops fails the test unless, since before, exactly these reasons rose, by exactly this much, and the
// account is in balance. Reasons in ignore may have risen as well: neighbour discovery of a kernel goes on by itself.
func (d *Daemon) AssertDrops(t TB, before Metrics, want map[string]uint64, ignore ...string) {
	t.Helper()
	m := d.AssertConserved(t).Sub(before)
	got := m.Dropped()
	for _, reason := range ignore {
		if _, asked := want[reason]; !asked {
			delete(got, reason)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("penstockd on %s dropped %v, and should have dropped %v\n%s", d.Node.Name, got, want, m.Account())
	}
}
