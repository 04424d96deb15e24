package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

func (t *tool) drops() *cobra.Command {
	var all, watch bool
	var every time.Duration
	c := &cobra.Command{
		Use:   "drops",
		Short: "List why frames were dropped, and what to do about it",
		Long: `List why frames were dropped, and what to do about it, most frequent first.

With --watch the list is drawn anew every --delay with rates (- in the first picture, which has none yet), until q or Ctrl-C. With --all reasons are listed for which nothing was
dropped too, in the order in which a packet meets them.`,
		Args: takes(0, 0),
		RunE: func(c *cobra.Command, _ []string) error {
			get := (*control.Client).Drops
			if all {
				get = (*control.Client).Reasons
			}
			switch {
			case !watch && c.Flags().Changed("delay"):
				return misused("--delay says how often --watch draws: give --watch too, or leave it out")
			case every < 100*time.Millisecond:
				return misused("--delay %s is too short: give 100ms or more", every)
			}
			client := control.New(t.socket)
			before, when := map[string]uint64{}, time.Time{}
			draw := func(ctx context.Context, out *bytes.Buffer) error {
				q, cancel := control.WithTimeout(ctx, t.timeout)
				defer cancel()
				drops, err := get(client, q)
				if err != nil {
					return err
				}
				seconds := 0.0
				if now := time.Now(); !when.IsZero() {
					seconds, when = now.Sub(when).Seconds(), now
				} else {
					when = now
				}
				rated := make([]ratedDrop, len(drops))
				for i, d := range drops {
					rated[i].Drop = d
					if seconds > 0 {
						r := grew(before[d.Reason], d.Packets, seconds)
						rated[i].Rate = &r
					}
					before[d.Reason] = d.Packets
				}
				return t.printDrops(out, rated, watch)
			}
			if watch {
				return t.repeat(c.Context(), every, 0, draw)
			}
			return t.repeat(c.Context(), time.Hour, 1, draw)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "list reasons with no drops too")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "draw again and again, with rates")
	c.Flags().DurationVarP(&every, "delay", "d", time.Second, "with --watch: how often")
	return c
}

// ratedDrop is a reason with how many frames a second it takes.
type ratedDrop struct {
	control.Drop
	Rate *float64 `json:"rate,omitempty"` // nil in the first picture, which has no interval
}

func (t *tool) printDrops(out *bytes.Buffer, drops []ratedDrop, watch bool) error {
	if t.output == "json" {
		if watch { // a line each time
			return json.NewEncoder(out).Encode(map[string]any{"time": time.Now().UTC(), "drops": drops})
		}
		plain := make([]control.Drop, len(drops))
		for i := range drops {
			plain[i] = drops[i].Drop
		}
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"drops": plain})
	}
	if len(drops) == 0 {
		fmt.Fprintln(out, "nothing was dropped")
		return nil
	}
	d := &table{out: out, width: windowWidth(t.out), head: []string{"REASON", "FRAMES", "MEANING"}, flexible: 2, wrap: true}
	if watch {
		d.head, d.flexible = []string{"REASON", "FRAMES", "RATE/s", "MEANING"}, 3
	}
	for _, o := range drops {
		cells := []string{o.Reason, strconv.FormatUint(o.Packets, 10), o.Meaning}
		more := []string{"", "", "→ " + o.Remedy}
		if watch {
			perSecond := "-"
			if o.Rate != nil {
				perSecond = rate(*o.Rate)
			}
			cells = []string{o.Reason, strconv.FormatUint(o.Packets, 10), perSecond, o.Meaning}
			more = []string{"", "", "", "→ " + o.Remedy}
		}
		d.row(cells...)
		if o.Remedy != "" {
			d.row(more...)
		}
	}
	d.print()
	return nil
}
