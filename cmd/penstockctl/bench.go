package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

func (t *tool) bench() *cobra.Command {
	var took time.Duration
	c := &cobra.Command{
		Use:   "bench PEER",
		Short: "Measure latency, datagrams a second, throughput and loss to a peer, through the overlay",
		Long: `Measure latency, datagrams a second, throughput and loss to a peer, through the overlay.

The daemons of both nodes do it with packets from host to host, by the way that pods' packets take: a third of --time for each
of latency (one small packet there and back at a time), small datagrams, and datagrams as large as fit. The last two go one way
as fast as they are taken, with a bounded number on the way, so that what is lost is lost by the network. Sending and counting
cost both nodes CPU besides forwarding: pods with cores to spare get more. It competes with the pods' traffic meanwhile.`,
		Args: takes(1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if most := control.MaxBench * time.Millisecond; took < 100*time.Millisecond || took > most {
				return misused("--time %s is out of range: give 100ms to %s", took, most)
			}
			t.timeout += took
			return t.daemon(c, func(ctx context.Context, client *control.Client) error {
				b, err := client.Bench(ctx, control.BenchRequest{Peer: args[0], Milliseconds: took.Milliseconds()})
				if err != nil {
					return err
				}
				if t.output == "json" {
					return t.json(b)
				}
				t.printBench(b)
				return nil
			})
		},
		ValidArgsFunction: t.completePeer,
	}
	c.Flags().DurationVar(&took, "time", 3*time.Second, fmt.Sprintf("how long to measure, 100ms to %ds", control.MaxBench/1000))
	return c
}

func (t *tool) printBench(b control.Bench) {
	fmt.Fprintf(t.out, "%s, by its host's address %s\n\n", b.Peer, b.Host)
	r := &table{out: t.out, head: []string{"WHAT", "BYTES", "SENT", "LOST", "RESULT"}, flexible: 4}
	l := b.Latency
	r.row("latency", fmt.Sprint(l.Size), fmt.Sprint(l.Sent), share(uint64(l.Lost), uint64(l.Sent)), fmt.Sprintf("p50 %s, p99 %s, max %s", micros(l.P50), micros(l.P99), micros(l.Max)))
	for _, f := range []struct {
		name string
		control.BenchFlow
		result string
	}{
		{"datagrams", b.Datagrams, count(uint64(b.Datagrams.PerSecond)) + " datagrams/s"},
		{"bulk", b.Bulk, count(uint64(b.Bulk.BitsSecond)) + "bit/s"},
	} {
		r.row(f.name, fmt.Sprint(f.Size), count(f.Sent), share(f.Sent-min(f.Delivered, f.Sent), f.Sent), f.result)
	}
	r.print()
}

func micros(n int64) string { return (time.Duration(n) * time.Microsecond).String() }

// share of a whole, in percent.
func share(part, whole uint64) string {
	if part == 0 || whole == 0 {
		return "0%"
	}
	return fmt.Sprintf("%.2g%%", 100*float64(part)/float64(whole))
}

// completePeer offers the peers' names.
func (t *tool) completePeer(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	t.daemon(c, func(ctx context.Context, client *control.Client) error {
		peers, err := client.Peers(ctx)
		for _, p := range peers {
			names = append(names, p.Name)
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
