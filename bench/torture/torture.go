package torture

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// Options are what a run is asked for.
type Options struct {
	Seed  uint64
	Kills int           // at least so many
	Pods  int           // at a time
	Limit time.Duration // it is a failure not to be done by then
	Say   func(format string, args ...any)
}

// torture is one run.
type torture struct {
	Options
	t       lab.TB
	n       *lab.Node
	dir     string // of the mounted namespaces
	program string
	keeper  *keeper
	workers []*worker
	ledger  *ledger
	pace    pace
	count   counts
	began   time.Time

	gate   sync.RWMutex // the specification forbids everything beside GC: GC holds it for writing
	kills  atomic.Int64
	broken atomic.Bool // going on makes no sense
	faults atomic.Int64

	mu        sync.Mutex
	pods      map[string]*life // that the runtime knows
	abandoned []*orphan        // that it does not know any more
	daemons   []*lab.Daemon    // all of them, for what they have printed
	notes     map[string]int
}

// orphan is a pod whose runtime has forgotten it.
type orphan struct {
	w *worker
	l *life
}

const podCIDRs = `node: {podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64", 10.244.101.0/24, "fd00:10:244:101::/64"]}`

// Run tortures, counts and complains to t.
func Run(t lab.TB, o Options) {
	x := &torture{Options: o, t: t, pods: map[string]*life{}, notes: map[string]int{}, began: time.Now(), pace: pace{took: map[string][]time.Duration{}}}
	x.count.m = map[string]map[string]int{}
	x.ledger = newLedger(func(a netip.Addr, owner, other string) {
		x.count.add("addresses", "given twice")
		x.errorf("address %s was given to %s while %s has it", a, other, owner)
		x.story(owner, other)
	})
	x.prepare()
	clean := x.settled()
	anchor := x.anchor()
	x.chaos()
	x.finish()
	x.rehearse(clean, anchor)
	x.report()
}

// prepare makes the node and its daemon.
func (x *torture) prepare() {
	var err error
	if x.program, err = program(); err != nil {
		x.t.Fatalf("%v", err)
	}
	if x.dir, err = os.MkdirTemp("", "torture-"); err != nil {
		x.t.Fatalf("%v", err)
	}
	x.t.Cleanup(func() { os.RemoveAll(x.dir) })
	x.n = lab.New(x.t, lab.Config{Nodes: 1, YAML: []string{podCIDRs}}).Nodes[0]
	x.daemons = append(x.daemons, x.n.Start(x.t))
	for i := range x.Pods {
		x.workers = append(x.workers, &worker{x: x, index: i, rand: x.stream(uint64(i)), foreign: newForeign(i)})
	}
	x.keeper = &keeper{x: x, rand: x.stream(1 << 32)}
}

func (x *torture) stream(i uint64) *rand.Rand { return rand.New(rand.NewPCG(x.Seed, i)) }

// anchor is a routed pod that stays: as long as another IPAM has a pod in the second pair of CIDRs the daemon's own keeps out of
// it.
func (x *torture) anchor() *worker {
	w := &worker{x: x, index: x.Pods, rand: x.stream(2 << 32), foreign: newForeign(x.Pods)}
	box, err := x.newSandbox("anchor")
	if err != nil {
		x.t.Fatalf("%v", err)
	}
	l := &life{id: "anchor", attach: control.AttachRouted, version: "1.0.0", box: box}
	if err := w.foreign.add(x.n, box); err != nil {
		x.t.Fatalf("%v", err)
	}
	c := l.call("ADD")
	c.previous = w.foreign.result(l)
	o := x.plugin(c, fuse{})
	if o.failure != nil {
		x.t.Fatalf("%s: %s %s", c, o.failure, o.failure.Details)
	}
	w.up(l, o.output)
	x.known(l)
	return w
}

// chaos is until the kills are done.
func (x *torture) chaos() {
	var all sync.WaitGroup
	for _, w := range x.workers {
		all.Go(w.run)
	}
	all.Go(x.collect)
	all.Go(func() {
		for last := time.Now(); !x.enough(); time.Sleep(20 * time.Millisecond) {
			if time.Since(last) > 10*time.Second {
				x.Say("%4d kills after %v: %s", x.kills.Load(), time.Since(x.began).Round(time.Second), x.count.line("killed"))
				last = time.Now()
			}
			if time.Since(x.began) > x.Limit {
				x.fatal("only %d kills after %v", x.kills.Load(), x.Limit)
			}
		}
	})
	x.keeper.run()
	all.Wait()
}

// enough is when the chaos ends.
func (x *torture) enough() bool { return x.kills.Load() >= int64(x.Kills) || x.dead() }

func (x *torture) dead() bool { return x.broken.Load() }

// shares keeps one kill in seven the daemon's, which take longest: there is no use in killing plugins only.
const shares = 7

func (x *torture) mayKillDaemon() bool {
	return !x.enough() && int64(x.count.get("killed", "daemon"))*(shares-2) <= x.kills.Load()+8
}

func (x *torture) mayKillPlugin() bool {
	return !x.enough() && x.kills.Load() <= int64(x.count.get("killed", "daemon")+2)*shares
}

func (x *torture) killed(what, phase string) {
	x.kills.Add(1)
	x.count.add("killed", what)
	if phase != "" {
		x.count.add(what+" killed", phase)
	}
}

// op is any call beside which there may be no GC.
func (x *torture) op(fn func()) {
	x.gate.RLock()
	defer x.gate.RUnlock()
	fn()
}

func (x *torture) known(l *life) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pods[l.id] = l
}

func (x *torture) forget(l *life) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.pods, l.id)
}

// end is when a pod is not valid any more, and never while GC is deciding by that: from then on GC may take its addresses.
func (x *torture) end(l *life) {
	x.op(func() {
		l.ending.Store(true)
		x.ledger.take(l.id, l.addresses)
	})
}

// abandon leaves a pod to GC, or to the daemon's next start if its namespace goes. Not a routed one: its addresses are another
// IPAM's, which would not give them again without a DEL either.
func (x *torture) abandon(w *worker, l *life, namespaceToo bool) {
	x.end(l)
	x.forget(l)
	if namespaceToo {
		w.removeSandbox(l)
		x.count.add("abandoned", "without namespace")
		return
	}
	x.count.add("abandoned", "with namespace")
	x.mu.Lock()
	defer x.mu.Unlock()
	x.abandoned = append(x.abandoned, &orphan{w, l})
}

// errorf is a fault; the run goes on to find more, up to a point.
func (x *torture) errorf(format string, args ...any) {
	x.Say("FAULT after %v: "+format, append([]any{time.Since(x.began).Round(time.Millisecond)}, args...)...)
	x.t.Errorf(format, args...)
	if x.faults.Add(1) > 30 {
		x.broken.Store(true)
	}
}

// story prints what all daemons have said about something, for who has to understand a fault.
func (x *torture) story(about ...string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, d := range x.daemons {
		for line := range strings.Lines(d.Process.Output()) {
			if slices.ContainsFunc(about, func(a string) bool { return strings.Contains(line, a) }) || strings.Contains(line, `"msg":"forwarding"`) {
				x.Say("    daemon %d: %s", i+1, strings.TrimSpace(line))
			}
		}
	}
}

func (x *torture) fatal(format string, args ...any) {
	x.errorf(format, args...)
	x.broken.Store(true)
}

// note collects messages that are no faults by themselves.
func (x *torture) note(format string, args ...any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.notes[numbers.ReplaceAllString(fmt.Sprintf(format, args...), "N")]++
}

// addFailed judges an ADD that was not killed and failed all the same.
func (x *torture) addFailed(c call, o outcome, since int64) {
	if o.failure.Code == types.ErrTryAgainLater && o.took > 7*time.Second {
		x.count.add("ADD", "gave up on a busy machine") // after its eight seconds, as it should
		return
	}
	if x.keeper.steady(since) {
		x.errorf("%s failed though the daemon lives: %s %s", c, o.failure, o.failure.Details)
		return
	}
	x.count.add("ADD", fmt.Sprintf("failed with code %d while the daemon was away", o.failure.Code))
	if o.failure.Code != types.ErrTryAgainLater {
		x.note("%s: code %d %s", c.verb+" "+c.attach, o.failure.Code, o.failure.Msg)
	}
}

// reaches pings until there is an answer. Silence is a fault if one daemon was ready all the while.
func (x *torture) reaches(l *life, to netip.Addr, whom string) {
	for range 20 {
		since := x.keeper.awaitSteady()
		if x.dead() {
			return
		}
		var last error
		for wait := 500 * time.Millisecond; wait < 10*time.Second; wait *= 2 { // fifty pods share two cores with whatever else runs
			r, err := l.box.PingWith(to, lab.Echo{Timeout: wait})
			if err == nil && r.Received > 0 {
				x.count.add("pings", "answered")
				return
			}
			if last = err; err == nil {
				last = fmt.Errorf("no answer, %v", r.Errors)
			}
			time.Sleep(20 * time.Millisecond)
		}
		if x.keeper.steady(since) {
			x.errorf("the %s pod %.8s (%v) does not reach %s (%s): %v", l.attach, l.id, l.addresses, whom, to, last)
			x.story(l.id, to.String())
			return
		}
	}
	x.count.add("pings", "given up as daemons died")
}

// phaseOf says how far a killed ADD has come, by what it has left.
func (x *torture) phaseOf(l *life) string {
	device := control.DeviceName(l.id, ifname)
	phase := x.records()[device].Phase
	if phase == "" {
		return "1 before its reservation"
	}
	if l.attach == control.AttachRouted {
		return map[string]string{"reserved": "2 reserved", "attached": "5 attached"}[phase]
	}
	_, onHost := x.n.Netlink().LinkByName(device)
	in := slices.DeleteFunc(l.box.LinkNames(), func(n string) bool { return n == "lo" })
	addressed := 0
	if len(in) == 1 {
		if link, err := l.box.Netlink().LinkByName(in[0]); err == nil {
			list, _ := l.box.Netlink().AddrList(link, 0)
			for _, a := range list {
				if !a.IP.IsLinkLocalUnicast() {
					addressed++
				}
			}
		}
	}
	switch {
	case l.attach == control.AttachVeth && phase == "attached":
		return "5 attached"
	case addressed > 0:
		return "4 device in the pod, addressed"
	case len(in) > 0 || onHost == nil:
		return "3 device made"
	}
	return "2 reserved"
}

// afterDel looks for what DEL has left; the daemon may be dead, so only what the plugin itself must do.
func (x *torture) afterDel(l *life) {
	if l.attach == control.AttachRouted {
		return
	}
	device := control.DeviceName(l.id, ifname)
	if link, err := x.n.Netlink().LinkByName(device); err == nil && link.Type() == "veth" {
		x.errorf("after DEL of %.8s (%s) %s is still on the node", l.id, l.attach, device)
	}
	if l.box.gone {
		return
	}
	left := l.box.left()
	for end := time.Now().Add(10 * time.Second); len(left) > 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left = l.box.left() // the kernel removes devices in its own time
	}
	if len(left) > 0 {
		x.errorf("after DEL of %.8s (%s) there is still in the pod: %s", l.id, l.attach, strings.Join(left, ", "))
	}
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
