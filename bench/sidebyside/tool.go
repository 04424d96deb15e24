package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// toolSpare is what a program may take longer than the time that it is to measure.
const toolSpare = 30 * time.Second

// checkTool says what of the options and cells a program of somebody else cannot do, before anything is built.
func checkTool(o options, cells []cell) error {
	if _, err := exec.LookPath(o.tool); err != nil {
		return fmt.Errorf("the program that shall make the traffic cannot be run (%w): name an executable file, such as bench/tools/iperf3", err)
	}
	if o.weight != 0 || o.burst > 1 {
		return fmt.Errorf("groups (WEIGHT) and bursts (BURST) are for the built-in traffic: leave them out, or TOOL")
	}
	for _, c := range cells {
		if b := c.Burden; b.Both || b.Pods > 0 {
			return fmt.Errorf("a program makes traffic from one pod to another, one way, and so not that of %s: choose other cells by ONLY", c.name())
		}
	}
	return nil
}

// byTool has a program of somebody else make the traffic between two pods, so that what this instrument tells can be checked with one that
// everybody knows. The two take turns in the same networks.
func byTool(ctx context.Context, n *network, b burden, o options, seconds float64) (sample, error) {
	from, to := 0, 1
	if b.Back {
		from, to = 1, 0
	}
	path := func(node int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.pods[node][0].FD()) }
	return runTool(ctx, o.tool, b.Shape, time.Duration(seconds*float64(time.Second)), toolEnv(path(from), path(to), n.pods[to][0].IP4.String(), b, o.tcp, seconds)...)
}

// toolEnv is what a program is told, in its environment.
func toolEnv(from, to, address string, b burden, control string, seconds float64) []string {
	return []string{"FROM=" + from, "TO=" + to, "ADDRESS=" + address, "LOAD=" + strings.TrimSuffix(b.Name, "-back"), "CONTROL=" + control,
		"DURATION=" + strconv.Itoa(int(math.Ceil(seconds)))}
}

// runTool runs the program and reads what it has measured. It is the first process of a namespace of processes: nothing that it
// has started outlives it, or us, whatever becomes of either.
func runTool(ctx context.Context, tool string, s shape, duration time.Duration, env ...string) (sample, error) {
	limit := duration + toolSpare
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	var out, wrong bytes.Buffer
	cmd := exec.CommandContext(ctx, tool)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &wrong
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // whose death that signal is about
	err := cmd.Run()
	runtime.UnlockOSThread()
	said := strings.TrimSpace(wrong.String())
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		return nil, fmt.Errorf("%s had not ended after %v, and was killed: %s", tool, limit, orNothing(said))
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %s", tool, err, orNothing(said))
	}
	return parseTool(tool, s, out.String())
}

func orNothing(said string) string {
	if said == "" {
		return "it said nothing"
	}
	return said
}

// parseTool reads lines of a metric's name and its value. The first metric of a shape must be there.
func parseTool(tool string, s shape, out string) (sample, error) {
	var names []string
	for _, m := range metrics[s] {
		names = append(names, m.Name)
	}
	if !slices.Contains(names, "rate") {
		names = append(names, "rate")
	}
	got := sample{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		v, err := strconv.ParseFloat(f[len(f)-1], 64)
		if len(f) != 2 || !slices.Contains(names, f[0]) || err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
			return nil, fmt.Errorf("%s printed %q, which is no line of a metric (%s) and its value", tool, strings.TrimSpace(line), strings.Join(names, ", "))
		}
		got[f[0]] = v
	}
	if first := names[0]; got[first] == 0 {
		return nil, fmt.Errorf("%s printed no %s above 0: nothing was delivered, or not measured", tool, first)
	}
	return got, nil
}
