package daemon

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/penstock-net/penstock/docs/pages"
	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
)

// everyMetric is a scrape of a daemon that has one of everything.
func everyMetric(t *testing.T) (*prometheus.Registry, map[string]*dto.MetricFamily) {
	t.Helper()
	f := newFake()
	f.counters = forwarder.Counters{
		SwitchedOff: map[string]uint64{"udpSegment": 1}, Received: map[string]uint64{"pod": 1}, Generated: map[string]uint64{"icmp": 1}, Dropped: map[string]uint64{"no_route": 1},
		Forwarded: map[forwarder.ForwardedKey]forwarder.Volume{{Direction: "wire", Encap: "vxlan"}: {Packets: 1, Bytes: 100}},
		Batches:   forwarder.Sizes{UpTo: [11]uint64{1, 0, 2}, Count: 4, Sum: 5000},
		Workers:   []forwarder.WorkerCounters{{Turns: 5, Asleep: true, CPU: time.Second}},
		Peers:     []forwarder.PeerCounters{{Name: "b", Address: "192.0.2.2", MTU: 1450, Native: &forwarder.NativeStatus{Carrier: "udp"}}},
		Ports:     []forwarder.PortCounters{{Container: "c1", Interface: "eth0", Device: "ve1"}},
	}
	r := run(t, f, peerB)
	if _, err := r.client.Attach(t.Context(), request("c1", "ve1", "10.244.1.2")); err != nil {
		t.Fatal(err)
	}
	if err := r.client.Detach(t.Context(), control.DetachRequest{}); err == nil {
		t.Fatal("an empty request was taken")
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(r.Daemon), r.timed.operations)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, m := range families {
		byName[m.GetName()] = m
	}
	return registry, byName
}

// gauge is the value of a metric without labels.
func gauge(t *testing.T, r *running, name string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(r.Daemon))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families {
		if m.GetName() == name {
			return m.Metric[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

// TestMonitoringNames: the names keep to Prometheus' rules, and nothing that is described is missing from a scrape.
func TestMonitoringNames(t *testing.T) {
	registry, families := everyMetric(t)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, d := range newCollector(&Daemon{}).descs {
		name := regexp.MustCompile(`fqName: "([^"]+)"`).FindStringSubmatch(d.String())[1]
		if families[name] == nil {
			t.Errorf("%s is described and not collected", name)
		}
	}
	batch := families["penstock_batch_packets"].Metric[0].GetHistogram()
	if batch.GetSampleCount() != 4 || batch.GetSampleSum() != 5000 || batch.Bucket[2].GetCumulativeCount() != 3 || batch.Bucket[2].GetUpperBound() != 4 {
		t.Errorf("batches: %v", batch)
	}
	if n := len(families["penstock_cni_operation_duration_seconds"].Metric); n != len(verbs)+1 {
		t.Errorf("%d series of operations, want one for each verb and one for what failed", n)
	}
}

// TestMonitoringTable: docs/operations.md has every metric with its labels and meaning.
func TestMonitoringTable(t *testing.T) {
	_, families := everyMetric(t)
	table := pages.NewTable("metric", "type", "meaning")
	for _, name := range slices.Sorted(maps.Keys(families)) {
		m := families[name]
		var labels []string
		for _, l := range m.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		if len(labels) > 0 {
			name += "{" + strings.Join(labels, ",") + "}"
		}
		table.Row("`"+name+"`", strings.ToLower(m.GetType().String()), m.GetHelp())
	}
	pages.Open(t, "operations.md").Keep("metrics", table.String())
}

// TestMonitoringRules: Prometheus' own checker takes the alert rules, and they, like the dashboard, ask for metrics and labels that are there.
func TestMonitoringRules(t *testing.T) {
	_, families := everyMetric(t)
	groups, errs := rulefmt.ParseFile("../../docs/monitoring/alerts.yaml", false, model.LegacyValidation)
	for _, err := range errs {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	manual := pages.Open(t, "operations.md").Text()
	there := map[string]bool{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			there[r.Alert] = true
			asks(t, r.Alert, r.Expr, families)
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
				t.Errorf("%s does not say what to do, or how bad it is", r.Alert)
			}
			if !strings.Contains(manual, "`"+r.Alert+"`") {
				t.Errorf("docs/operations.md does not name %s", r.Alert)
			}
		}
	}
	for _, m := range regexp.MustCompile("`(Penstock[A-Z][A-Za-z]+)`").FindAllStringSubmatch(manual, -1) {
		if !there[m[1]] {
			t.Errorf("docs/operations.md names an alert %s that there is not", m[1])
		}
	}
}

// TestMonitoringSilentPeers: packets that this node's kernel refuses, or has no route for, are dropped and not sent, and the peer's
// silence is told all the same; a daemon that is down has no series that could be 0.
func TestMonitoringSilentPeers(t *testing.T) {
	groups, _ := rulefmt.ParseFile("../../docs/monitoring/alerts.yaml", false, model.LegacyValidation)
	expr := map[string]string{}
	for _, r := range groups.Groups[0].Rules {
		expr[r.Alert] = r.Expr
	}
	for alert, want := range map[string]string{"PenstockPeerSilent": "penstock_peer_dropped_packets_total", "PenstockDown": "unless penstock_ready"} {
		if !strings.Contains(expr[alert], want) {
			t.Errorf("%s does not ask for %s: %s", alert, want, expr[alert])
		}
	}
}

func TestMonitoringDashboard(t *testing.T) {
	_, families := everyMetric(t)
	b, err := os.ReadFile("../../docs/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	shown := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			shown++
			asks(t, p.Title, strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr), families)
		}
	}
	if shown < 30 {
		t.Errorf("only %d queries: the dashboard is not read as it is written", shown)
	}
}

// asks checks what an expression selects.
func asks(t *testing.T, who, expr string, families map[string]*dto.MetricFamily) {
	t.Helper()
	e, err := parser.ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", who, err)
		return
	}
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		v, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		m := families[v.Name]
		for _, part := range []string{"_bucket", "_count", "_sum"} {
			if base, ok := strings.CutSuffix(v.Name, part); ok && families[base] != nil && families[base].GetType() == dto.MetricType_HISTOGRAM {
				m = families[base]
			}
		}
		if m == nil {
			t.Errorf("%s asks for %s, which the daemon does not have", who, v.Name)
			return nil
		}
		for _, l := range v.LabelMatchers {
			if l.Name != "__name__" && l.Name != "instance" && !slices.ContainsFunc(m.Metric[0].Label, func(p *dto.LabelPair) bool { return p.GetName() == l.Name }) {
				t.Errorf("%s asks %s for the label %s, which it does not have", who, v.Name, l.Name)
			}
		}
		return nil
	})
}
