package torture

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/penstock-net/penstock/forwarder/control"
)

var versions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

const ifname = "eth0"

// worker is one place for a pod, in which one comes after the other.
type worker struct {
	x       *torture
	index   int
	rand    *rand.Rand
	foreign foreign
	lives   int

	mu   sync.RWMutex // held for reading by who pings the pod, for writing by who takes it away
	live *life        // nil: nobody to ping; valid is true only after a successful ADD
}

// life is one pod.
type life struct {
	id, attach, version string
	box                 *sandbox
	previous            json.RawMessage // the answer of ADD
	addresses           []netip.Addr
	ending              atomic.Bool // its DEL has begun, or it is abandoned
}

func (w *worker) newLife() (*life, error) {
	w.lives++
	l := &life{id: fmt.Sprintf("%016x%016x%016x%016x", w.rand.Uint64(), w.rand.Uint64(), w.rand.Uint64(), w.rand.Uint64())}
	switch x := w.rand.Float64(); {
	case x < 0.5:
		l.attach = control.AttachVeth
	case x < 0.8:
		l.attach = control.AttachTUN
	default:
		l.attach = control.AttachRouted
	}
	l.version = versions[w.rand.IntN(len(versions))]
	var err error
	if l.box, err = w.x.newSandbox(fmt.Sprintf("pod-%d-%d", w.index, w.lives)); err != nil {
		return nil, err
	}
	if l.attach == control.AttachRouted {
		return l, w.foreign.add(w.x.n, l.box)
	}
	return l, nil
}

// call is a call about this pod.
func (l *life) call(verb string) call {
	return call{verb: verb, container: l.id, netns: l.box.path, ifname: ifname, version: l.version, network: networkOf(l.attach), attach: l.attach}
}

// networkOf: each attachment is a network of its own, as it would be in a cluster.
func networkOf(attach string) string { return "torture-" + attach }

// run is pods, one after the other, until the kills are done. What is there then stays.
func (w *worker) run() {
	for !w.x.enough() {
		l, err := w.newLife()
		if err != nil {
			w.x.fatal("a pod cannot be made: %v", err)
			return
		}
		w.x.known(l)
		if !w.bringUp(l) {
			continue
		}
		w.stay(l)
		if w.x.enough() {
			return
		}
		w.takeDown(l)
	}
}

// bringUp is ADD. What fails is deleted, as every runtime does, and then mostly given up.
func (w *worker) bringUp(l *life) bool {
	for try := 0; ; try++ {
		f := fuse{}
		if w.rand.Float64() < 0.55 && w.x.mayKillPlugin() {
			f = w.x.pace.forAdd(w.rand, "ADD "+l.attach, w.x.stateFile(l.id, ifname))
		}
		c := l.call("ADD")
		if l.attach == control.AttachRouted {
			c.previous = w.foreign.result(l)
		}
		ok := false
		l.ending.Store(false)
		w.x.op(func() {
			since := w.x.keeper.epoch.Load()
			switch o := w.x.plugin(c, f); {
			case o.killed:
				w.x.killed("ADD", w.x.phaseOf(l))
				w.x.count.add("ADD", "killed")
			case o.failure != nil:
				w.x.addFailed(c, o, since)
			default:
				ok = true
				w.x.count.add("ADD", "ok")
				w.x.count.add("pods", l.attach)
				w.x.count.add("spec versions", l.version)
				w.up(l, o.output)
			}
		})
		if ok {
			return true
		}
		if w.x.enough() {
			return false
		}
		if r, gone := w.rand.Float64(), w.rand.Float64() < 0.5; r < 0.1 && l.attach != control.AttachRouted {
			w.x.abandon(w, l, gone) // the runtime died as well, and knows nothing any more
			return false
		}
		w.del(l, true)
		if try == 2 || w.rand.Float64() < 0.7 {
			w.x.forget(l)
			w.removeSandbox(l)
			return false
		}
	}
}

// up believes what ADD has answered, and then looks.
func (w *worker) up(l *life, answer []byte) {
	l.previous = answer
	r, err := create.Create(l.version, answer)
	var result *current.Result
	if err == nil {
		result, err = current.NewResultFromResult(r)
	}
	if err != nil {
		w.x.errorf("the answer of ADD cannot be read: %v\n%s", err, answer)
		return
	}
	for _, ip := range result.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		l.addresses = append(l.addresses, a.Unmap())
	}
	if len(l.addresses) != 2 {
		w.x.errorf("ADD answered with %d addresses and not one of each family:\n%s", len(l.addresses), answer)
	}
	w.x.ledger.give(l.id, l.addresses)
	w.mu.Lock()
	w.live = l
	w.mu.Unlock()
}

// stay is the pod's time on the network: it must reach the host and a neighbour whenever the daemon lives.
func (w *worker) stay(l *life) {
	for _, a := range l.addresses {
		to := w.x.n.HostAddr(a.Is6())
		w.x.reaches(l, to, "the host")
	}
	w.pingNeighbour(l)
	if l.version != "0.3.1" && w.rand.Float64() < 0.4 {
		w.check(l)
	}
	time.Sleep(scale(w.rand, time.Second))
}

// pingNeighbour finds another pod that is up and keeps it from being taken away meanwhile.
func (w *worker) pingNeighbour(l *life) {
	start := w.rand.IntN(len(w.x.workers))
	for i := range w.x.workers {
		o := w.x.workers[(start+i)%len(w.x.workers)]
		if o == w || !o.mu.TryRLock() {
			continue
		}
		if other := o.live; other != nil {
			a := other.addresses[w.rand.IntN(len(other.addresses))]
			w.x.reaches(l, a, fmt.Sprintf("the %s pod %.8s", other.attach, other.id))
			o.mu.RUnlock()
			w.x.count.add("pings between pods", l.attach+" → "+other.attach)
			return
		}
		o.mu.RUnlock()
	}
}

func (w *worker) check(l *life) {
	f := fuse{}
	if w.rand.Float64() < 0.3 && w.x.mayKillPlugin() {
		f = w.x.pace.forOther(w.rand, "CHECK "+l.attach)
	}
	c := l.call("CHECK")
	c.previous = l.previous
	w.x.op(func() {
		since := w.x.keeper.epoch.Load()
		switch o := w.x.plugin(c, f); {
		case o.killed:
			w.x.killed("CHECK", "")
			w.x.count.add("CHECK", "killed")
		case o.failure == nil:
			w.x.count.add("CHECK", "ok")
		case w.x.keeper.steady(since):
			w.x.errorf("%s failed though the daemon lives: %s", c, o.failure)
		default:
			w.x.count.add("CHECK", "failed while the daemon was away")
		}
	})
}

// takeDown is how a pod ends.
func (w *worker) takeDown(l *life) {
	w.mu.Lock() // waits for those who ping it
	w.live = nil
	w.mu.Unlock()
	w.x.end(l)
	switch x := w.rand.Float64(); {
	case x < 0.08 && l.attach != control.AttachRouted:
		w.x.abandon(w, l, w.rand.Float64() < 0.5)
		return
	case x < 0.33:
		w.removeSandbox(l)
		w.x.count.add("DEL was", "behind the namespace's end")
	}
	w.del(l, false)
	w.x.forget(l)
	w.removeSandbox(l)
}

// del repeats DEL until it succeeds, as containerd does.
func (w *worker) del(l *life, failed bool) {
	w.x.end(l)
	c := l.call("DEL")
	c.previous = l.previous
	if failed || w.rand.Float64() < 0.3 {
		c.previous = nil
		w.x.count.add("DEL was", "without prevResult")
	}
	if l.box.gone && w.rand.Float64() < 0.5 {
		c.netns = ""
		w.x.count.add("DEL was", "without CNI_NETNS")
	}
	for try := 0; ; try++ {
		f := fuse{}
		if try < 4 && w.rand.Float64() < 0.35 && w.x.mayKillPlugin() {
			f = w.x.pace.forOther(w.rand, "DEL "+l.attach)
		}
		ok := false
		w.x.op(func() {
			o := w.x.plugin(c, f)
			switch {
			case o.killed:
				w.x.killed("DEL", "")
				w.x.count.add("DEL", "killed")
			case o.failure != nil:
				w.x.count.add("DEL", "failed")
				w.x.errorf("%s failed: %s\n%s", c, o.failure, o.failure.Details)
			default:
				ok = true
				w.x.count.add("DEL", "ok")
				if o.stderr != "" {
					w.x.count.add("DEL was", "queued for the daemon")
				}
				w.x.afterDel(l)
			}
		})
		if ok && (try > 0 || w.rand.Float64() < 0.8) {
			return
		}
		if try > 20 {
			return
		}
	}
}

func (w *worker) removeSandbox(l *life) {
	if err := l.box.remove(); err != nil {
		w.x.errorf("a namespace cannot be removed: %v", err)
	}
	if l.attach == control.AttachRouted {
		w.foreign.del(w.x.n)
	}
}

// result is prevResult for the plugin behind.
func (f foreign) result(l *life) json.RawMessage {
	r := &current.Result{CNIVersion: "1.0.0", Interfaces: []*current.Interface{{Name: f.device}, {Name: ifname, Sandbox: l.box.path}}}
	for _, a := range f.addrs {
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(1), Address: *single(a)})
	}
	v, err := r.GetAsVersion(l.version)
	if err != nil {
		panic(err) // all versions have what is used here
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// key is how GC speaks of a pod.
func (l *life) key() types.GCAttachment {
	return types.GCAttachment{ContainerID: l.id, IfName: ifname}
}
