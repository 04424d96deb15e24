package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// watchDrops is for how long at least drops are watched.
const watchDrops = time.Second

// sample is what was dropped up to a moment.
type sample struct {
	at    time.Time
	drops map[string]uint64
	ports map[string]control.Port
	err   error
}

func (x *examination) startDrops(ctx context.Context) sample {
	if !x.up {
		return sample{}
	}
	return x.sample(ctx)
}

func (x *examination) sample(ctx context.Context) sample {
	s := sample{at: time.Now(), drops: map[string]uint64{}, ports: map[string]control.Port{}}
	list, err := x.client.Drops(ctx)
	if err != nil {
		s.err = err
		return s
	}
	for _, d := range list {
		s.drops[d.Reason] = d.Packets
	}
	ports, err := x.client.Ports(ctx)
	for _, p := range ports {
		s.ports[p.Container+"/"+p.Interface] = p
	}
	s.err = err
	return s
}

// harmless drops are the network's daily life.
var harmless = []string{"answered", "multicast", "not_ip", "ecn", "ttl_expired", "too_big", "shaped", "router_advert"}

// endDrops ends the watch, before the first probe of a peer is sent: the drops that probes lead to would be taken for the pods'.
func (x *examination) endDrops(ctx context.Context, before sample) sample {
	if !x.up {
		return sample{}
	}
	if before.err == nil {
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(before.at.Add(watchDrops))):
		}
	}
	return x.sample(ctx)
}

func (x *examination) podsAndDrops(ctx context.Context, before, after sample) {
	if !x.up {
		for _, n := range []string{"pods", "addresses", "pod-network", "mtu", "drops"} {
			x.skip(n, "only the daemon knows, and it cannot be asked")
		}
		return
	}
	x.checkPods(before, after)
	x.checkAddresses()
	x.inside(ctx)
	x.checkMTU()
	if before.err != nil || after.err != nil {
		x.skip("drops", "they cannot be read: %v", max2(before.err, after.err))
		return
	}
	x.checkDrops(ctx, before, after)
}

func max2(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (x *examination) checkPods(before, after sample) {
	bad := false
	for _, p := range x.pods {
		if p.Problem != "" && p.Problem != control.WaitsForAdopt {
			bad = true
			x.add("pods", Failure, "penstockctl pods lists it; delete the pod, its runtime makes it anew", "%s: %s", podName(p), p.Problem)
		}
	}
	if who := x.waiting(); len(who) > 0 {
		bad = true
		remedy := "run " + control.AdoptCommand(x.o.Socket) + " on this node as root"
		if x.o.Socket == control.DefaultSocket {
			remedy += " (the unit does it behind each start)"
		} else {
			remedy += ", and give ExecStartPost of the unit this socket, too (docs/operations.md)"
		}
		x.add("pods", Failure, remedy+"; only where that fails: delete the pod, its runtime makes it anew", "tun pods wait for their queues, and have no network: %s", listed(who))
	}
	for key, p := range after.ports {
		if was, ok := before.ports[key]; ok && p.RingDrops > was.RingDrops {
			bad = true
			x.add("pods", Warning, "give the node CPU, raise limits.podBuffer, or bound the pod's bandwidth", "%s sends more than is read: %d frames had no room while doctor looked", portName(p), p.RingDrops-was.RingDrops)
		}
	}
	if !bad {
		x.ok("pods", "%d on record, %d attached", len(x.pods), len(x.ports))
	}
}

// waiting names the pods that wait for their queue and lack nothing else.
func (x *examination) waiting() (names []string) {
	for _, p := range x.pods {
		if p.Problem == control.WaitsForAdopt {
			names = append(names, podName(p))
		}
	}
	return names
}

// renew is what gives a pod the node's MTU: one that the CNI list names would come again with the pod.
const renew = `take "mtu" out of penstock's part of the CNI list if it is there, and make the pods anew: delete them, their runtime makes them again`

func (x *examination) checkMTU() {
	var peer control.Peer
	for i, p := range x.peers {
		if i == 0 || p.MTU < peer.MTU {
			peer = p
		}
	}
	if peer.MTU == 0 || len(x.ports) == 0 {
		x.skip("mtu", "there is no peer, or no pod, to compare")
		return
	}
	var larger, old, foreign []string
	for _, p := range x.ports {
		switch name := fmt.Sprintf("%s (%d)", portName(p), p.MTU); {
		case p.MTU > x.status.MTU && p.Attach == control.AttachRouted:
			foreign = append(foreign, name)
		case p.MTU > peer.MTU:
			larger = append(larger, name)
		case p.MTU > x.status.MTU:
			old = append(old, name)
		}
	}
	if len(old) > 0 {
		x.add("mtu", Warning, renew, "pods get an MTU of %d now, and these have a larger one from before: %s", x.status.MTU, listed(old))
	}
	if len(foreign) > 0 {
		x.add("mtu", Warning, fmt.Sprintf(`give penstock "mtu": %d in the CNI list, or the plugin before it, and make the pods anew`, x.status.MTU),
			"the plugin before penstock has made these pods' interfaces with a larger MTU than the overlay's %d, so they learn it by path MTU discovery alone: %s", x.status.MTU, listed(foreign))
	}
	if len(larger) > 0 {
		x.add("mtu", Warning, "nothing if it is only now: path MTU discovery tells the pods; else "+renew,
			"%s takes packets of %d bytes, and these pods send larger ones: %s", peer.Name, peer.MTU, listed(larger))
		return
	}
	if len(old)+len(foreign) == 0 {
		x.ok("mtu", "no pod's is larger than what reaches every peer, %d", peer.MTU)
	}
}

func (x *examination) checkDrops(ctx context.Context, before, after sample) {
	list, _ := x.client.Drops(ctx)
	took := after.at.Sub(before.at)
	quiet := true
	for _, d := range list {
		grown := after.drops[d.Reason] - min(before.drops[d.Reason], after.drops[d.Reason])
		if grown == 0 || slices.Contains(harmless, d.Reason) {
			continue
		}
		quiet = false
		x.add("drops", Warning, d.Remedy, "%s: %d in %s, %s%s", d.Reason, grown, took.Round(100*time.Millisecond), d.Meaning, culprits(before, after))
	}
	if quiet {
		x.ok("drops", "none that matters in %s", took.Round(100*time.Millisecond))
	}
}

// culprits names the pods and their drops that grew.
func culprits(before, after sample) string {
	var names []string
	for key, p := range after.ports {
		if was := before.ports[key]; p.Dropped > was.Dropped {
			names = append(names, fmt.Sprintf("%s (%d frames)", portName(p), p.Dropped-was.Dropped))
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return "; drops grew at " + listed(names)
}

func portName(p control.Port) string {
	name := p.Owner
	if name == "" {
		name = short(p.Container) + "/" + p.Interface
	}
	if len(p.Addresses) > 0 {
		name += " " + p.Addresses[0].String()
	}
	return name
}

func podName(p control.Pod) string {
	return portName(control.Port{Owner: p.Owner, Container: p.Container, Interface: p.Interface, Addresses: p.Addresses})
}

// short is a container's id as runtimes show it.
func short(id string) string { return id[:min(len(id), 12)] }

// leftovers are what nobody owns any more.
func (x *examination) leftovers(ctx context.Context) {
	var found []string
	if queue, err := control.Pending(x.o.Socket); err == nil && len(queue) > 0 {
		found = append(found, fmt.Sprintf("%d deletes wait in %s", len(queue), control.PendingDir(x.o.Socket)))
	}
	if !x.up {
		if len(found) == 0 {
			x.ok("leftovers", "what a daemon has left its successor takes over (penstockd --cleanup removes it)")
			return
		}
		x.add("leftovers", Warning, "start the daemon: it does them first", "%s", strings.Join(found, "; "))
		return
	}
	dead, forgotten, damaged := x.strays(ctx)
	if len(dead) > 0 {
		found = append(found, "no pod has these devices: "+listed(dead))
	}
	x.forgotten(forgotten)
	x.damaged(damaged)
	leaked := 0
	for _, a := range x.ipam.Addresses {
		if a.State == control.AddressLeaked {
			leaked++
		}
	}
	if leaked > 0 {
		found = append(found, fmt.Sprintf("%d addresses belong to damaged files (penstockctl ipam)", leaked))
	}
	if len(found) == 0 {
		if len(forgotten)+len(damaged) == 0 {
			x.ok("leftovers", "none")
		}
		return
	}
	x.add("leftovers", Warning, "a restart of the daemon collects what has no owner; delete the pods of damaged files", "%s", strings.Join(found, "; "))
}
