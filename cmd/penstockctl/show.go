package main

import (
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
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
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

func (t *tool) status() *cobra.Command {
	return show(t, "status", "Show the node, its network and what the kernel offers", "", (*control.Client).Status, func(s control.Status) {
		ready := "yes"
		if !s.Ready {
			ready = "no: " + s.Reason
		}
		encap := s.Encap
		if s.Port != 0 {
			encap += fmt.Sprintf(", port %d", s.Port)
		}
		if s.Encap == "vxlan" {
			encap += fmt.Sprintf(", VNI %d, VTEP MAC %s", s.VNI, s.VTEPMAC)
		}
		facts := &table{out: t.out, flexible: 1, bare: true}
		for _, f := range [][2]string{
			{"node", s.Node},
			{"ready", ready},
			{"address", fmt.Sprintf("%s on %s, MTU %d", s.Address, s.Underlay, s.UnderlayMTU)},
			{"encap", encap},
			{"pods", fmt.Sprintf("%s, MTU %d, %d attached", prefixes(s.PodCIDRs), s.MTU, s.Ports)},
			{"cluster", fmt.Sprintf("%s, %d peers", prefixes(s.ClusterCIDRs), s.Peers)},
			{"daemon", fmt.Sprintf("%s, up %s, %d workers, %s, log level %s", s.Version, duration(time.Duration(s.UptimeSeconds)*time.Second), s.Workers, s.Device, s.LogLevel)},
			{"configuration", s.Config},
		} {
			facts.row(f[0], f[1])
		}
		facts.print()
		fmt.Fprintln(t.out)
		caps := &table{out: t.out, head: []string{"CAPABILITY", "FOUND", "USED", "DETAIL"}, flexible: 3}
		for _, c := range s.Capabilities {
			detail := c.Detail
			if !c.Found && c.Needs != "" {
				detail = strings.Trim("needs "+c.Needs+"; "+detail, "; ")
			}
			caps.row(c.Name, yes(c.Found), yes(c.Used), detail)
		}
		caps.print()
	})
}

func (t *tool) ports() *cobra.Command {
	return show(t, "ports", "List the attached pods", "ports", (*control.Client).Ports, func(ports []control.Port) {
		p := &table{out: t.out, head: []string{"CONTAINER", "IF", "DEVICE", "ATTACH", "ADDRESSES", "MTU", "SENT", "GOT", "DROPPED"}, flexible: 0}
		for _, o := range ports {
			p.row(o.Container, o.Interface, o.Device, o.Attach, addresses(o.Addresses), strconv.Itoa(o.MTU),
				count(o.Received.Packets), count(o.Sent.Packets), count(o.Dropped+o.RingDrops))
		}
		p.print()
	})
}

func (t *tool) peers() *cobra.Command {
	return show(t, "peers", "List the other nodes", "peers", (*control.Client).Peers, func(peers []control.Peer) {
		p := &table{out: t.out, head: []string{"NAME", "ADDRESS", "PODS", "ENCAP", "MTU", "SENT", "GOT", "DROPPED", "SEEN"}, flexible: 0}
		for _, o := range peers {
			encap := o.Encap
			if o.Port != 0 {
				encap += ":" + strconv.Itoa(int(o.Port))
			}
			if o.Native != nil && o.Native.Carrier != "none" {
				encap += ", native " + o.Native.Carrier
			}
			seen := "never"
			if o.LastSeen != nil {
				seen = duration(time.Since(*o.LastSeen)) + " ago"
			}
			p.row(o.Name, o.Address.String(), prefixes(o.PodCIDRs), encap, strconv.Itoa(o.MTU), count(o.Sent.Packets), count(o.Received.Packets), count(o.Dropped), seen)
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

func (t *tool) drops() *cobra.Command {
	return show(t, "drops", "List why frames were dropped, and what to do about it", "drops", (*control.Client).Drops, func(drops []control.Drop) {
		if len(drops) == 0 {
			fmt.Fprintln(t.out, "nothing was dropped")
			return
		}
		d := &table{out: t.out, head: []string{"REASON", "FRAMES", "MEANING"}, flexible: 2, wrap: true}
		for _, o := range drops {
			d.row(o.Reason, strconv.FormatUint(o.Packets, 10), o.Meaning)
			if o.Remedy != "" {
				d.row("", "", "→ "+o.Remedy)
			}
		}
		d.print()
	})
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
