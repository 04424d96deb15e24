package doctor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Result is how a check ended.
type Result string

// Results, the better first.
const (
	OK      Result = "ok"
	Skipped Result = "skipped" // the finding says why
	Warning Result = "warning" // something does not work, or not always; pods' traffic flows
	Failure Result = "failure" // traffic is broken, or a promise of the configuration
)

// A Check is one thing that was looked at.
type Check struct {
	Name    string `json:"name"` // one of Names, and for a peer its name behind it
	Result  Result `json:"result"`
	Finding string `json:"finding"`
	Remedy  string `json:"remedy,omitempty"`

	Probe *control.Probe `json:"probe,omitempty"` // of a peer: what was measured, the sizes each way among it

	kind string // what findings of several peers have in common; empty: nothing
}

// Names lists every check, in the order in which they are reported, and what it looks at.
var Names = []struct{ Name, Looks string }{
	{"daemon", "does it answer, and is it ready"},
	{"configuration", "is the file valid now: a restart reads it again"},
	{"kernel", "what the kernel offers, and what that means"},
	{"tun", "can /dev/net/tun be opened"},
	{"privileges", "has the daemon CAP_NET_ADMIN and CAP_NET_RAW"},
	{"limits", "how many descriptors the daemon may open, and are any left"},
	{"state", "can the daemon record new pods: without that every ADD is refused"},
	{"underlay", "the node's address, its device, and the MTU"},
	{"duplicate-address", "has another machine on the link this node's address (ARP or neighbour discovery)"},
	{"host-routes", "routes of others that take what the host sends to pods past the daemon, or keep it from starting"},
	{"forwarding", "IP forwarding, global and on the devices in use"},
	{"rp_filter", "reverse path filtering that would drop pods' packets"},
	{"sysctls", "the other kernel settings that the data path needs"},
	{"br_netfilter", "Services for pods behind another plugin's bridge"},
	{"firewall", "rules of this node that drop the tunnel's packets, in or out"},
	{"policy-agents", "agents whose rules in FORWARD veth and tun pods pass by"},
	{"tunnel-port", "does anything else hold the tunnel's port"},
	{"leftovers", "devices, queued deletes and addresses that nobody owns"},
	{"cni", "the lists in /etc/cni/net.d: which one is in force, and plugins that do nothing behind penstock"},
	{"peer", "each peer, by real packets: does it answer, and does the pods' MTU pass both ways"},
	{"superframes", "to which peers superframes are cut before they leave, and why"},
	{"native", "to which peers frames do not go as the native stream, and why"},
	{"clock", "clocks of peers that differ from this node's"},
	{"pods", "pods that are not attached, or lose packets before the daemon reads them"},
	{"addresses", "how many of the node's addresses are left for pods"},
	{"pod-network", "inside veth and tun pods: the interface, its addresses, and the way to other nodes' pods"},
	{"mtu", "pods whose MTU is larger than what reaches a peer"},
	{"drops", "reasons for drops that grow while doctor looks"},
}

// A Report is the outcome.
type Report struct {
	Node      string    `json:"node,omitempty"`
	Time      time.Time `json:"time"`
	Reachable bool      `json:"reachable"` // the daemon
	Checks    []Check   `json:"checks"`
}

// Count returns how many checks ended so.
func (r *Report) Count(x Result) (n int) {
	for _, c := range r.Checks {
		if c.Result == x {
			n++
		}
	}
	return n
}

// Merged is Checks with peers that fare alike in one, where they are more than one sentence names.
func (r *Report) Merged() (merged []Check) {
	type alike struct {
		result Result
		kind   string
	}
	names := map[alike][]string{}
	key := func(c Check) alike { return alike{c.Result, c.kind} }
	for _, c := range r.Checks {
		names[key(c)] = append(names[key(c)], strings.TrimPrefix(c.Name, "peer "))
	}
	for _, c := range r.Checks {
		all := names[key(c)]
		switch {
		case c.kind == "" || len(all) <= maxListed:
			merged = append(merged, c)
		case strings.TrimPrefix(c.Name, "peer ") == all[0]:
			c.Name, c.Finding = "peer", fmt.Sprintf("%d peers alike (%s); %s: %s", len(all), listed(all), all[0], c.Finding)
			merged = append(merged, c)
		}
	}
	return merged
}

// Options say what to examine.
type Options struct {
	Socket string
	Config string         // of the daemon, if it cannot be asked; empty: the default place is tried, and that nothing is there is no fault
	Peers  []string       // names or addresses; none: all
	CNI    func() []Check // looks at the lists of the container runtime

	Probing  time.Duration       // how long peers may be probed; 0: until all are
	Progress func(done, all int) // of probing, one call at a time; nil: nobody looks
}

// examination is under way: facts, and what has been found.
type examination struct {
	facts
	o      Options
	report Report
}

func (x *examination) add(name string, r Result, remedy, finding string, a ...any) {
	x.report.Checks = append(x.report.Checks, Check{Name: name, Result: r, Finding: fmt.Sprintf(finding, a...), Remedy: remedy})
}

func (x *examination) ok(name, finding string, a ...any)   { x.add(name, OK, "", finding, a...) }
func (x *examination) skip(name, finding string, a ...any) { x.add(name, Skipped, "", finding, a...) }

// Examine looks at everything. It takes a second where all is well, and some seconds for each 64 peers that are not.
func Examine(ctx context.Context, o Options) Report {
	x := &examination{o: o}
	x.gather(ctx, control.New(o.Socket), o.Config)
	x.report.Node, x.report.Time, x.report.Reachable = x.status.Node, time.Now().UTC(), x.up
	before := x.startDrops(ctx)
	x.daemon()
	x.configuration()
	x.kernel()
	x.tun()
	x.process()
	x.state()
	x.network(ctx)
	x.leftovers(ctx)
	if o.CNI != nil {
		x.report.Checks = append(x.report.Checks, o.CNI()...)
	}
	after := x.endDrops(ctx, before)
	x.probePeers(ctx)
	x.podsAndDrops(ctx, before, after)
	return x.report
}
