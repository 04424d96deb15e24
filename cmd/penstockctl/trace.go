package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

const notOurs = "it would not come to Penstock"

func (t *tool) trace() *cobra.Command {
	var r control.TraceRequest
	c := &cobra.Command{
		Use:   "trace SRC DST",
		Short: "Say step by step what would happen to a packet, without sending it",
		Long: `Say step by step what would happen to a packet, without sending it.

SRC and DST are addresses, or pods of this node (container/interface, owner or device; the
first 8 characters of the container do). The packet comes from whoever has SRC: a pod
of this node, a peer (then it is judged as it arrives from the wire), or else the host; --from says otherwise, for instance to see
whether a pod may send with an address that is not its own. It is forwarded by the daemon's own code and table, on a worker whose ports
and sockets lead nowhere; no counter moves.

Exit status 6 if it would be dropped, or if the host's stack does not send it to the daemon.`,
		Example: "  penstockctl trace 10.244.1.5 10.244.2.7 --proto tcp --dport 80\n  penstockctl trace default/web-0 10.244.2.7 --size 1500 --df\n  penstockctl trace 10.244.9.9 10.244.2.7 --from default/web-0",
		Args:    takes(2, 2),
		RunE: func(c *cobra.Command, args []string) error {
			r.Src, r.Dst = args[0], args[1]
			if err := checkTrace(r); err != nil {
				return err
			}
			return t.daemon(c, func(ctx context.Context, client *control.Client) error {
				a, err := client.Trace(ctx, r)
				if err != nil {
					return err
				}
				if t.output == "json" {
					err = t.json(a)
				} else {
					t.printTrace(r, a)
				}
				if err == nil && a.Outcome == control.OutcomeElsewhere {
					err = &verdict{exitNo, notOurs}
				}
				if err == nil && a.Reason != "" {
					err = &verdict{exitNo, "it would be dropped: " + a.Reason}
				}
				return err
			})
		},
		ValidArgsFunction: t.completeOne(func(ctx context.Context, client *control.Client) (names []string, err error) {
			ports, err := client.Ports(ctx)
			for _, p := range ports {
				names = append(names, p.Container+"/"+p.Interface)
			}
			return names, err
		}),
	}
	c.Flags().StringVar(&r.Proto, "proto", "icmp", "tcp, udp or icmp")
	c.Flags().Uint16Var(&r.Sport, "sport", 40000, "source port")
	c.Flags().Uint16Var(&r.Dport, "dport", 80, "destination port")
	c.Flags().IntVar(&r.Size, "size", 100, "bytes of the IP packet")
	c.Flags().IntVar(&r.TTL, "ttl", 64, "TTL or hop limit")
	c.Flags().BoolVar(&r.DF, "df", false, "IPv4: it may not be fragmented")
	c.Flags().StringVar(&r.From, "from", "", "who sends it: a pod, \"peer NAME\" or host (default: whoever has SRC)")
	c.RegisterFlagCompletionFunc("proto", cobra.FixedCompletions([]string{"tcp", "udp", "icmp"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// checkTrace finds what no packet has, in either family; the rest only the daemon can judge.
func checkTrace(r control.TraceRequest) error {
	if err := oneOf("--proto", r.Proto, "tcp", "udp", "icmp"); err != nil {
		return err
	}
	least := map[string]int{"tcp": 40, "udp": 28, "icmp": 28}[r.Proto]
	switch {
	case r.Size < least || r.Size > 65535:
		return misused("--size %d is impossible: %s packets have %d to 65535 bytes", r.Size, r.Proto, least)
	case r.TTL < 1 || r.TTL > 255:
		return misused("--ttl %d is impossible: give 1 to 255", r.TTL)
	}
	return nil
}

func (t *tool) printTrace(r control.TraceRequest, a control.Trace) {
	ports := ""
	if r.Proto != "icmp" {
		ports = fmt.Sprintf(" %d → %d", r.Sport, r.Dport)
	}
	fmt.Fprintf(t.out, "%s → %s, %s%s, %d bytes, TTL %d, from %s\n\n", a.Src, a.Dst, r.Proto, ports, r.Size, r.TTL, a.Origin)
	steps := &table{out: t.out, flexible: 2, bare: true, wrap: true}
	for i, s := range a.Steps {
		steps.row(fmt.Sprintf("%2d", i+1), s.Name, s.Text)
	}
	steps.print()
	outcome := map[string]string{"to-peer": "it would be sent to the peer", "to-pod": "it would be delivered to the pod", "to-host": "it would be handed to the host",
		"dropped": t.colour(red, "it would be dropped: "+a.Reason), control.OutcomeElsewhere: t.colour(red, notOurs)}[a.Outcome]
	fmt.Fprintf(t.out, "\n%s\n", outcome)
}
