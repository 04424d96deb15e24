package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet"
)

const (
	atOnce    = 64               // peers that are probed at the same time
	maxClock  = 10 * time.Second // by which clocks may differ
	maxListed = 5                // names in one sentence
	fresh     = 10 * time.Minute // what a peer's packets were dropped for longer ago says nothing of now
)

// outcome is what the daemon found about a peer.
type outcome struct {
	peer  control.Peer
	kept  []string // reasons for which this node's kernel refused frames to peers meanwhile, if some for this one were dropped
	six   bool     // pods have IPv6
	lost  bool     // this node has no route to its underlay address
	probe control.Probe
	err   error
	cut   bool // there was no time for it

	// While doctor looked:
	heard    bool // frames from it were accepted
	rejected bool // others were not
	closed   bool // its node answered that nobody there takes the tunnel's packets
}

// since fills in what became of the peer's packets since r.peer was asked for, what its node has said since the probe began, and what
// is known of it now.
func (r *outcome) since(began time.Time, now control.Peer) {
	accepted := func(p control.Peer) int64 { return int64(p.Received.Packets) - int64(rejected(p)) }
	r.heard = accepted(now) > accepted(r.peer)
	r.rejected = rejected(now) > rejected(r.peer)
	r.closed = now.NobodyListens != nil && !now.NobodyListens.Before(began.Truncate(time.Second))
	r.peer = now
}

func rejected(p control.Peer) uint64 {
	if p.Rejected == nil {
		return 0
	}
	return p.Rejected.Packets
}

// turnedAway reports whether the last that came from the peer was rejected.
func (r *outcome) turnedAway() bool {
	p := r.peer
	return !r.heard && p.Rejected != nil && (r.rejected || time.Since(p.Rejected.Last) < fresh && (p.LastSeen == nil || p.Rejected.Last.After(*p.LastSeen)))
}

// probePeers has the daemon probe every peer.
func (x *examination) probePeers(ctx context.Context) {
	if !x.up {
		for _, n := range []string{"peer", "superframes", "native", "clock"} {
			x.skip(n, "the daemon sends the probes, and it cannot be asked")
		}
		return
	}
	wanted := slices.DeleteFunc(slices.Clone(x.peers), func(p control.Peer) bool {
		return len(x.o.Peers) > 0 && !slices.ContainsFunc(x.o.Peers, func(asked string) bool { return control.NamesPeer(asked, p.Name, p.Address) })
	})
	for _, name := range x.o.Peers {
		if !slices.ContainsFunc(wanted, func(p control.Peer) bool { return control.NamesPeer(name, p.Name, p.Address) }) {
			x.add("peer "+name, Failure, "penstockctl peers lists those that there are; add it to peers in "+x.path, "there is no such peer")
		}
	}
	if len(wanted) == 0 {
		if len(x.o.Peers) == 0 {
			x.skip("peer", "this node has no peers")
		}
		return
	}
	before, began := x.sample(ctx), time.Now()
	results := x.probe(ctx, wanted)
	if n := len(wanted) - len(results); n > 0 {
		x.skip("peer", "%d of %d peers were not probed, as doctor was broken off or its time was over: penstockctl doctor PEER… looks at single ones", n, len(wanted))
	}
	if len(results) == 0 {
		return
	}
	x.believed(ctx, results, began, refusals(before, x.sample(ctx)))
	for i := range results {
		if r := &results[i]; r.err == nil && r.probe.AnsweredBy == "" && !r.probe.Node && x.away == "" {
			device, err := hostnet.RouteDevice(r.peer.Address, x.address)
			r.lost = err == nil && device == ""
		}
	}
	for _, r := range results {
		x.report.Checks = append(x.report.Checks, judge(r, x.failed("firewall")))
	}
	x.superframes(results)
	x.native(results)
	x.clocks(results)
}

// probe has the daemon probe peers, and leaves out those whose probe has not ended when the time is over.
func (x *examination) probe(ctx context.Context, wanted []control.Peer) []outcome {
	if x.o.Probing > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, x.o.Probing)
		defer cancel()
	}
	results := make([]outcome, len(wanted))
	slots := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	var mu sync.Mutex
	done := 0
	progress := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		if done += n; x.o.Progress != nil {
			x.o.Progress(done, len(wanted))
		}
	}
	for i, p := range wanted {
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			r := &results[i]
			if r.peer, r.six, r.err = p, x.ipv6, ctx.Err(); r.err == nil {
				r.probe, r.err = x.client.Probe(ctx, control.ProbeRequest{Peer: p.Address.String()})
			}
			r.cut = r.err != nil && ctx.Err() != nil
			progress(1)
		})
	}
	wait.Wait()
	return slices.DeleteFunc(results, func(r outcome) bool { return r.cut })
}

// refused are reasons for drops that say that this node's kernel took a datagram of the tunnel from nobody's hands.
var refused = []string{"send_no_buffers", "send_refused", "send_failed", "underlay_mtu"}

// refusals are the reasons of refused that grew.
func refusals(before, after sample) (list []string) {
	for _, r := range refused {
		if before.err == nil && after.drops[r] > before.drops[r] {
			list = append(list, r)
		}
	}
	return list
}

// believed fills in what the daemon knows of the peers by now: a router on the way may have told it of a smaller MTU, this node's
// kernel may have refused what was meant for it, and it may have come to know why nobody answers.
func (x *examination) believed(ctx context.Context, results []outcome, began time.Time, refusals []string) {
	now, err := x.client.Peers(ctx)
	if err != nil {
		return
	}
	for i := range results {
		for _, p := range now {
			if p.Address == results[i].peer.Address {
				if p.Dropped > results[i].peer.Dropped {
					results[i].kept = refusals
				}
				results[i].since(began, p)
			}
		}
	}
}

func (x *examination) failed(name string) bool {
	return slices.ContainsFunc(x.report.Checks, func(c Check) bool { return c.Name == name && c.Result == Failure })
}

// judge says what an outcome means. blocked: a firewall of this node drops the tunnel, so nothing else can be said of a peer
// that does not answer.
func judge(r outcome, blocked bool) Check {
	p, a := r.peer, r.probe
	tunnel := p.Encap
	if p.Port != 0 {
		tunnel = fmt.Sprintf("%s, UDP port %d", p.Encap, p.Port)
	}
	c := Check{Name: "peer " + p.Name, Result: Failure}
	if r.err == nil {
		c.Probe = &a
	}
	say := func(remedy, finding string, args ...any) Check {
		c.Remedy, c.Finding, c.kind = remedy, fmt.Sprintf(finding, args...), finding
		return c
	}
	switch {
	case r.err != nil:
		c.Result = Warning
		return say("look at the daemon's log", "it cannot be probed: %v", r.err)
	case a.AnsweredBy == "" && r.lost:
		return say(fmt.Sprintf("is %s right in peers? else give this node a route to it: ip route get %s says what the kernel does", p.Address, p.Address),
			"this node has no route to %s, so nothing leaves for %s; %s", p.Address, p.Name, seen(p))
	case a.AnsweredBy == "" && blocked:
		return say("see the check firewall, and ask again", "nobody answers, as a firewall of this node drops the tunnel")
	case a.AnsweredBy == "" && r.closed:
		what := fmt.Sprintf("holds UDP %d", p.Port)
		if p.Port == 0 {
			what = "takes IP protocol 4"
		}
		return say(fmt.Sprintf("on %s: start penstockd (systemctl start penstockd, journalctl -u penstockd says why it has ended), or make encap.type and encap.port of both nodes agree (penstockctl peers on both); a firewall there that rejects the tunnel answers so, too", p.Name),
			"%s answers that nobody %s there: penstockd is not running on it, or has another encap.type or port; %s", p.Name, what, seen(p))
	case a.AnsweredBy == "" && r.heard:
		c.Result = Warning
		return say("if a firewall here does, accept what comes from the node's TUN: nft insert rule … iifname penstock0 accept, or the same in iptables or firewalld; if none does, ask penstockctl doctor on "+p.Name,
			"packets from it arrive and are accepted, but no answers to probes reach the daemon, so the way cannot be measured: a firewall of this node keeps them from it, or %s does not get the probes", p.Name)
	case a.AnsweredBy == "" && r.turnedAway():
		return say(p.Rejected.Remedy, "packets from it are dropped here, the last %s ago as %s (%s), and nobody behind the tunnel (%s) answers; %s",
			time.Since(p.Rejected.Last).Round(time.Second), p.Rejected.Reason, p.Rejected.Meaning, a.Host, seen(p))
	case a.AnsweredBy == "" && !a.Node:
		return say(fmt.Sprintf("is the machine up? can %s be reached from here (ping %s)? on it: penstockctl status", p.Address, p.Address),
			"down: neither the node (%s, ICMP echo) nor anybody behind the tunnel (%s) answers; %s", p.Address, a.Host, seen(p))
	case a.AnsweredBy == "":
		return say(fmt.Sprintf("on %s: is penstockd running, do encapsulation, port, VNI and podCIDRs agree (penstockctl peers on both nodes), does it drop what comes from here (penstockctl drops there), does a firewall on it or on the way drop the tunnel (%s)? penstockctl doctor there says more%s", p.Name, tunnel, foreign(p)),
			"the node %s answers, but nobody behind the tunnel (%s); %s", p.Address, a.Host, seen(p))
	case a.Passes < a.MTU || a.Back > 0 && a.Back < a.MTU:
		return tooSmall(c, r)
	}
	c.Result = OK
	rtt := time.Duration(a.RTT) * time.Microsecond
	if a.AnsweredBy == control.AnsweredByHost {
		return say("", "its host answers in %s (no Penstock there, or its probe port is closed); packets of %d bytes pass", rtt.Round(10*time.Microsecond), a.Passes)
	}
	return say("", "answers in %s; packets of %d bytes pass both ways", rtt.Round(10*time.Microsecond), a.Passes)
}

// tooSmall says of a path that does not carry what pods send how much it carries each way. Every node has to go by the smaller, or
// nodes would be told different numbers for the same path.
func tooSmall(c Check, r outcome) Check {
	p, a := r.peer, r.probe
	least, ways := a.Passes, fmt.Sprintf("%d there and back", a.Passes) // ICMP answers are as long as their questions
	if a.Back > 0 {
		least, ways = min(a.Passes, a.Back), fmt.Sprintf("to %s %d, from %s %d", p.Name, a.Passes, p.Name, a.Back)
	}
	c.Remedy = fmt.Sprintf("raise the MTU of the path by %d, or set encap.mtu: %d on all nodes", a.MTU-least, least)
	under := r.six && least < encap.MinMTU6
	if under {
		c.Remedy = fmt.Sprintf("raise the MTU of the path by %d, or by at least %d and set encap.mtu: %d on all nodes", a.MTU-least, encap.MinMTU6-least, encap.MinMTU6)
	}
	switch {
	case a.Passes < a.MTU && p.MTU <= a.Passes && least == a.Passes:
		c.Result = Warning
		c.Finding = fmt.Sprintf("the path carries packets of %d bytes (%s) and pods send up to %d; a router on the way says so, and pods learn it by path MTU discovery", least, ways, a.MTU)
	case a.Passes < a.MTU && len(r.kept) > 0:
		why := strings.Join(r.kept, ", ")
		c.Finding = fmt.Sprintf("packets of more than %d bytes do not pass (%s), and pods send up to %d: small packets pass, transfers hang; to it they are not lost on the way, this node's own kernel refuses them (%s)",
			least, ways, a.MTU, why)
		c.Remedy = "look at the MTU, the queue and the filters of the uplink here (ip link, tc qdisc, tc filter) and of what it leads to; " + c.Remedy
	default:
		c.Finding = fmt.Sprintf("packets of more than %d bytes are lost on the way (%s), and pods send up to %d: small packets pass, transfers hang", least, ways, a.MTU)
	}
	if under { // IPv6 sends that much whatever a router says
		c.Result = Failure
		c.Finding += fmt.Sprintf("; IPv6 needs %d, so no transfer of pods by IPv6 can use this path", encap.MinMTU6)
	}
	return c
}

// foreign is what to add about a peer that is taken for a Penstock node, as nothing says otherwise.
func foreign(p control.Peer) string {
	if p.Encap != "vxlan" || p.MAC != encap.VTEPMAC(p.Address, p.VNI).String() {
		return ""
	}
	return fmt.Sprintf("; if it runs flannel or a kernel's vxlan, give its VTEP's MAC (of flannel.1 there: ip link) as mac of %s in peers here", p.Name)
}

// seen says when the last acceptable packet came.
func seen(p control.Peer) string {
	if p.LastSeen == nil {
		if p.Rejected != nil {
			return "nothing from it was ever accepted"
		}
		return "it was never heard"
	}
	return fmt.Sprintf("last heard %s ago", time.Since(*p.LastSeen).Round(time.Second))
}

func (x *examination) superframes(results []outcome) {
	if !slices.ContainsFunc(x.status.Capabilities, func(c control.Capability) bool { return c.Name == "tunnelGSO" && c.Used }) {
		x.skip("superframes", "tunnel superframes are not in use: penstockctl status says why")
		return
	}
	why := map[string][]string{}
	for _, r := range results {
		if r.err == nil && r.probe.Uplink == "" && r.peer.Encap != "ipip" {
			reason := r.probe.NoUplink
			if reason == "" {
				reason = "the way to it is not known yet"
			}
			why[reason] = append(why[reason], r.peer.Name)
		}
	}
	if len(why) == 0 {
		x.ok("superframes", "leave whole to every peer")
		return
	}
	x.ok("superframes", "are cut before they leave, which costs throughput and nothing else, %s", reasons(why))
}

// native says to whom the native stream does not lead. That is nothing bad: the probes before were traffic enough to try it.
func (x *examination) native(results []outcome) {
	why, on := map[string][]string{}, false
	var by []string
	for _, r := range results {
		n := r.peer.Native
		switch {
		case n == nil:
		case n.Carrier == "none":
			on = true
			why[n.Why] = append(why[n.Why], r.peer.Name)
		default:
			on = true
			if !slices.Contains(by, n.Carrier) {
				by = append(by, n.Carrier)
			}
		}
	}
	slices.Sort(by)
	switch {
	case !on:
		x.skip("native", "native.carrier is off")
	case len(why) == 0:
		x.ok("native", "frames go as the native stream to every peer, by the carrier %s", strings.Join(by, " or "))
	default:
		x.ok("native", "frames go by the encapsulation, which costs throughput and nothing else, %s", reasons(why))
	}
}

// reasons are sentences about peers, by reason.
func reasons(why map[string][]string) string {
	var parts []string
	for reason, names := range why {
		parts = append(parts, fmt.Sprintf("to %s: %s", listed(names), reason))
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}

func (x *examination) clocks(results []outcome) {
	var off []string
	asked := 0
	for _, r := range results {
		if r.err != nil || r.probe.AnsweredBy != control.AnsweredByPenstock {
			continue
		}
		asked++
		if d := time.Duration(r.probe.Clock) * time.Millisecond; d.Abs() > maxClock {
			off = append(off, fmt.Sprintf("%s by %s", r.peer.Name, d))
		}
	}
	switch {
	case asked == 0:
		x.skip("clock", "no Penstock peer has answered")
	case len(off) > 0:
		x.add("clock", Warning, "set up time synchronisation (chrony, systemd-timesyncd) on the nodes: logs, leases and certificates need it", "clocks differ from this node's: %s", listed(off))
	default:
		x.ok("clock", "no peer's differs from this node's by more than %s", maxClock)
	}
}

// listed is a list for a sentence.
func listed(names []string) string {
	if n := len(names) - maxListed; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxListed], ", "), n)
	}
	return strings.Join(names, ", ")
}
