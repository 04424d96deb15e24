package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script is a program that does this.
func script(t *testing.T, path, lines string) string {
	if path == "" {
		path = filepath.Join(t.TempDir(), "tool")
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+lines+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a namespace of processes needs root")
	}
}

func TestTool(t *testing.T) {
	needRoot(t)
	s, err := runTool(t.Context(), script(t, "", `echo "rate 1.5e9"; echo; echo "p50 $LOAD"`), questions, time.Second, "LOAD=0.00002")
	if err != nil || len(s) != 2 || s["rate"] != 1.5e9 || s["p50"] != 2e-5 {
		t.Errorf("%v, %v", s, err)
	}
	for _, c := range []struct {
		lines string
		shape shape
		want  string
	}{
		{"true", bulk, "no rate above 0"},
		{"echo rate 0", bulk, "no rate above 0"},
		{"echo rate 5", questions, "no p50 above 0"},
		{"echo rate", bulk, `printed "rate", which is no line`},
		{"echo rate fast", bulk, `printed "rate fast", which is no line`},
		{"echo rate 1 2", bulk, "which is no line"},
		{"echo rate -1", bulk, "which is no line"},
		{"echo rate NaN", bulk, "which is no line"},
		{"echo p50 1", bulk, "a metric (rate, cpu)"},
		{"echo rate 1; echo no server >&2; exit 3", bulk, "exit status 3: no server"},
		{"exit 3", bulk, "exit status 3: it said nothing"},
	} {
		if s, err := runTool(t.Context(), script(t, "", c.lines), c.shape, time.Second); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, %v, want %q", c.lines, s, err, c.want)
		}
	}
}

// TestToolEnds: what a program leaves running, even in a session of its own and with the program's output, ends with it, and so does one that does not end by itself.
func TestToolEnds(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		lines string
		limit time.Duration
		fails bool
	}{
		{"echo rate 1", time.Minute, false},
		{"sleep 1000", time.Second, true},
	} {
		name := fmt.Sprintf("600.%d", time.Now().UnixNano()) // by which it is found
		ctx, stop := context.WithTimeout(t.Context(), c.limit)
		_, err := runTool(ctx, script(t, "", "setsid sleep "+name+" &\n"+c.lines), bulk, time.Second)
		stop()
		if (err != nil) != c.fails {
			t.Errorf("%q: %v", c.lines, err)
		}
		if out, _ := exec.Command("pgrep", "-f", "^sleep "+name).Output(); len(out) > 0 {
			t.Errorf("%q: what it had started outlives it: %s", c.lines, out)
		}
	}
}

func TestCheckTool(t *testing.T) {
	tool := script(t, "", "")
	one := []cell{{Subject: baseline, Burden: burden{Name: "tcp-1"}}}
	for _, c := range []struct {
		o     options
		cells []cell
		want  string
	}{
		{options{tool: tool, burst: 1}, one, ""},
		{options{tool: "/no/such/tool", burst: 1}, one, "/no/such/tool"},
		{options{tool: tool, burst: 1, weight: 100}, one, "leave them out"},
		{options{tool: tool, burst: 2}, one, "leave them out"},
		{options{tool: tool, burst: 1}, append(one, cell{Subject: baseline, Burden: burden{Name: "tcp-4-both", Both: true}}), "tcp-4-both: choose other cells"},
	} {
		if err := checkTool(c.o, c.cells); c.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

// TestTools runs the programs of bench/tools against others that say what iperf3 and sockperf have said.
func TestTools(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	args := filepath.Join(dir, "args")
	script(t, filepath.Join(dir, "nsenter"), `echo "$1" "$2" "$3" "$4" >>`+args+`; shift; exec "$@"`)
	script(t, filepath.Join(dir, "ss"), "echo LISTEN")
	script(t, filepath.Join(dir, "iperf3"), `[ "$1" = --server ] && exec sleep 60
cat <<'END'
{ "intervals": [ { "sum": { "bits_per_second": 1.0 } } ],
	"end":	{
		"sum_sent":	{
			"bits_per_second":	7840000000.5
		},
		"sum_received":	{
			"seconds":	1.000115,
			"bits_per_second":	7830099999.3744469,
			"sender":	true
		}
	} }
END`)
	script(t, filepath.Join(dir, "sockperf"), `[ "$1" = server ] && exec sleep 60
cat <<'END'
sockperf: [Valid Duration] RunTime=0.550 sec; SentMessages=4461; ReceivedMessages=4460
sockperf: Summary: Round trip is 121.163 usec
sockperf: ---> percentile 99.990 =  600.000
sockperf: ---> percentile 99.900 =  353.800
sockperf: ---> percentile 99.000 =  226.319
sockperf: ---> percentile 50.000 =  117.536
END`)
	env := func(load string, back bool) []string {
		return append(toolEnv("/from", "/to", "10.0.0.1", burden{Name: load, Back: back}, "bbr", 1.5), "PATH="+dir+":"+os.Getenv("PATH"))
	}
	s, err := runTool(t.Context(), "../tools/iperf3", bulk, time.Second, env("tcp-4-back", true)...)
	if err != nil || len(s) != 1 || s["rate"] != 7830099999.3744469 {
		t.Errorf("iperf3: %v, %v", s, err)
	}
	s, err = runTool(t.Context(), "../tools/sockperf", questions, time.Second, env("rr-udp", false)...)
	if err != nil || len(s) != 4 || s["p50"] != 0.000117536 || s["p99"] != 0.000226319 || s["p999"] != 0.0003538 || int(s["rate"]) != 8109 {
		t.Errorf("sockperf: %v, %v", s, err)
	}
	b, _ := os.ReadFile(args)
	for _, want := range []string{"--net=/to iperf3 --server", "--net=/from iperf3 --client 10.0.0.1", "--net=/to sockperf server", "--net=/from sockperf ping-pong"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is not among\n%s", want, b)
		}
	}
	for tool, load := range map[string]string{"iperf3": "rr-udp", "sockperf": "tcp-1"} {
		if _, err := runTool(t.Context(), "../tools/"+tool, bulk, time.Second, env(load, false)...); err == nil || !strings.Contains(err.Error(), "choose cells") {
			t.Errorf("%s with %s: %v", tool, load, err)
		}
	}
}
