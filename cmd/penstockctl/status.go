package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

func (t *tool) status() *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the node, its health and rates, and what the kernel offers",
		Long: `Show the node, its health and rates, and what the kernel offers: each capability, whether it was found and is used, and why not.

With --wait it first waits until the daemon is ready, also for one that is not there yet; if it is not ready in that time the exit
status is 6, or 3 if it cannot be reached or does not answer. The rates of the table are measured over a quarter of a second; with -o json there are
the counters themselves.`,
		Example: "  penstockctl status --wait 60s",
		Args:    takes(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			if wait < 0 {
				return misused("--wait %s is negative: give how long to wait, such as 60s", wait)
			}
			if wait > 0 {
				if err := t.waitReady(c.Context(), wait); err != nil {
					return err
				}
			}
			return t.daemon(c, func(ctx context.Context, client *control.Client) error {
				s, err := client.Status(ctx)
				if err != nil {
					return err
				}
				if t.output == "json" {
					return t.json(s)
				}
				began := time.Now()
				select {
				case <-time.After(250 * time.Millisecond):
				case <-ctx.Done():
				}
				later, err := client.Status(ctx)
				if err != nil {
					return err
				}
				t.printStatus(later, s.Traffic, time.Since(began).Seconds())
				return nil
			})
		},
	}
	c.Flags().DurationVar(&wait, "wait", 0, "wait this long for the daemon to be ready")
	return c
}

// waitReady returns when the daemon is ready, or says why it is not.
func (t *tool) waitReady(ctx context.Context, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	client := control.New(t.socket)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := error(nil)
	for {
		s, err := client.Status(ctx)
		// The end of the wait may cut an attempt short, before or after ctx has it: what came before says more.
		late := ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
		unreachable := errors.Is(err, control.ErrUnreachable)
		switch {
		case err == nil && s.Ready:
			return nil
		case err == nil:
			last = &verdict{exitNo, fmt.Sprintf("penstockd is not ready after %s: %s", wait, s.Reason)}
		case !late && (last == nil || unreachable):
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) { // Ctrl-C, and not the end of the wait
				return fmt.Errorf("the wait for penstockd on %s was broken off", t.socket)
			}
			if last == nil {
				last = &verdict{exitUnreachable, fmt.Sprintf("penstockd on %s did not answer within %s: look why with journalctl -u penstockd -n 50", t.socket, wait)}
			}
			return last
		}
	}
}

func (t *tool) printStatus(s control.Status, before control.TotalTraffic, seconds float64) {
	ready := "yes"
	if !s.Ready {
		ready = "no: " + s.Reason
		fmt.Fprintln(t.out, t.colour(red, "not ready: "+s.Reason)+"\n")
	}
	if s.State != nil {
		fmt.Fprintln(t.out, t.colour(red, "no pod can be added: "+s.State.String())+"\n")
	}
	for _, why := range s.Unopened {
		fmt.Fprintln(t.out, t.colour(yellow, why)+"\n")
	}
	encap := s.Encap
	if s.Port != 0 {
		encap += fmt.Sprintf(", port %d", s.Port)
	}
	if s.Encap == "vxlan" {
		encap += fmt.Sprintf(", VNI %d, VTEP MAC %s", s.VNI, s.VTEPMAC)
	}
	config := s.Config
	if s.Rejected != "" {
		config += "; its last reload was rejected: " + strings.ReplaceAll(s.Rejected, "\n", "; ")
	}
	pods := fmt.Sprintf("%s, MTU %d, %d attached", prefixes(s.PodCIDRs), s.MTU, s.Ports)
	if s.Failed > 0 {
		pods += fmt.Sprintf(", %d without network (penstockctl pods)", s.Failed)
	}
	now := s.Traffic
	facts := &table{out: t.out, flexible: 1, bare: true}
	for _, f := range [][2]string{
		{"node", s.Node},
		{"ready", ready},
		{"address", fmt.Sprintf("%s on %s, MTU %d", s.Address, s.Underlay, s.UnderlayMTU)},
		{"encap", encap},
		{"pods", pods},
		{"cluster", fmt.Sprintf("%s, %s", prefixes(s.ClusterCIDRs), counted(s.Peers, "peer"))},
		{"rates", fmt.Sprintf("%s frames/s and %sbit/s forwarded, %s frames/s dropped", rate(grew(before.Forwarded.Packets, now.Forwarded.Packets, seconds)),
			rate(8*grew(before.Forwarded.Bytes, now.Forwarded.Bytes, seconds)), rate(grew(before.Dropped, now.Dropped, seconds)))},
		{"so far", fmt.Sprintf("%s frames received, %s forwarded, %s dropped", count(now.Received), count(now.Forwarded.Packets), count(now.Dropped))},
		{"daemon", fmt.Sprintf("%s, up %s, %s, %s, log level %s", s.Version, duration(time.Duration(s.UptimeSeconds)*time.Second), counted(s.Workers, "worker"), s.Device, s.LogLevel)},
		{"configuration", config},
	} {
		facts.row(f[0], f[1])
	}
	facts.print()
	fmt.Fprintln(t.out)
	caps := &table{out: t.out, head: []string{"CAPABILITY", "FOUND", "USED", "DETAIL"}, flexible: 3}
	for _, c := range s.Capabilities {
		detail := c.Detail
		if !c.Found && c.Needs != "" {
			detail = strings.Trim(detail+"; needs "+c.Needs, "; ")
		}
		caps.row(c.Name, yes(c.Found), yes(c.Used), detail)
	}
	caps.print()
}

func (t *tool) fdb() *cobra.Command {
	return show(t, "fdb", "List the VTEPs that vxlan frames go to, by MAC", "fdb", (*control.Client).FDB, func(list []control.FDBEntry) {
		p := &table{out: t.out, head: []string{"MAC", "VNI", "ADDRESS", "PORT", "PEER"}, flexible: 4}
		for _, o := range list {
			p.row(o.MAC, fmt.Sprint(o.VNI), o.Address.String(), fmt.Sprint(o.Port), o.Peer)
		}
		p.print()
	})
}
