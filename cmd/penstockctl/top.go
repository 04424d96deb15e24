package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

// flow is the counters of one pod or peer, seen from the network: in comes to it, out from it.
type flow struct {
	out, in control.Traffic
	dropped uint64
}

// rates is what they grew by in a second.
type rates struct {
	Name       string  `json:"name"`
	OutPackets float64 `json:"outPackets"` // from the pod or peer
	OutBits    float64 `json:"outBits"`
	InPackets  float64 `json:"inPackets"` // to the pod or peer
	InBits     float64 `json:"inBits"`
	Dropped    float64 `json:"dropped"`
}

// topPicture is a picture of top as JSON.
type topPicture struct {
	Time    time.Time          `json:"time"`
	Seconds float64            `json:"seconds"` // over which rates are measured
	Pods    []rates            `json:"pods"`
	Peers   []rates            `json:"peers"`
	Drops   map[string]float64 `json:"drops"` // a second, by reason
}

// sample is everything at one moment.
type sample struct {
	when        time.Time
	pods, peers map[string]flow
	dropped     map[string]uint64 // by reason
}

func takeSample(ctx context.Context, client *control.Client) (s sample, err error) {
	s = sample{pods: map[string]flow{}, peers: map[string]flow{}, dropped: map[string]uint64{}}
	ports, err := client.Ports(ctx)
	if err != nil {
		return s, err
	}
	peers, err := client.Peers(ctx)
	if err != nil {
		return s, err
	}
	drops, err := client.Drops(ctx)
	if err != nil {
		return s, err
	}
	s.when = time.Now()
	for _, p := range ports {
		if p.Attach == control.AttachRouted {
			continue // the host's stack carries its packets, and nobody counts them here
		}
		s.pods[cmp.Or(p.Owner, p.Container)+"/"+p.Interface] = flow{p.Received, p.Sent, p.Dropped + p.RingDrops}
	}
	for _, p := range peers {
		s.peers[p.Name] = flow{p.Received, p.Sent, p.Dropped}
	}
	for _, d := range drops {
		s.dropped[d.Reason] = d.Packets
	}
	return s, nil
}

// since is the rates of those that are in both samples, busiest first. Counters that went back are of a daemon that began anew.
func since(before, now map[string]flow, seconds float64) []rates {
	list := []rates{}
	for name, n := range now {
		b := before[name]
		list = append(list, rates{name, grew(b.out.Packets, n.out.Packets, seconds), 8 * grew(b.out.Bytes, n.out.Bytes, seconds),
			grew(b.in.Packets, n.in.Packets, seconds), 8 * grew(b.in.Bytes, n.in.Bytes, seconds), grew(b.dropped, n.dropped, seconds)})
	}
	slices.SortFunc(list, func(a, b rates) int {
		return cmp.Or(cmp.Compare(b.OutBits+b.InBits, a.OutBits+a.InBits), cmp.Compare(b.Dropped, a.Dropped), cmp.Compare(a.Name, b.Name))
	})
	return list
}

func grew(before, now uint64, seconds float64) float64 {
	if now < before || seconds <= 0 {
		return 0
	}
	return float64(now-before) / seconds
}

func (t *tool) top() *cobra.Command {
	var every time.Duration
	var n int
	c := &cobra.Command{
		Use:   "top",
		Short: "Show what each pod and peer sends and receives right now",
		Long: `Show what each pod and peer sends and receives right now, in packets and bits a second, busiest first.

FROM is what comes from the pod or peer, TO what goes to it. On a terminal the picture is drawn anew until q or Ctrl-C; into a pipe,
or with -n, pictures follow each other. A superframe is one packet.`,
		Example: "  penstockctl top\n  penstockctl top -n 1 -d 5s",
		Args:    takes(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case every < 100*time.Millisecond:
				return misused("--delay %s is too short: give 100ms or more", every)
			case n < 0:
				return misused("--iterations %d is negative: give how many pictures, or 0 for no end", n)
			}
			return t.runTop(c.Context(), every, n)
		},
	}
	c.Flags().DurationVarP(&every, "delay", "d", time.Second, "over how long rates are measured")
	c.Flags().IntVarP(&n, "iterations", "n", 0, "end after this many pictures (0: never)")
	return c
}

func (t *tool) runTop(ctx context.Context, every time.Duration, n int) error {
	client := control.New(t.socket)
	var before sample
	return t.repeat(ctx, every, n, func(ctx context.Context, out *bytes.Buffer) error {
		q, cancel := control.WithTimeout(ctx, t.timeout)
		defer cancel()
		now, err := takeSample(q, client)
		if err != nil {
			return err
		}
		old := before
		before = now
		if old.when.IsZero() {
			if t.terminal() && n == 0 && t.output != "json" {
				fmt.Fprintln(out, "measuring …")
			}
			return nil
		}
		seconds := now.when.Sub(old.when).Seconds()
		pods, peers := since(old.pods, now.pods, seconds), since(old.peers, now.peers, seconds)
		if t.output == "json" {
			return json.NewEncoder(out).Encode(topPicture{now.when.UTC(), seconds, pods, peers, dropRates(old, now)})
		}
		for i, list := range [][]rates{pods, peers} {
			if i > 0 {
				fmt.Fprintln(out)
			}
			p := &table{out: out, width: windowWidth(t.out), flexible: 0,
				head: []string{[]string{"POD", "PEER"}[i], "FROM pkt/s", "FROM bit/s", "TO pkt/s", "TO bit/s", "DROPS/s"}}
			for _, r := range list {
				p.row(r.Name, rate(r.OutPackets), rate(r.OutBits), rate(r.InPackets), rate(r.InBits), rate(r.Dropped))
			}
			p.print()
		}
		for reason, r := range dropRates(old, now) {
			if r > 0 {
				fmt.Fprintf(out, "\n%s", t.colour(yellow, fmt.Sprintf("dropping %s/s as %s", rate(r), reason)))
			}
		}
		fmt.Fprintln(out)
		return nil
	})
}

func dropRates(old, now sample) map[string]float64 {
	m := map[string]float64{}
	for reason, n := range now.dropped {
		m[reason] = grew(old.dropped[reason], n, now.when.Sub(old.when).Seconds())
	}
	return m
}

// rate has one decimal where there is little.
func rate(v float64) string {
	if v > 0 && v < 10 {
		return fmt.Sprintf("%.1f", v)
	}
	return count(uint64(v + 0.5))
}
