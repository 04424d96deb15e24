package cni

import (
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/forwarder/control"
)

// rules are those of answerThrough in a pod, as "from in table".
func (p *pod) rules(t *testing.T) (list []string) {
	t.Helper()
	p.Do(func() {
		for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := netlink.RuleList(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range all {
				if r.Priority == rulePriority {
					list = append(list, r.Src.String())
				}
			}
		}
	})
	return list
}

// TestStrangersDelete: the DEL of another container in the same network namespace, one that was refused the name or that had the
// namespace's path before, takes nothing of the pod that lives there.
func TestStrangersDelete(t *testing.T) {
	w := newWorld(t)
	for _, attach := range []string{"veth", "tun"} {
		t.Run(attach, func(t *testing.T) {
			w.t = t
			p, conf := w.newPod(), map[string]any{"attach": attach}
			results := map[string]any{}
			for _, name := range []string{"eth0", "net1"} {
				a := w.run(call{verb: "ADD", id: p.id, netns: p.path, ifname: name, conf: conf})
				if a.code != 0 {
					t.Fatal(a.msg)
				}
				results[name] = parseResult(t, a.out)
			}
			before := p.rules(t)
			for _, name := range []string{"eth0", "net1"} {
				if a := w.run(call{verb: "DEL", id: "stranger", netns: p.path, ifname: name, conf: conf}); a.code != 0 {
					t.Error(a.msg)
				}
				if a := w.run(call{verb: "CHECK", id: p.id, netns: p.path, ifname: name, conf: map[string]any{"attach": attach, "prevResult": results[name]}}); a.code != 0 {
					t.Errorf("after a stranger's DEL of %s: %s", name, a.msg)
				}
			}
			if after := p.rules(t); len(before) != 2 || !slices.Equal(before, after) {
				t.Errorf("rules were %v and are %v", before, after)
			}
			for _, name := range []string{"eth0", "net1"} {
				if a := w.run(call{verb: "DEL", id: p.id, netns: p.path, ifname: name, conf: conf}); a.code != 0 {
					t.Error(a.msg)
				}
			}
			w.clean(p)
		})
	}
}

// TestOlderTUN: one that a version before has marked goes with its DEL.
func TestOlderTUN(t *testing.T) {
	w := newWorld(t)
	p := w.newPod()
	w.mustAdd(p, "1.1.0", map[string]any{"attach": "tun"})
	p.Do(func() {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.LinkSetAlias(l, plainAlias)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	w.set(func() { w.errs["/v1/detach"] = control.Errorf(control.Internal, "not now") })
	if a := w.run(call{verb: "DEL", id: p.id, netns: p.path, conf: map[string]any{"attach": "tun"}}); a.code != 0 {
		t.Error(a.msg)
	}
	p.Do(func() {
		if _, err := netlink.LinkByName("eth0"); err == nil {
			t.Error("the TUN is left")
		}
	})
}

// TestCheckAnswers: a further interface without its rule, or without the route in its table, is not as ADD left it.
func TestCheckAnswers(t *testing.T) {
	w := newWorld(t)
	for what, spoil := range map[string]func() error{
		"rule": func() error {
			rules, err := netlink.RuleListFiltered(netlink.FAMILY_V6, &netlink.Rule{Priority: rulePriority}, netlink.RT_FILTER_PRIORITY)
			if err != nil {
				return err
			}
			rules[0].Family = netlink.FAMILY_V6
			return netlink.RuleDel(&rules[0])
		},
		"route": func() error { return netlink.RouteDel(&netlink.Route{Dst: netOf(all6), Table: tableOf("net1")}) },
	} {
		p := w.newPod()
		w.mustAdd(p, "1.1.0", nil)
		c := call{verb: "ADD", id: p.id, netns: p.path, ifname: "net1"}
		c.conf = map[string]any{"attach": "veth", "prevResult": parseResult(t, w.run(c).out)}
		c.verb = "CHECK"
		if a := w.run(c); a.code != 0 {
			t.Error(a.msg)
		}
		p.Do(func() {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
		})
		if a := w.run(c); a.code == 0 || strings.Count(a.msg, "answers from fd00:") != 1 || strings.Contains(a.msg, "answers from 10.") {
			t.Errorf("%s: %d %s", what, a.code, a.msg)
		}
	}
}
