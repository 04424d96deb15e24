package torture

import (
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/forwarder/control"
)

var attachments = []string{control.AttachVeth, control.AttachTUN, control.AttachRouted}

// collect is GC, now and then. One runtime in four is of the kind that never calls it; then all that it has forgotten is there
// until the end.
func (x *torture) collect() {
	r := x.stream(3 << 32)
	if r.Float64() < 0.25 {
		x.count.add("GC", "never called until the end")
		return
	}
	for !x.enough() {
		for end := time.Now().Add(time.Second + scale(r, 3*time.Second)); time.Now().Before(end) && !x.enough(); {
			time.Sleep(20 * time.Millisecond)
		}
		if x.enough() {
			return
		}
		x.gate.Lock()
		x.keeper.awaitSteady()
		x.gcAll(r)
		x.gate.Unlock()
	}
}

// gcAll calls GC of every network. Beside it nothing else runs. When all succeed, what is there must be what is valid.
func (x *torture) gcAll(r *rand.Rand) {
	all := true
	for _, attach := range attachments {
		f := fuse{}
		if r != nil && r.Float64() < 0.3 {
			f = x.pace.forOther(r, "GC "+attach)
		}
		c := call{verb: "GC", version: "1.1.0", network: networkOf(attach), attach: attach, valid: x.valid(attach)}
		since := x.keeper.epoch.Load()
		switch o := x.plugin(c, f); {
		case o.killed:
			x.killed("GC", "")
			x.count.add("GC", "killed")
			all = false
		case o.failure == nil:
			x.count.add("GC", "ok")
		case x.keeper.steady(since):
			x.count.add("GC", "failed")
			x.errorf("GC failed though the daemon lives: %s %s", o.failure, o.failure.Details)
			all = false
		default:
			x.count.add("GC", "failed while the daemon was away")
			all = false
		}
	}
	if !all {
		return
	}
	x.releaseOrphans()
	wrong := x.compare()
	for try := 0; len(wrong) > 0 && try < 100; try++ { // a request of a plugin that was killed may come in behind GC
		x.count.add("GC had to be repeated for", "a request of a killed plugin")
		time.Sleep(50 * time.Millisecond)
		for _, attach := range attachments {
			x.plugin(call{verb: "GC", version: "1.1.0", network: networkOf(attach), attach: attach, valid: x.valid(attach)}, fuse{})
		}
		wrong = x.compare()
	}
	for _, s := range wrong {
		x.errorf("after GC: %s", s)
	}
	x.count.add("GC", "compared with the node")
}

// valid are the pods of a network that are attached, as the runtime sees it.
func (x *torture) valid(attach string) []types.GCAttachment {
	list := []types.GCAttachment{}
	for _, l := range x.alive() {
		if l.attach == attach {
			list = append(list, l.key())
		}
	}
	return list
}

// alive are the pods whose ADD has succeeded and whose DEL has not begun.
func (x *torture) alive() (list []*life) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range sortedKeys(x.pods) {
		if l := x.pods[id]; l.previous != nil && !l.ending.Load() {
			list = append(list, l)
		}
	}
	return list
}

// releaseOrphans: GC has taken the pods that nobody knows off the network.
func (x *torture) releaseOrphans() {
	x.mu.Lock()
	list := x.abandoned
	x.abandoned = nil
	x.mu.Unlock()
	for _, o := range list {
		if l, err := x.n.Netlink().LinkByName(control.DeviceName(o.l.id, ifname)); err == nil {
			x.errorf("after GC %s of an abandoned %s pod is still there", l.Attrs().Name, o.l.attach)
		}
		o.w.removeSandbox(o.l)
	}
}

var ours = regexp.MustCompile(`^ps[0-9a-f]{11}$`)

// compare says what differs between what the runtime knows and what is on the node.
func (x *torture) compare() (wrong []string) {
	files, devices := []string{}, []string{}
	for _, l := range x.alive() {
		name := control.DeviceName(l.id, ifname)
		files = append(files, name)
		if l.attach == control.AttachVeth {
			devices = append(devices, name)
		}
	}
	haveFiles := sortedKeys(x.records())
	haveDevices := slices.DeleteFunc(x.n.LinkNames(), func(n string) bool { return !ours.MatchString(n) })
	slices.Sort(haveDevices)
	slices.Sort(files)
	slices.Sort(devices)
	for what, l := range map[string][]string{
		"state files of nobody": difference(haveFiles, files), "no state files of": difference(files, haveFiles),
		"devices of nobody": difference(haveDevices, devices), "no devices of": difference(devices, haveDevices),
	} {
		if len(l) > 0 {
			wrong = append(wrong, what+" "+strings.Join(l, ", "))
		}
	}
	return wrong
}
