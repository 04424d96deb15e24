package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

const (
	transferSize  = 256 << 20 // each way
	everySizeTo   = 3000
	bordersTo     = 60000
	floodDuration = 1500 * time.Millisecond
)

// checks is what is done with one running network. Pods are: veth and tun of node-a, veth and tun of node-b.
type checks struct {
	show  *show
	nodes []*lab.Node
	pods  []*lab.Pod
}

type step struct {
	name string
	run  func() (cell string, err error)
}

func (c *checks) steps() []step {
	veth, tun := [2]*lab.Pod{c.pods[0], c.pods[2]}, [2]*lab.Pod{c.pods[1], c.pods[3]}
	return []step{
		{"ping, pods on one node", func() (string, error) { return c.pingPods(true) }},
		{"ping, pods across nodes", func() (string, error) { return c.pingPods(false) }},
		{"ping, node to pod", c.pingFromNodes},
		{"256 MiB TCP each way, veth, IPv4", func() (string, error) { return c.transfer(veth, false) }},
		{"256 MiB TCP each way, tun, IPv6", func() (string, error) { return c.transfer(tun, true) }},
		{"datagrams of 0 to 3,000 bytes", c.everySize},
		{"datagrams to 60,000 bytes", c.borders},
		{"throughput, TCP, veth", func() (string, error) { return c.flood(veth, "tcp") }},
		{"throughput, TCP, tun", func() (string, error) { return c.flood(tun, "tcp") }},
		{"throughput, 64-byte datagrams, veth", func() (string, error) { return c.flood(veth, "udp") }},
		{"throughput, 64-byte datagrams, tun", func() (string, error) { return c.flood(tun, "udp") }},
		{"frames accounted for", c.account},
	}
}

// pings tries every pair in both families and counts.
func (c *checks) pings(pairs [][2]*lab.Host) (string, error) {
	var failures []error
	tried := 0
	for _, p := range pairs {
		for _, v6 := range []bool{false, true} {
			tried++
			if err := p[0].PingContext(c.show.ctx, p[1].Addr(v6)); err != nil {
				failures = append(failures, err)
			}
		}
	}
	if len(failures) > 0 {
		return "", fmt.Errorf("%d of %d: %w", len(failures), tried, errors.Join(failures...))
	}
	return fmt.Sprintf("%d of %d", tried, tried), nil
}

func (c *checks) pingPods(oneNode bool) (string, error) {
	var pairs [][2]*lab.Host
	for _, from := range c.pods {
		for _, to := range c.pods {
			if from != to && (from.Node == to.Node) == oneNode {
				pairs = append(pairs, [2]*lab.Host{&from.Host, &to.Host})
			}
		}
	}
	return c.pings(pairs)
}

func (c *checks) pingFromNodes() (string, error) {
	var pairs [][2]*lab.Host
	for _, from := range c.nodes {
		for _, to := range c.pods {
			pairs = append(pairs, [2]*lab.Host{&from.Host, &to.Host})
		}
	}
	return c.pings(pairs)
}

func (c *checks) transfer(p [2]*lab.Pod, v6 bool) (string, error) {
	ctx, cancel := context.WithTimeout(c.show.ctx, 30*time.Second)
	defer cancel()
	r, err := lab.TransferTCP(ctx, &p[0].Host, &p[1].Host, v6, transferSize, transferSize)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("SHA-256 equal, %.1f Gbit/s", r.Rate()/1e9), nil
}

// everySize echoes one datagram of every size, for both ways to attach a pod and both families.
func (c *checks) everySize() (string, error) {
	return c.echoes(func(bool) []int { return lab.SizesTo(everySizeTo) }, 16)
}

// borders echoes the sizes around each place where a datagram needs one more IP fragment.
func (c *checks) borders() (string, error) {
	return c.echoes(func(v6 bool) []int { return lab.FragmentBorders(c.pods[0].MTU, v6, bordersTo) }, 4)
}

func (c *checks) echoes(sizes func(v6 bool) []int, window int) (string, error) {
	total := 0
	for i, from := range c.pods[:2] {
		to := c.pods[2+i]
		for _, v6 := range []bool{false, true} {
			n, err := c.echo(from, to, v6, sizes(v6), window)
			if err != nil {
				return "", fmt.Errorf("%s, %s: %w", from.Attach, to.Addr(v6), err)
			}
			total += n
		}
	}
	return thousands(total) + " echoed intact", nil
}

func (c *checks) echo(from, to *lab.Pod, v6 bool, sizes []int, window int) (int, error) {
	ctx, cancel := context.WithTimeout(c.show.ctx, 20*time.Second)
	defer cancel()
	s, err := to.ServeUDP(0)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	client, err := from.DialUDP(netip.AddrPortFrom(to.Addr(v6), s.Port()))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	e, err := client.EchoSizes(ctx, sizes, window)
	switch {
	case err != nil:
		return 0, err
	case e.Corrupt > 0:
		return 0, fmt.Errorf("%d of %d datagrams came back changed or twice, among them those of %v bytes", e.Corrupt, e.Sent, e.FirstCorrupt)
	case e.Lost > 0:
		return 0, fmt.Errorf("%d of %d datagrams were lost, among them those of %v bytes", e.Lost, e.Sent, e.FirstLost)
	}
	return e.Echoed, nil
}

func (c *checks) flood(p [2]*lab.Pod, proto string) (string, error) {
	r, err := lab.Measure(c.show.ctx, &p[0].Host, &p[1].Host, lab.Throughput{Proto: proto, Duration: floodDuration})
	switch {
	case err != nil:
		return "", err
	case proto == "tcp":
		return fmt.Sprintf("%.1f Gbit/s", r.Bits/1e9), nil
	case r.Packets == 0:
		return "", errors.New("no datagram was delivered")
	}
	return thousands(int(r.Packets)) + "/s", nil
}

// account checks that every frame that any of the daemons has read or made was forwarded or dropped with a reason.
func (c *checks) account() (string, error) {
	total := 0
	for _, n := range c.nodes {
		m := n.Daemon.AtRest(c.show)
		if m.Missing() != 0 {
			return "", fmt.Errorf("%s lost account of %.0f frames:\n%s", n.Name, m.Missing(), m.Account())
		}
		total += int(m.Sum("penstock_received_packets_total") + m.Sum("penstock_generated_packets_total"))
	}
	if total == 0 {
		return "", errors.New("the daemons have counted nothing")
	}
	return "all " + thousands(total), nil
}

// thousands writes 1234567 as 1,234,567.
func thousands(n int) string {
	s := fmt.Sprint(n)
	var b strings.Builder
	for i, digit := range s {
		if i > 0 && (len(s)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(digit)
	}
	return b.String()
}
