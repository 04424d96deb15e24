package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

var digits = regexp.MustCompile(`[0-9]+`)

// descriptorsOf lists what a daemon has open, by what it leads to.
func descriptorsOf(d *lab.Daemon) []string {
	var list []string
	dir := fmt.Sprintf("/proc/%d/fd", d.Process.Pid())
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			list = append(list, digits.ReplaceAllString(to, "N"))
		}
	}
	slices.Sort(list)
	return list
}

// TestDescriptorsStay: pods come and go, in order and with their devices deleted under the daemon, in the pod and on the node. After
// their DEL the daemon has as many descriptors as before, and nothing of them is left.
func TestDescriptorsStay(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{})
	l.Start(t)
	a := l.Nodes[0]
	far := l.Nodes[1].AddPodByPlugin(t, lab.Veth)
	drop := func(ns *lab.NS, name string) {
		t.Helper()
		link, err := ns.Netlink().LinkByName(name)
		if err == nil {
			err = ns.Netlink().LinkDel(link)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	round := func() {
		for _, attach := range []lab.Attach{lab.Veth, lab.TUN} {
			for _, where := range []string{"", "in the pod", "on the node", "with the namespace"} {
				if where == "on the node" && attach == lab.TUN {
					continue // it has no end there
				}
				p := a.AddPodByPlugin(t, attach)
				reaches(t, p, far)
				switch where {
				case "in the pod":
					drop(p.NS, "eth0")
				case "on the node":
					drop(a.NS, control.DeviceName(p.Container, "eth0"))
				case "with the namespace":
					p.NS.Close()
				}
				if where == "in the pod" || where == "on the node" {
					if err := p.Check(); err == nil {
						t.Errorf("CHECK of a %s whose device was deleted %s succeeds", attach, where)
					}
				}
				p.Remove(t)
				nothingLeft(t, a)
			}
		}
	}
	round() // what is opened once and kept
	before := descriptorsOf(a.Daemon)
	for range 3 {
		round()
	}
	var after []string
	await(t, "as many descriptors as before", func() bool {
		after = descriptorsOf(a.Daemon)
		return len(after) <= len(before)
	})
	a.Daemon.AssertConserved(t)
}
