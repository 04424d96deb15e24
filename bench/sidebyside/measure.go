package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/penstock-net/penstock/bench/load"
)

// sample is one run: figures by the names of metrics.go.
type sample map[string]float64

// warmUp lets TCP find its rate, and daemons and receivers their feet. It is not measured.
const warmUp = 300 * time.Millisecond

// way is one direction of a run.
type way struct {
	send, take *load.Agent
	took, gave [2]load.Mark // of the receiver, of the sender: where the measured time begins and ends
}

// measure makes one run of a load in a network.
func measure(ctx context.Context, n *network, b burden, o options, seconds float64) (s sample, err error) {
	if b.Shape == idle {
		return measureIdle(ctx, n, seconds)
	}
	if o.tool != "" {
		return byTool(ctx, n, b, o, seconds)
	}
	var ways []*way
	for from := range 2 {
		if b.Both || (from == 1) == b.Back {
			ways = append(ways, &way{send: n.send[from], take: n.take[1-from]})
			w := ways[len(ways)-1]
			// Whatever happens, the next run finds idle processes.
			defer func() {
				if err != nil {
					w.send.Stop()
					w.take.Stop()
				}
			}()
			if err := n.start(w, from, b, o); err != nil {
				return nil, err
			}
		}
	}
	if err := pause(ctx, warmUp); err != nil {
		return nil, err
	}
	cpu, err := load.ReadCPU()
	if err != nil {
		return nil, err
	}
	if err := marks(ways, 0); err != nil {
		return nil, err
	}
	if err := pause(ctx, time.Duration(seconds*float64(time.Second))); err != nil {
		return nil, err
	}
	if err := marks(ways, 1); err != nil {
		return nil, err
	}
	after, err := load.ReadCPU()
	if err != nil {
		return nil, err
	}
	return finish(ctx, ways, b, load.CPU{Busy: after.Busy - cpu.Busy, Stolen: after.Stolen - cpu.Stolen})
}

// start opens the receivers of every flow, then the senders to them.
func (n *network) start(w *way, from int, b burden, o options) error {
	to := 1 - from
	var at, dst []load.Flow
	for i := range b.Flows {
		p := i % len(n.pods[to])
		at = append(at, load.Flow{Pod: p, At: netip.AddrPortFrom(n.pods[to][p].IP4, 0)})
	}
	ports, err := w.take.Start(load.Job{Kind: b.Kinds[1], Flows: at, Sizes: b.Sizes, TCP: o.tcp})
	if err != nil {
		return err
	}
	for i, f := range at {
		dst = append(dst, load.Flow{Pod: i % len(n.pods[from]), At: netip.AddrPortFrom(f.At.Addr(), ports[i])})
	}
	_, err = w.send.Start(load.Job{Kind: b.Kinds[0], Flows: dst, Sizes: b.Sizes, Burst: o.burst, TCP: o.tcp})
	return err
}

func marks(ways []*way, i int) (err error) {
	for _, w := range ways {
		if w.took[i], err = w.take.Mark(); err != nil {
			return err
		}
		if w.gave[i], err = w.send.Mark(); err != nil {
			return err
		}
	}
	return nil
}

// finish stops the run and computes its figures.
func finish(ctx context.Context, ways []*way, b burden, used load.CPU) (sample, error) {
	s := sample{}
	var packets, bytes, asked float64
	var sent, received uint64
	for _, w := range ways {
		end, err := w.send.Stop()
		if err != nil {
			return nil, err
		}
		if b.Shape == datagrams { // what is in queues still counts as delivered, for the loss
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return nil, err
			}
		}
		got, err := w.take.Stop()
		if err != nil {
			return nil, err
		}
		if text := end.Failed + got.Failed; text != "" {
			return nil, errors.New(text)
		}
		took := (w.took[1].Time - w.took[0].Time).Seconds()
		packets += float64(w.took[1].Packets-w.took[0].Packets) / took
		bytes += float64(w.took[1].Bytes-w.took[0].Bytes) / took
		asked += float64(w.gave[1].Packets-w.gave[0].Packets) / (w.gave[1].Time - w.gave[0].Time).Seconds()
		sent, received = sent+end.Packets, received+got.Packets
		if b.Shape == questions {
			s["p50"], s["p99"], s["p999"] = end.P50.Seconds(), end.P99.Seconds(), end.P999.Seconds()
			s["lost"] = float64(end.Lost)
		}
	}
	took := (ways[0].took[1].Time - ways[0].took[0].Time).Seconds()
	cores := used.Busy.Seconds() / took
	s["cores"], s["stolen"] = cores, used.Stolen.Seconds()/took
	rate := 0.0
	switch b.Shape {
	case bulk:
		rate = bytes
		s["rate"] = bytes * 8
	case datagrams:
		rate = packets
		s["rate"], s["offered"] = packets, asked
		s["loss"] = 1 - float64(min(received, sent))/float64(max(sent, 1))
	default:
		rate = asked
		s["rate"] = asked
	}
	if rate == 0 {
		return nil, fmt.Errorf("nothing was delivered")
	}
	s["cpu"] = cores / rate
	return s, nil
}

// A daemon is idle when what a hundred new devices and their pods say (router solicitations, for 12 s) is over, and a second would
// show either nothing or one garbage collection. A minute has all that is done now and then in it.
const (
	idleAfter = 15 * time.Second
	idleFor   = 60 * time.Second
)

// measureIdle reads what the first node's daemon holds and uses while nothing happens.
func measureIdle(ctx context.Context, n *network, seconds float64) (sample, error) {
	pid := n.lab.Nodes[0].Daemon.Process.Pid()
	if wait := idleAfter - time.Since(n.made); wait > 0 {
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
	before, err := processTime(pid)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := pause(ctx, max(idleFor, time.Duration(seconds*float64(time.Second)))); err != nil {
		return nil, err
	}
	after, err := processTime(pid)
	if err != nil {
		return nil, err
	}
	s := sample{"idlecpu": (after - before).Seconds() / time.Since(begin).Seconds()}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			s["memory"] = kib * 1024
		}
	}
	sockets, err := socketMemory(n)
	s["memory"] += sockets
	return s, err
}

// processTime is what all threads of a process have run; in nanoseconds, unlike /proc/PID/stat.
func processTime(pid int) (sum time.Duration, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("process %d has no threads: %w", pid, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		ns, _, _ := strings.Cut(string(b), " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", f, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}

// socketMemory is what sockets of the first node's namespace hold: receive queues of packet sockets, and pages
// of UDP. Mapped rings are in VmRSS.
func socketMemory(n *network) (float64, error) {
	b, err := n.lab.Nodes[0].ReadProc("net/packet")
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for i, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); i > 0 && len(f) > 6 {
			rmem, _ := strconv.ParseFloat(f[6], 64)
			sum += rmem
		}
	}
	if b, err = n.lab.Nodes[0].ReadProc("net/udp"); err != nil {
		return 0, err
	}
	for i, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); i > 0 && len(f) > 4 {
			_, rx, _ := strings.Cut(f[4], ":")
			q, _ := strconv.ParseInt(rx, 16, 64)
			sum += float64(q)
		}
	}
	return sum, nil
}

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
