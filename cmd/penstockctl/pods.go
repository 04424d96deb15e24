package main

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-net/penstock/forwarder/control"
)

func (t *tool) pods() *cobra.Command {
	return show(t, "pods", "List the pods on record, attached or not", "pods", (*control.Client).Pods, func(pods []control.Pod) {
		p := &table{out: t.out, head: []string{"CONTAINER", "IF", "OWNER", "NETWORK", "PHASE", "ATTACH", "DEVICE", "ADDRESSES", "MTU", "LIMITS", "AGE"}, flexible: 0, least: leastContainer}
		var problems []string
		for _, o := range pods {
			p.row(o.Container, o.Interface, cmp.Or(o.Owner, "-"), cmp.Or(o.Network, "-"), o.Phase, o.Attach, cmp.Or(o.Device, "-"), addresses(o.Addresses),
				strconv.Itoa(o.MTU), limits(o.Bandwidth), duration(time.Since(o.Created)))
			if o.Problem != "" {
				problems = append(problems, fmt.Sprintf("%s/%s: %s", o.Container, o.Interface, o.Problem))
			}
		}
		p.print()
		if len(problems) > 0 {
			fmt.Fprintf(t.out, "\n%s\n", strings.Join(problems, "\n"))
		}
	})
}

func (t *tool) ipam() *cobra.Command {
	return show(t, "ipam", "Show which addresses are given to whom, and how many are free", "", (*control.Client).IPAM, func(i control.IPAM) {
		c := &table{out: t.out, head: []string{"CIDR", "GIVEN BY", "SIZE", "ALLOCATED", "WAITING", "LEAKED", "FREE"}, flexible: 0}
		for _, o := range i.CIDRs {
			c.row(o.Prefix.String(), cmp.Or(o.Source, "-"), many(o.Size), many(o.Allocated), many(o.Waiting), many(o.Leaked), many(o.Free))
		}
		c.print()
		if len(i.Addresses) == 0 {
			return
		}
		fmt.Fprintln(t.out)
		a := &table{out: t.out, head: []string{"ADDRESS", "STATE", "CONTAINER", "IF", "OWNER", "NETWORK", "SINCE", "REASON"}, flexible: 2, least: leastContainer}
		for _, o := range i.Addresses {
			a.row(o.Address.String(), o.State, cmp.Or(o.Container, "-"), cmp.Or(o.Interface, "-"), cmp.Or(o.Owner, "-"), cmp.Or(o.Network, "-"),
				duration(time.Since(o.Since))+" ago", o.Reason)
		}
		a.print()
	})
}

// many is a number of addresses: exact as long as anybody would count them.
func many(n uint64) string {
	if n < 1_000_000 {
		return strconv.FormatUint(n, 10)
	}
	return fmt.Sprintf("2^%.0f", math.Log2(float64(n)))
}

// limits of a pod, to it and from it, in bits a second.
func limits(b *control.Bandwidth) string {
	if b == nil {
		return "-"
	}
	rate := func(n uint64) string {
		if n == 0 {
			return "-"
		}
		return count(n)
	}
	return rate(b.IngressRate) + "/" + rate(b.EgressRate)
}
