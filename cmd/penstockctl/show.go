package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

// show is a command without arguments that gets something from the daemon and prints it as JSON or by hand.
func show[T any](t *tool, use, short, wrap string, get func(*control.Client, context.Context) (T, error), print func(T)) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: takes(0, 0), RunE: func(c *cobra.Command, _ []string) error {
		return t.daemon(c, func(ctx context.Context, client *control.Client) error {
			v, err := get(client, ctx)
			if err != nil {
				return err
			}
			if t.output == "json" {
				if wrap == "" {
					return t.json(v)
				}
				return t.json(map[string]T{wrap: v})
			}
			print(v)
			return nil
		})
	}}
}

func (t *tool) json(v any) error {
	e := json.NewEncoder(t.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (t *tool) ports() *cobra.Command {
	return show(t, "ports", "List the attached pods", "ports", (*control.Client).Ports, func(ports []control.Port) {
		p := &table{out: t.out, head: []string{"CONTAINER", "IF", "DEVICE", "ATTACH", "ADDRESSES", "MTU", "FROM", "BYTES", "TO", "BYTES", "DROPPED", "SEEN"}, flexible: 0, least: leastContainer}
		for _, o := range ports {
			traffic := []string{count(o.Received.Packets), count(o.Received.Bytes), count(o.Sent.Packets), count(o.Sent.Bytes), count(o.Dropped + o.RingDrops), ago(o.LastSeen)}
			if o.Attach == control.AttachRouted { // the host's stack carries it: nobody counts
				traffic = []string{"-", "-", "-", "-", "-", "-"}
			}
			p.row(append([]string{o.Container, o.Interface, cmp.Or(o.Device, "-"), o.Attach, addresses(o.Addresses), strconv.Itoa(o.MTU)}, traffic...)...)
		}
		p.print()
	})
}

func (t *tool) peers() *cobra.Command {
	return show(t, "peers", "List the other nodes", "peers", (*control.Client).Peers, func(peers []control.Peer) {
		p := &table{out: t.out, head: []string{"NAME", "ADDRESS", "PODS", "ENCAP", "MTU", "FROM", "BYTES", "TO", "BYTES", "DROPPED", "SEEN"}, flexible: 2}
		for _, o := range peers {
			encap := o.Encap
			if o.Port != 0 {
				encap += ":" + strconv.Itoa(int(o.Port))
			}
			if o.VNI != 0 {
				encap += " vni " + strconv.Itoa(int(o.VNI))
			}
			if o.Native != nil && o.Native.Carrier != "none" {
				encap += ", native " + o.Native.Carrier
			}
			p.row(o.Name, o.Address.String(), prefixes(o.PodCIDRs), encap, strconv.Itoa(o.MTU), count(o.Received.Packets), count(o.Received.Bytes),
				count(o.Sent.Packets), count(o.Sent.Bytes), count(o.Dropped), ago(o.LastSeen))
		}
		p.print()
	})
}

func (t *tool) routes() *cobra.Command {
	return show(t, "routes", "List where packets go; what no route covers goes to the host", "routes", (*control.Client).Routes, func(routes []control.Route) {
		r := &table{out: t.out, head: []string{"PREFIX", "KIND", "VIA"}, flexible: 2}
		for _, o := range routes {
			r.row(o.Prefix.String(), o.Kind, o.Via)
		}
		r.print()
	})
}

func ago(when *time.Time) string {
	if when == nil {
		return "never"
	}
	return duration(time.Since(*when)) + " ago"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func prefixes(ps []netip.Prefix) string {
	return strings.Join(strs(ps), " ")
}

func addresses(as []netip.Addr) string { return strings.Join(strs(as), " ") }

func strs[T fmt.Stringer](list []T) []string {
	s := make([]string, len(list))
	for i, v := range list {
		s[i] = v.String()
	}
	return s
}

// count keeps a number within five characters: exact up to 99,999, then k, M, G, T with one or no decimal.
func count(n uint64) string {
	if n < 100_000 {
		return strconv.FormatUint(n, 10)
	}
	v := float64(n)
	for _, unit := range "kMGTPE" {
		v /= 1000
		switch {
		case v < 99.95:
			return fmt.Sprintf("%.1f%c", v, unit)
		case v < 999.5:
			return fmt.Sprintf("%.0f%c", v, unit)
		}
	}
	return strconv.FormatUint(n, 10)
}

// duration has one unit, or two for long ones.
func duration(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
